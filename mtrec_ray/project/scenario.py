"""A scenario of a project file: its catalogue, its log, its split and its weight."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt

from mtrec_ray.project.base import Name, Section, Share, none_word
from mtrec_ray.project.events import Events
from mtrec_ray.project.history import MOST_OUTCOMES, History
from mtrec_ray.project.items import Items
from mtrec_ray.project.split import Split
from mtrec_ray.project.task import Label, Task


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
