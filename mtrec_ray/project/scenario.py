"""A scenario of a project file: its catalogue, its log, its split, its tasks and their weights."""

import math
import re
import string
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from mtrec_ray.project.base import Duration, Name, Section, Share, none_word, shorten

SPLITS = ("train", "valid", "test")


# Plain numbers are read as seconds since 1970 where they say a moment from 1990 to 2100.
PLAUSIBLE_SECONDS = (631_152_000, 4_102_444_800)


def template_columns(template: str) -> tuple[str, ...]:
    """Returns columns named in braces in a text template, each once.

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
        plain = (
            re.fullmatch(r"[^\s.[\]]([^.[\]]*[^\s.[\]])?", name or "") and not str(name).isdigit()
        )
        if form or conversion or not plain:
            tail = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"{{{name}{tail}}} is no column name; {allowed}")
    return tuple(dict.fromkeys(str(name) for _, name, _, _ in parts))


def check_template(template: str) -> str:
    """Returns the text template itself, refused where it names no columns."""
    template_columns(template)
    return template


def values_by_column(value: object) -> object:
    """Returns texts and numbers by column; one alone stands for a list of it."""
    if not isinstance(value, dict):
        return value
    lists = {k: v if isinstance(v, list | tuple) else (v,) for k, v in value.items()}
    for column, values in lists.items():
        if not all(
            isinstance(v, str | int) or (isinstance(v, float) and math.isfinite(v)) for v in values
        ):
            allowed = "allowed: texts and finite numbers, such as {stars: [-1, 0]}"
            raise ValueError(f"{column}: found {shorten(values)}; {allowed}")
    return lists


def check_column(name: str) -> str:
    """Returns the name of a column that may be left out; an empty one would be taken for none."""
    if not name:
        raise ValueError("allowed: the name of a column, or null")
    return name


Column = Annotated[str, AfterValidator(check_column)]


def check_separators(separators: dict[str, str]) -> dict[str, str]:
    """Returns separators by column, refused where one of them is empty."""
    for column, separator in separators.items():
        if not separator:
            raise ValueError(f"{column}: found ''; allowed: a separator, such as '|'")
    return separators


# Separators of texts that hold several values, by column.
Separators = Annotated[dict[str, str], AfterValidator(check_separators)]


# Values that mean that nothing is known, by column.
Missing = Annotated[dict[str, tuple[str | int | float, ...]], BeforeValidator(values_by_column)]


def check_moments(value: object) -> object:
    """Returns two cuts; refuses days as numbers (20250131), which would be read as seconds."""
    for moment in value if isinstance(value, list | tuple) else ():
        if re.fullmatch(r"(19|20)\d\d(0\d|1[0-2])[0-3]\d", str(moment).strip()):
            raise ValueError(f"{moment} would be read as seconds; allowed: dates as 2025-01-31")
    return value


def to_ms(moment: datetime) -> int:
    """Returns milliseconds since 1970 of a date; one without zone is UTC."""
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class Task(Section):
    """A label to predict."""

    kind: Literal["binary", "regression"] = Field(
        description="Labels are 0 or 1 (binary), or numbers (regression); null is unknown."
    )
    label: Column | None = Field(
        default=None, description="Column of the log with the label. null: the task's name."
    )
    given: str | None = Field(
        default=None,
        description="Binary task without whose positive this task is undefined. null: none.",
    )
    space: Literal["masked", "entire"] = Field(
        default="masked",
        description="masked learns from the rows where the parent is positive, entire from all: "
        "p(parent) * p(task | parent) (1804.07931).",
    )
    delay: Duration = Field(
        default=0,
        description="Time from a row until its label is known and enters statistics; a plain "
        "number is seconds.",
    )
    weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the task among the scenario's tasks."
    )

    def check_space(self) -> Iterator[str]:
        """Yields a line for an entire space without a parent."""
        if self.space == "entire" and (self.given is None or self.kind != "binary"):
            yield "space: found entire; allowed: masked, or a binary task with given (1804.07931)"


class Items(Section):
    """The catalogue, and what its columns mean."""

    path: str = Field(description="Parquet file or folder of the catalogue; a path or a URI.")
    id: str = Field(default="item_id", description="Column with the item's id: unique, not null.")
    text: Annotated[str, AfterValidator(check_template)] = Field(
        description='Template of the text that the encoder reads, such as `"{title}. {brand}"`.'
    )
    categorical: tuple[str, ...] = Field(
        default=(), description="Columns whose frequent values get an embedding."
    )
    numeric: tuple[str, ...] = Field(
        default=(),
        description="Columns of numbers, standardised on the items of training; null is allowed.",
    )
    lists: tuple[str, ...] = Field(
        default=(),
        description="Columns of lists: several values, whose embeddings are averaged.",
    )
    separators: Separators = Field(
        default={},
        description='Texts with several values and what parts them, such as `{genres: "|"}`: as '
        "`lists`.",
    )
    published: Column | None = Field(
        default=None,
        description="Column with the publishing time, for the item's age. null: no age.",
    )
    statistics_of: tuple[str, ...] | None = Field(
        default=None,
        description="Categorical columns whose values have past counts and rates. null: all of "
        "them.",
    )
    missing: Missing = Field(
        default={},
        description="Values that are read as null, by column, such as `{price: [-1]}`.",
    )

    def check_statistics(self) -> Iterator[str]:
        """Yields a line for each column with statistics that is not categorical."""
        for column in self.statistics_of or ():
            if column not in self.categorical:
                yield (
                    f"statistics_of: found {column!r}; allowed: columns of categorical, "
                    f"{list(self.categorical)}"
                )

    def check_several(self) -> Iterator[str]:
        """Yields a line for each column that would be read in two ways."""
        yield from twice_named(self.categorical, self.lists, self.separators)

    @property
    def several(self) -> dict[str, str | None]:
        """Columns with several values, by the separator of their texts; None of lists."""
        return {**dict.fromkeys(self.lists), **self.separators}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        """Categorical columns whose values have statistics."""
        return self.categorical if self.statistics_of is None else self.statistics_of

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns named in braces in the text template."""
        return template_columns(self.text)


def twice_named(
    categorical: Collection[str], lists: Collection[str], separators: Collection[str]
) -> Iterator[str]:
    """Yields a line for each column of one or of several values that another field names, too."""
    for column in sorted({*categorical} & {*lists, *separators} | {*lists} & {*separators}):
        yield f"lists: found {column!r} twice; allowed: in one of categorical, lists, separators"


class Events(Section):
    """The interaction log, and what its columns mean."""

    path: str = Field(description="Parquet file or folder of the log; a path or a URI.")
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
    categorical: tuple[str, ...] = Field(
        default=(), description="Categorical columns that are known when the row happens."
    )
    numeric: tuple[str, ...] = Field(
        default=(), description="Columns of numbers that are known when the row happens."
    )
    missing: Missing = Field(
        default={},
        description='Values that are read as null, by column, such as `{user_id: [""], stars: '
        "[-1]}`.",
    )


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


class Negatives(Section):
    """Sampled negatives: drawn by `prepare`, or held by the log."""

    per_positive: PositiveInt = Field(
        default=4, description="Negatives drawn for every positive; none with `from: log`."
    )
    of: str = Field(description="Binary task whose positives get negatives.")
    source: Literal["popularity", "uniform", "log"] = Field(
        default="uniform",
        alias="from",
        description="Distribution that items are drawn from. log: none are drawn; the log's rows "
        "whose label of that task is 0 were sampled, and nobody saw them.",
    )


class History(Section):
    """The user's earlier items, strictly before the sample."""

    of: str = Field(
        default="any", description="Task whose positives are in the history; any: all rows."
    )
    last: Annotated[int, Field(ge=1, le=512)] = Field(
        default=20, description="Items of the history, at most: the latest ones."
    )


class Scenario(Section):
    """One recommendation surface: its catalogue, log, split, tasks and loss weight (lambda)."""

    items: Items = Field(description="The catalogue.")
    events: Events = Field(description="The interaction log.")
    split: Split = Field(description="Train, valid and test rows.")
    negatives: Annotated[Negatives | None, BeforeValidator(none_word)] = Field(
        default=None, description="Sampled negatives. none: the log holds negatives."
    )
    history: History = Field(default=History(), description="The user's earlier items.")
    tasks: dict[Name, Task] = Field(min_length=1, description="Labels to predict, by name.")
    weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the scenario in the loss, lambda."
    )
    users: Name | None = Field(
        default=None,
        description="Scenarios with the same name here share their users, and the table of `users` "
        "with that name, if there is one. null: users of its own.",
    )
    statistics: Literal["live", "frozen"] = Field(
        default="live",
        description="live counts on through valid and test; frozen counts train rows only.",
    )
    max_unknown_items: Share = Field(
        default=0.01,
        description="Share of rows whose item the catalogue may lack; these rows are dropped.",
    )

    def _parents(self) -> dict[str, str]:
        """Returns the task that a field names, by field."""
        named = {f"tasks.{n}.given": t.given for n, t in self.tasks.items() if t.given}
        if self.history.of != "any":
            named["history.of"] = self.history.of
        if self.negatives:
            named["negatives.of"] = self.negatives.of
        return named

    def check_tasks_exist(self) -> Iterator[str]:
        """Yields a line for each field that names no other task."""
        for field, task in self._parents().items():
            if task not in self.tasks or field == f"tasks.{task}.given":
                yield f"{field}: found {task!r}; allowed: another of {sorted(self.tasks)}"

    def check_parents_are_binary(self) -> Iterator[str]:
        """Yields a line for each field that names a regression or a conditional parent."""
        for field, name in self._parents().items():
            task = self.tasks.get(name)
            if task is None or field == f"tasks.{name}.given":
                continue
            if task.kind != "binary":
                yield f"{field}: found that {name!r} is a regression; allowed: a binary task"
            elif field.startswith("tasks.") and task.given:
                yield f"{field}: found that {name!r} is itself conditional; allowed: another"

    def check_split(self) -> Iterator[str]:
        """Yields a line for a split by time of a log without time."""
        if self.events.time is None and self.split.time:
            yield "split.time: found two cuts without events.time; allowed: column or fractions"

    def check_weights(self) -> Iterator[str]:
        """Yields a line for tasks that all weigh nothing."""
        if sum(t.weight for t in self.tasks.values()) <= 0:
            yield "tasks: found that all task weights are 0; allowed: at least one above 0"

    @property
    def draws_negatives(self) -> bool:
        """Whether `prepare` draws negatives."""
        return self.negatives is not None and self.negatives.source != "log"

    def draws_negatives_of(self, task: str) -> bool:
        """Returns whether `prepare` draws negatives of a task."""
        return self.draws_negatives and self.negatives is not None and self.negatives.of == task

    def label_delay(self, task: str) -> int:
        """Returns the seconds after which a task's label is known.

        A conditional task's label says that its parent was positive, so it is not known before
        the parent's is.
        """
        parent = self.tasks[task].given
        return max(self.tasks[task].delay, self.label_delay(parent) if parent else 0)

    def label_column(self, task: str) -> str:
        """Returns the column of the events that holds the task's label."""
        return self.tasks[task].label or task
