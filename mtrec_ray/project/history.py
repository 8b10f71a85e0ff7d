"""The history of a scenario: which of a user's earlier rows a sample sees, and what of them."""

from collections import Counter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mtrec_ray.project.base import Section, is_none

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


def with_elsewhere(scenarios: dict[str, Any]) -> dict[str, Any]:
    """Returns scenarios, as they stand in a file, whose histories say what they see elsewhere.

    Where a scenario does not say it, and another one has the same `users`, it sees as many items
    as in its own history. What is malformed is returned as it is.
    """
    named = Counter(s["users"] for s in scenarios.values() if shares_users(s))
    found: dict[str, Any] = {}
    for name, scenario in scenarios.items():
        shared = shares_users(scenario) and named[scenario["users"]] > 1
        history = scenario.get("history", {}) if shared else None
        if isinstance(history, dict) and history.get("elsewhere") is None:
            last = history.get("last", History.model_fields["last"].default)
            own = {"elsewhere": last} if isinstance(last, int) else {}
            scenario = {**scenario, "history": {**history, **own}}
        found[name] = scenario
    return found


def shares_users(scenario: object) -> bool:
    """Returns whether a scenario, as it stands in a file, names its users."""
    return isinstance(scenario, dict) and isinstance(scenario.get("users"), str)


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

    elsewhere: Annotated[int, Field(ge=0, le=512)] | None = Field(
        default=None,
        exclude_if=is_none,
        description="Items that the user took in other scenarios of the same people (`users`), at "
        "most: the latest ones. null: as many as `last`, where another scenario has these users.",
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose positives are in the history; none where all rows are."""
        of = (self.of,) if isinstance(self.of, str) else self.of
        return () if of == (ANY,) else of
