"""A scenario of a project file: its catalogue, its log, its split and its weight."""

import math
import re
import string
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from mtrec_ray.project.base import Name, Section, Share, none_word, shorten
from mtrec_ray.project.history import MOST_OUTCOMES, History
from mtrec_ray.project.task import Column, Columns, Label, Task

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


def check_separators(separators: dict[str, str]) -> dict[str, str]:
    """Returns separators by column, refused where one of them is empty."""
    for column, separator in separators.items():
        if not separator:
            raise ValueError(f"{column}: found ''; allowed: a separator, such as '|'")
    return separators


# Separators of texts that hold several values, by column.
Separators = Annotated[dict[str, str], AfterValidator(check_separators)]


def is_empty(value: Collection[object]) -> bool:
    """Returns whether a field says nothing: what was made before there was such a field stays."""
    return not value


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


def twice_named(
    categorical: Collection[str], lists: Collection[str], separators: Collection[str]
) -> Iterator[str]:
    """Yields a line for each column of one or of several values that another field names, too."""
    for column in sorted({*categorical} & {*lists, *separators} | {*lists} & {*separators}):
        yield f"lists: found {column!r} twice; allowed: in one of categorical, lists, separators"


def shared_vectors(
    vectors: Collection[str], others: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Yields a line for each column of vectors that another field, of `others`, names, too."""
    for column in vectors:
        fields = [field for field, columns in others.items() if column in columns]
        if fields:
            also = " and ".join(fields)
            yield f"vectors: found {column!r}, which {also} names, too; allowed: in one of them"


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

    def _parents(self) -> list[tuple[str, str]]:
        """Returns the fields that name a task, with the task."""
        named = [(f"tasks.{n}.given", t.given) for n, t in self.tasks.items() if t.given]
        named += [("history.of", task) for task in self.history.tasks]
        if self.negatives:
            named.append(("negatives.of", self.negatives.of))
        return named

    def check_tasks_exist(self) -> Iterator[str]:
        """Yields a line for each field that names no other task."""
        for field, task in self._parents():
            if task not in self.tasks or field == f"tasks.{task}.given":
                yield f"{field}: found {task!r}; allowed: another of {sorted(self.tasks)}"

    def check_parents_are_binary(self) -> Iterator[str]:
        """Yields a line for each field that names a task of another kind than binary."""
        for field, name in self._parents():
            task = self.tasks.get(name)
            if task is None or field == f"tasks.{name}.given":
                continue
            if task.kind != "binary":
                yield f"{field}: found that {name!r} is a {task.kind}; allowed: a binary task"

    def check_chains(self) -> Iterator[str]:
        """Yields a line for each cycle of tasks that are conditional on each other."""
        seen: set[str] = set()
        for name in self.tasks:
            chain = self.chain(name)
            last = self.tasks.get(chain[-1])
            if last and last.given == name != chain[-1] and name not in seen:
                seen |= set(chain)
                cycle = " given ".join([*chain, name])
                yield f"tasks.{name}.given: found a cycle, {cycle}; allowed: a chain that ends"

    def check_outcomes(self) -> Iterator[str]:
        """Yields a line for more tasks than the outcomes of a history have room for."""
        if self.history.outcomes and len(self.tasks) > MOST_OUTCOMES:
            yield (
                f"history.outcomes: found {len(self.tasks)} tasks; allowed: at most "
                f"{MOST_OUTCOMES} beside it"
            )
        drawn_before = self.negatives and self.negatives.source == "log"
        if self.history.outcomes and drawn_before and not self.history.tasks:
            yield (
                "history.outcomes: found it with all rows in the history, of which nobody saw the "
                "negatives (from: log); allowed: history.of with tasks beside it"
            )

    def check_positives(self) -> Iterator[str]:
        """Yields a line for each task of which every row is a positive and nothing is drawn."""
        for name, task in self.tasks.items():
            if task.label.always and not self.draws_negatives_of(name):
                yield (
                    f"tasks.{name}.label: found 1 without sampled negatives; allowed: "
                    f"negatives: {{of: {name}}} beside it, or a column with two values or more"
                )

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
        return max(self.tasks[name].delay for name in self.chain(task))

    def chain(self, task: str) -> list[str]:
        """Returns a task and all tasks above it, of which each is the parent of the one before.

        A cycle is cut where it begins again.
        """
        chain = [task]
        while (above := self.tasks.get(chain[-1])) and above.given and above.given not in chain:
            chain.append(above.given)
        return chain

    def label(self, task: str) -> Label:
        """Returns where a task's label comes from, with its column, if it has one."""
        label = self.tasks[task].label
        named = label.column or label.always
        return label if named else label.model_copy(update={"column": task})
