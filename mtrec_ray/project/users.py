"""A table of users of a project file, whatever scenarios they are in.

It has a row for each user; with `time`, a row for each change of a profile.
"""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mtrec_ray.project.base import Section
from mtrec_ray.project.column_fields import (
    Missing,
    Separators,
    check_template,
    is_empty,
    shared_vectors,
    template_columns,
    twice_named,
)
from mtrec_ray.project.task import Column, Columns


class Users(Section):
    """A table of users, and what its columns mean."""

    path: str = Field(description="The table: a path or a URI, as that of a catalogue.")
    id: str = Field(
        default="user_id",
        description="Column with the user's id, as the logs have it: unique (unless there is a "
        "`time`), not null.",
    )
    time: Column | None = Field(
        default=None,
        description="Column that says when a row was written: a user has one for each change, and "
        "a sample sees the latest strictly before its own time. null: one row a user, true at any "
        "time.",
    )
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None,
        description="Unit of a `time` of plain numbers. null: seconds; other units are refused by "
        "name.",
    )
    categorical: Columns = Field(
        default=(),
        description="Columns whose values get an embedding where 5 users of training have them.",
    )
    numeric: Columns = Field(
        default=(),
        description="Columns of numbers, standardised on the users of training; null is allowed.",
    )
    lists: Columns = Field(
        default=(), description="Columns of lists: several values, as those of items."
    )
    separators: Separators = Field(
        default={}, description="Texts with several values and what parts them, as those of items."
    )
    vectors: Columns = Field(
        default=(),
        exclude_if=is_empty,
        description="Columns of ready vectors, as those of items.",
    )
    text: Annotated[str, AfterValidator(check_template)] | None = Field(
        default=None,
        description="Template of the user's text, which the pretrained encoder reads. null: none.",
    )
    missing: Missing = Field(
        default={}, description="Values that are read as null, by column, such as `{age: [0]}`."
    )

    def check_columns(self) -> Iterator[str]:
        """Yields a line for a table of ids alone."""
        if not (self.categorical or self.numeric or self.several or self.vectors or self.text):
            yield "found no column beside the id; allowed: at least one of any kind"

    def check_unit(self) -> Iterator[str]:
        """Yields a line for a unit of no times."""
        if self.time_unit and not self.time:
            yield f"time_unit: found {self.time_unit!r} without time; allowed: null"

    def check_several(self) -> Iterator[str]:
        """Yields a line for each column that would be read in two ways."""
        yield from twice_named(self.categorical, self.lists, self.separators)

    def check_vectors(self) -> Iterator[str]:
        """Yields a line for each column of vectors that another field names, too."""
        named = ("categorical", "numeric", "lists", "separators")
        others: dict[str, Collection[str]] = {
            "id": [self.id],
            "time": [self.time] if self.time else [],
            "text": self.text_columns,
        }
        yield from shared_vectors(self.vectors, others | {n: getattr(self, n) for n in named})

    @property
    def several(self) -> dict[str, str | None]:
        """Columns with several values, by the separator of their texts; None of lists."""
        return {**dict.fromkeys(self.lists), **self.separators}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template; none without one."""
        return template_columns(self.text) if self.text else ()
