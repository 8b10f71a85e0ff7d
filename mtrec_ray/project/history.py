"""The history of a scenario: which of a user's earlier rows a sample sees, and what of them."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from mtrec_ray.project.base import Section

ANY = "any"


# Tasks whose outcomes an item of a history can tell: two bits of each in a whole number of 32.
MOST_OUTCOMES = 15


def read_tasks(value: object) -> object:
    """Returns a task, or several; a list of one stands for it."""
    allowed = "allowed: any, a task, or a list of tasks"
    if not isinstance(value, list | tuple):
        return value
    if not value or not all(isinstance(task, str) for task in value):
        raise ValueError(allowed)
    if len(value) > 1 and (ANY in value or len(set(value)) < len(value)):
        raise ValueError(f"{allowed}, each once")
    return value[0] if len(value) == 1 else tuple(value)


def is_zero(value: int) -> bool:
    """Returns whether a field says nothing: what was made before there was such a field stays."""
    return value == 0


class History(Section):
    """The user's earlier items, strictly before the sample."""

    of: Annotated[str | tuple[str, ...], BeforeValidator(read_tasks)] = Field(
        default=ANY,
        description="Task whose positives are in the history, or a list of tasks: positives of "
        "one of them, from when all of these labels are known; any: all rows.",
    )
    last: Annotated[int, Field(ge=1, le=512)] = Field(
        default=20, description="Items of the history, at most: the latest ones."
    )
    outcomes: bool = Field(
        default=False,
        description="Each item of the history tells what came of it, task by task, as far as it "
        "was known when the sample happened: positive or not; of numbers low, middle or high.",
    )

    elsewhere: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0,
        exclude_if=is_zero,
        description="Items that the user took in other scenarios of the same people (`users`), at "
        "most: the latest ones.",
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose positives are in the history; none where all rows are."""
        of = (self.of,) if isinstance(self.of, str) else self.of
        return () if of == (ANY,) else of
