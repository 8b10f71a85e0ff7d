"""Profiles of those who ask: rows that requests bring along, over those of the table of users.

Letters: B users who ask, R rows that they bring, D width of texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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

    def of_user(self, user: UserSnapshot) -> tuple[Catalogue | None, Float32s | None]:
        """Returns the profile of the only user of a snapshot, and its text f32[1, D].

        None for one who has none; no text where users have none.
        """
        given = user.given
        if given is not None and given.place[0] != STORED:
            row, table, texts = int(given.place[0]), given.rows, given.texts
        else:
            stored = self.stored()
            row = int(stored.places(user.person, user.moment)[0])
            table, texts = stored.table, stored.texts
        if row < 0:
            return None, None
        return row_of(table, row), None if texts is None else texts[[row]]

    @cached_property
    def empty_text(self) -> Float32s:
        """f32[1, D]: the text of a user whose columns are null."""
        return self.encode(self.reader.read({}).row)


def row_of(table: Catalogue, row: int) -> Catalogue:
    """Returns a row of a table, without its tokens."""
    return replace(
        table, tokens=table.tokens[:0], offsets=np.zeros(2, np.int64),
        published=table.published[[row]], known=np.ones(1, bool),
        categorical=table.categorical[[row]], numeric=table.numeric[[row]],
        several=tuple(own.take(np.array([row])) for own in table.several),
        vectors=tuple(np.asarray(own[[row]]) for own in table.vectors),
    )  # fmt: skip


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
