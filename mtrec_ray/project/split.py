"""The section `split` of a scenario: which rows train, choose and test."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator, Field, PositiveFloat

from mtrec_ray.project.base import Section
from mtrec_ray.project.task import Column

SPLITS = ("train", "valid", "test")


# Plain numbers are read as seconds since 1970 where they say a moment from 1990 to 2100.
PLAUSIBLE_SECONDS = (631_152_000, 4_102_444_800)


def check_moments(value: object) -> object:
    """Returns two cuts; refuses days as numbers (20250131), which would be read as seconds."""
    for moment in value if isinstance(value, list | tuple) else ():
        if re.fullmatch(r"(19|20)\d\d(0\d|1[0-2])[0-3]\d", str(moment).strip()):
            raise ValueError(f"{moment} would be read as seconds; allowed: dates as 2025-01-31")
    return value


def to_ms(moment: datetime) -> int:
    """Returns milliseconds since 1970 of a date; one without zone is UTC."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class Split(Section):
    """Train, valid and test rows. Exactly one way is given."""

    column: Column | None = Field(
        default=None, description="Column of the log with the values train, valid and test."
    )
    time: Annotated[tuple[datetime, datetime] | None, BeforeValidator(check_moments)] = Field(
        default=None, description="Two times: valid begins at the first, test at the second."
    )
    fractions: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None,
        description="Fractions of each user's rows in train, valid and test; they sum to 1.",
    )

    def check_one_way(self) -> Iterator[str]:
        """Yields a line unless exactly one way is given."""
        given = [k for k in ("column", "time", "fractions") if getattr(self, k) is not None]
        if len(given) != 1:
            yield f"found {given or 'none'}; allowed: one of column, time, fractions"

    def check_fractions(self) -> Iterator[str]:
        """Yields a line for fractions that do not sum to 1."""
        if self.fractions and abs(sum(self.fractions) - 1) > 1e-6:
            yield f"fractions: found a sum of {sum(self.fractions):g}; allowed: 1"

    def check_order(self) -> Iterator[str]:
        """Yields a line for cuts that are not in order."""
        if self.time and to_ms(self.time[0]) >= to_ms(self.time[1]):
            yield "time: found a first cut that is not before the second; allowed: an earlier one"
