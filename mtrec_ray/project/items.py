"""The section `items` of a scenario: its catalogue."""

from collections.abc import Collection, Iterator
from typing import Annotated

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


class Items(Section):
    """The catalogue, and what its columns mean."""

    path: str = Field(
        description="The catalogue: a path or a URI of Parquet, CSV or JSON lines (a file or a "
        "folder of them), or of a table of Delta or Iceberg."
    )
    id: str = Field(default="item_id", description="Column with the item's id: unique, not null.")
    text: Annotated[str, AfterValidator(check_template)] = Field(
        description='Template of the text that the encoder reads, such as `"{title}. {brand}"`.'
    )
    categorical: Columns = Field(
        default=(), description="Columns whose frequent values get an embedding."
    )
    numeric: Columns = Field(
        default=(),
        description="Columns of numbers, standardised on the items of training; null is allowed.",
    )
    lists: Columns = Field(
        default=(),
        description="Columns of lists: several values, whose embeddings are averaged.",
    )
    separators: Separators = Field(
        default={},
        description='Texts with several values and what parts them, such as `{genres: "|"}`: as '
        "`lists`.",
    )
    vectors: Columns = Field(
        default=(),
        exclude_if=is_empty,
        description="Columns of ready vectors, such as embeddings of images: lists of numbers, all "
        "of one length; null is allowed.",
    )
    published: Column | None = Field(
        default=None,
        description="Column with the publishing time, for the item's age. null: no age.",
    )
    statistics_of: Columns | None = Field(
        default=None,
        description="Columns of `categorical`, `lists` or `separators` whose values have past "
        "counts and rates; those of several values are pooled. null: all that are categorical.",
    )
    missing: Missing = Field(
        default={},
        description="Values that are read as null, by column, such as `{price: [-1]}`.",
    )

    def check_statistics(self) -> Iterator[str]:
        """Yields a line for each column with statistics that has no values."""
        allowed = [*self.categorical, *self.several]
        for column in self.statistics_of or ():
            if column not in allowed:
                yield (
                    f"statistics_of: found {column!r}; allowed: columns of categorical, lists or "
                    f"separators, {allowed}"
                )

    def check_several(self) -> Iterator[str]:
        """Yields a line for each column that would be read in two ways."""
        yield from twice_named(self.categorical, self.lists, self.separators)

    def check_vectors(self) -> Iterator[str]:
        """Yields a line for each column of vectors that another field names, too."""
        others: dict[str, Collection[str]] = {
            "id": [self.id],
            "text": self.text_columns,
            "published": [self.published] if self.published else [],
        }
        named = ("categorical", "numeric", "lists", "separators")
        yield from shared_vectors(self.vectors, others | {n: getattr(self, n) for n in named})

    @property
    def several(self) -> dict[str, str | None]:
        """Columns with several values, by the separator of their texts; None of lists."""
        return {**dict.fromkeys(self.lists), **self.separators}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        """Categorical columns whose values have statistics."""
        named = self.categorical if self.statistics_of is None else self.statistics_of
        return tuple(column for column in named if column in self.categorical)

    @property
    def pooled_columns(self) -> dict[str, str | None]:
        """Columns with several values that have statistics, by their separator as `several`."""
        return {c: self.several[c] for c in self.statistics_of or () if c in self.several}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template."""
        return template_columns(self.text)
