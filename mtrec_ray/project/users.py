"""A table of users of a project file: a row for each, whatever scenarios they are in."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from mtrec_ray.project.base import Section
from mtrec_ray.project.scenario import Missing, check_template, template_columns


class Users(Section):
    """A table of users, and what its columns mean."""

    path: str = Field(description="Parquet file or folder of the users; a path or a URI.")
    id: str = Field(
        default="user_id",
        description="Column with the user's id, as the logs have it: unique, not null.",
    )
    categorical: tuple[str, ...] = Field(
        default=(),
        description="Columns whose values get an embedding where 5 users of training have them.",
    )
    numeric: tuple[str, ...] = Field(
        default=(),
        description="Columns of numbers, standardised on the users of training; null is allowed.",
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
        if not (self.categorical or self.numeric or self.text):
            yield "found neither categorical, numeric nor text; allowed: at least one of them"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template; none without one."""
        return template_columns(self.text) if self.text else ()
