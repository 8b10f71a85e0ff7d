"""A scenario of a project file: its catalogue, its log, its split, its tasks and their weights."""

import re
import string
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mtrec_ray.project.base import Duration, Name, Section, Share, none_word

SPLITS = ("train", "valid", "test")


# Plain numbers are read as seconds since 1970 where they say a moment from 1990 to 2100.
PLAUSIBLE_SECONDS = (631_152_000, 4_102_444_800)


def template_columns(template: str) -> tuple[str, ...]:
    """Columns named in braces in a text template, each once.

    Raises:
        ValueError: braces that do not match, hold no plain column name, or none at all.
    """
    allowed = "allowed: column names in braces, such as {title}, and {{ or }} for a brace itself"
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; {allowed}") from None
    if not parts:
        raise ValueError(f"no column name in braces; {allowed}")
    for _, name, form, conversion in parts:
        if form or conversion or not re.fullmatch(r"\w+", name or "") or str(name).isdigit():
            tail = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"{{{name}{tail}}} is no column name; {allowed}")
    return tuple(dict.fromkeys(str(name) for _, name, _, _ in parts))


def check_template(template: str) -> str:
    """The text template itself, refused where it names no columns."""
    template_columns(template)
    return template


def check_moments(value: object) -> object:
    """Two cuts as they stand in the file; days as numbers (20250131) would be read as seconds."""
    for moment in value if isinstance(value, list | tuple) else ():
        if re.fullmatch(r"(19|20)\d\d(0\d|1[0-2])[0-3]\d", str(moment).strip()):
            raise ValueError(f"{moment} would be read as seconds; allowed: dates as 2025-01-31")
    return value


class Task(Section):
    """A label to predict; `given` names the task without whose positive this one is undefined."""

    kind: Literal["binary", "regression"]
    label: str | None = None
    given: str | None = None
    space: Literal["masked", "entire"] = "masked"
    delay: Duration = 0
    weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _entire_space_needs_a_parent(self) -> Self:
        if self.space == "entire" and (self.given is None or self.kind != "binary"):
            raise ValueError(
                "space: found entire; allowed: masked, or a binary task with given (1804.07931)"
            )
        return self


class Items(Section):
    """The catalogue's Parquet file or folder and what its columns mean.

    Of each value of the columns `statistics` (null: all categorical ones) past counts and rates
    are kept, and of each user's rows with that value.
    """

    path: str
    id: str = "item_id"
    text: Annotated[str, AfterValidator(check_template)]
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    published: str | None = None
    statistics: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _statistics_of_categories(self) -> Self:
        for column in self.statistics or ():
            if column not in self.categorical:
                raise ValueError(
                    f"statistics: found {column!r}; allowed: columns of categorical, "
                    f"{list(self.categorical)}"
                )
        return self

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        """Categorical columns whose values have statistics."""
        return self.categorical if self.statistics is None else self.statistics

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template."""
        return template_columns(self.text)


class Events(Section):
    """The interaction log's Parquet file or folder and what its columns mean.

    `time_unit` is that of times which are plain numbers, here and in the catalogue (`published`).
    """

    path: str
    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()


class Split(Section):
    """Exactly one of: a column, two global time cuts, or fractions of each user's rows."""

    column: str | None = None
    time: Annotated[tuple[datetime, datetime] | None, BeforeValidator(check_moments)] = None
    fractions: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _exactly_one_way(self) -> Self:
        given = [k for k in ("column", "time", "fractions") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"found {given or 'none'}; allowed: one of column, time, fractions")
        if self.fractions and abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions: found a sum of {sum(self.fractions):g}; allowed: 1")
        if self.time and self.time[0] >= self.time[1]:
            raise ValueError(
                "time: found a first cut that is not before the second; allowed: an earlier one"
            )
        return self


class Negatives(Section):
    """Sampled negatives: `per_positive` for every positive of task `of`."""

    per_positive: PositiveInt = 4
    of: str
    source: Literal["popularity", "uniform"] = Field("uniform", alias="from")


class History(Section):
    """The user's `last` positive items of task `of` (`any`: every row), before the sample."""

    of: str = "any"
    last: Annotated[int, Field(ge=1, le=512)] = 20


class Scenario(Section):
    """One recommendation surface: its catalogue, log, split, tasks and loss weight (lambda)."""

    items: Items
    events: Events
    split: Split
    negatives: Annotated[Negatives | None, BeforeValidator(none_word)] = None
    history: History = History()
    tasks: dict[Name, Task] = Field(min_length=1)
    weight: NonNegativeFloat = 1.0
    users: Name | None = None
    statistics: Literal["live", "frozen"] = "live"
    max_unknown_items: Share = 0.01

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        problems = [line for line in self._problems() if line]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """One line for each field that does not fit the others."""
        wanted = {f"tasks.{n}.given": t.given for n, t in self.tasks.items() if t.given}
        if self.history.of != "any":
            wanted["history.of"] = self.history.of
        if self.negatives:
            wanted["negatives.of"] = self.negatives.of
        for field, task in wanted.items():
            if task not in self.tasks or field == f"tasks.{task}.given":
                yield f"{field}: found {task!r}; allowed: another of {sorted(self.tasks)}"
            elif self.tasks[task].kind != "binary":
                yield f"{field}: found that {task!r} is a regression; allowed: a binary task"
            elif field.startswith("tasks.") and self.tasks[task].given:
                yield f"{field}: found that {task!r} is itself conditional; allowed: another"
        if self.events.time is None and self.split.time:
            yield "split.time: found two cuts without events.time; allowed: column or fractions"
        if sum(t.weight for t in self.tasks.values()) <= 0:
            yield "tasks: found that all task weights are 0; allowed: at least one above 0"

    def label_delay(self, task: str) -> int:
        """Seconds after which a task's label is known.

        A conditional task's label says that its parent was positive, so it is not known before
        the parent's is.
        """
        parent = self.tasks[task].given
        return max(self.tasks[task].delay, self.label_delay(parent) if parent else 0)

    def label_column(self, task: str) -> str:
        """Column of the events that holds the task's label."""
        return self.tasks[task].label or task
