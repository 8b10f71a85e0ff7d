"""The section `events` of a scenario: its log."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from mtrec_ray.project.base import Section
from mtrec_ray.project.column_fields import Missing, Separators, twice_named
from mtrec_ray.project.task import Column, Columns


class Propensity(Section):
    """The probability with which a logged policy chose a row, and its inverse as a weight."""

    column: Column = Field(description="Column of the log with the probability: in (0, 1].")
    clip: Annotated[FiniteFloat, Field(ge=1)] = Field(
        default=10.0, description="The largest weight: min(1 / p, clip)."
    )


class Events(Section):
    """The interaction log, and what its columns mean."""

    path: str = Field(description="The log: a path or a URI, as that of the catalogue.")
    user: str = Field(default="user_id", description="Column with the user's id.")
    item: str = Field(default="item_id", description="Column with the item's id.")
    time: Column | None = Field(
        default=None,
        description="Column with a time stamp, or a number. null: the log has no time.",
    )
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None,
        description="Unit of times that are plain numbers, here and in `items.published`. null: "
        "seconds; other units are refused by name.",
    )
    categorical: Columns = Field(
        default=(), description="Categorical columns that are known when the row happens."
    )
    numeric: Columns = Field(
        default=(), description="Columns of numbers that are known when the row happens."
    )
    lists: Columns = Field(
        default=(),
        description="Columns of lists that are known when the row happens: several values, whose "
        "embeddings are averaged.",
    )
    separators: Separators = Field(
        default={},
        description='Texts with several values and what parts them, such as `{filters: ","}`: as '
        "`lists`.",
    )
    missing: Missing = Field(
        default={},
        description='Values that are read as null, by column, such as `{user_id: [""], stars: '
        "[-1]}`.",
    )
    weight_column: Column | None = Field(
        default=None,
        description="Column with the weight of each row, from 0 to 1e9, in the losses of the "
        "tasks, in trees and in base rates of training; metrics do not use it. null: each weighs "
        "1.",
    )
    propensity: Propensity | None = Field(
        default=None,
        description="Weights the rows by the inverse of the probability of being logged, too. "
        "null: no such probability.",
    )

    def check_several(self) -> Iterator[str]:
        """Yields a line for each column that would be read in two ways."""
        yield from twice_named(self.categorical, self.lists, self.separators)

    @property
    def several(self) -> dict[str, str | None]:
        """Columns with several values, by the separator of their texts; None of lists."""
        return {**dict.fromkeys(self.lists), **self.separators}

    @property
    def weigh(self) -> dict[str, str]:
        """The columns that weights come from, by their fields."""
        named = {"weight_column": self.weight_column} if self.weight_column else {}
        return named | ({"propensity.column": self.propensity.column} if self.propensity else {})
