"""Profiles of those who ask: rows that requests bring along, over those of the table of users.

Letters: B users who ask, R rows that they bring, D width of texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtrec_ray.data.arrays import Float32s, Ints
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.given_profiles import STORED, GivenProfiles, picked, stacked
from mtrec_ray.data.profiles import Profiles
from mtrec_ray.data.snapshot import UserSnapshot
from mtrec_ray.serving.profile_reader import ProfileColumns, ProfileReader, ReadProfile


@dataclass(frozen=True)
class RequestProfiles:
    """Reads the profiles of requests, and gives them to users.

    Attributes:
        stored: the prepared table of users.
        encode: returns f32[1, D], what the pretrained encoder makes of a text.
    """

    reader: ProfileReader
    stored: Callable[[], Profiles]
    encode: Callable[[Catalogue], Float32s]

    def given_to(
        self, users: UserSnapshot, profiles: Sequence[ProfileColumns | None]
    ) -> tuple[UserSnapshot, list[dict[str, list[str]]]]:
        """Returns users B with the profile that each brings, and what values of it are unknown."""
        read = [None if own is None else self.reader.read(own) for own in profiles]
        unknown = [{} if own is None else own.unknown for own in read]
        bring = np.array([own is not None for own in read])
        if not bring.any():
            return users, unknown
        places = self.stored().places(users.person[bring], users.moment[bring])
        given = [own for own in read if own is not None]
        rows = [self.row(own, int(at)) for own, at in zip(given, places, strict=True)]
        texts = None
        if self.reader.facts.has_text:
            found = [self.text(own, int(at)) for own, at in zip(given, places, strict=True)]
            texts = np.concatenate(found)
        place = np.full(len(users), STORED)
        place[bring] = np.arange(len(rows))
        return replace(users, given=GivenProfiles(place, stacked(rows), texts)), unknown

    def row(self, read: ReadProfile, place: int) -> Catalogue:
        """Returns a profile, with the columns of a row of the table that the request leaves."""
        if place < 0:
            return read.row
        return picked(read.row, self.stored().table, place, read.picked)

    def text(self, read: ReadProfile, place: int) -> Float32s:
        """Returns f32[1, D]: the text of a profile, or of the table's row where it has none."""
        if place < 0 or read.picked.text:
            return self.encode(read.row)
        return self.stored().texts_of(np.array([place]))


def users_by_profile(
    names: Sequence[str], profiles: Sequence[ProfileColumns | None]
) -> tuple[Ints, Ints]:
    """Returns who asks with which profile: the first to ask of each pair, and i64[A], the pairs."""
    keys = [
        (name, None if own is None else repr(sorted(own.items())))
        for name, own in zip(names, profiles, strict=True)
    ]
    pairs = list(dict.fromkeys(keys))
    number = {key: place for place, key in enumerate(pairs)}
    return np.array([keys.index(key) for key in pairs]), np.array([number[key] for key in keys])
