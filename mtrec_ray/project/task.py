"""A task of a scenario: its label, how the label follows from the log, and its weight."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
)

from mtrec_ray.project.assortment import Value
from mtrec_ray.project.base import Duration, Section, is_none, shorten
from mtrec_ray.project.classes import (
    ClassList,
    ClassWeights,
    Gains,
    by_class,
    check_keys,
    own_gains,
)


def check_column(name: str) -> str:
    """Returns the name of a column that may be left out; an empty one would be taken for none."""
    if not name:
        raise ValueError("allowed: the name of a column, or null")
    return name


def check_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names of columns, refused where one stands twice."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands twice; allowed: each column once")
    return names


Column = Annotated[str, AfterValidator(check_column)]
Columns = Annotated[tuple[str, ...], AfterValidator(check_columns)]


def read_values(value: object) -> object:
    """Returns values as they stand in the file; one alone stands for a list of it."""
    allowed = "allowed: a value, or a list of one or more"
    if isinstance(value, dict):  # the line of a mapping is that of a section, without its value
        raise ValueError(f"found {shorten(value)}; {allowed}")
    if isinstance(value, list | tuple) and not value:
        raise ValueError(allowed)
    return value if value is None or isinstance(value, list | tuple) else (value,)


class Label(Section):
    """Where a task's label comes from. A column alone stands for `{column: NAME}`."""

    column: Column | None = Field(
        default=None,
        description="Column of the log with the label, or from which it follows; `label: NAME` for "
        "short. null: the task's name.",
    )
    at_least: FiniteFloat | None = Field(
        default=None,
        description="The label is 1 from this number of the column on, 0 below it, and unknown "
        "where the column has none. null: no such bound.",
    )
    equals: Annotated[tuple[Value, ...] | None, BeforeValidator(read_values)] = Field(
        default=None,
        description="The label is 1 where the column has this value or one of these, else 0, and "
        "unknown where the column has none. null: no such value.",
    )
    always: Literal[1] | None = Field(
        default=None,
        description="Every row of the log is a positive, and negatives are drawn; `label: 1` for "
        "short. null: a column says it.",
    )

    @classmethod
    def read(cls, tree: object) -> object:
        """Returns the fields for the name of a column, for 1, or for null."""
        if tree is None:
            return {}
        if isinstance(tree, str):
            return {"column": check_column(tree)}
        if type(tree) is int and tree == 1:
            return {"always": 1}
        if not isinstance(tree, dict | Label):
            raise ValueError(
                "allowed: a column, 1, {column: NAME, at_least: NUMBER} or {column: NAME, equals: "
                "VALUE}"
            )
        return tree

    @property
    def ways(self) -> list[str]:
        """The fields that say how the label follows from its column; none for a plain column."""
        return [k for k in ("at_least", "equals", "always") if getattr(self, k) is not None]

    def check_one_way(self) -> Iterator[str]:
        """Yields a line for a label that follows in two ways, or from a column and from none."""
        if len(self.ways) > 1:
            yield f"found {' and '.join(self.ways)}; allowed: one of at_least, equals, always"
        elif self.always and self.column:
            yield f"always: found 1 beside the column {self.column!r}; allowed: one of them"


# Fields that give a task's loss a shape, and the kinds of task that may have them.
SHAPES = {
    "positive_weight": ("binary",), "label_smoothing": ("binary", "multiclass"),
    "focal": ("binary",), "huber": ("regression",), "class_weights": ("multiclass",),
}  # fmt: skip


class Task(Section):
    """A label to predict."""

    kind: Literal["binary", "regression", "count", "duration", "multiclass"] = Field(
        description="Labels are 0 or 1 (binary), numbers (regression), whole numbers >= 0 (count: "
        "Poisson), numbers >= 0 such as seconds (duration: log-normal), or one of `classes` "
        "(multiclass: softmax); null is unknown."
    )
    label: Label = Field(default=Label(), description="Where the label comes from.")
    classes: ClassList | None = Field(
        default=None,
        exclude_if=is_none,
        description="Values of a multiclass task's column, 2 to 100, in their order. null: the "
        "task is of another kind.",
    )
    gains: Gains | None = Field(
        default=None,
        exclude_if=is_none,
        description="Number of each class (others: 0), or a class alone (1). Its expectation is "
        "the task's one number, by which lists rank. null: classes that are numbers themselves, or "
        "else their places, from 0.",
    )
    given: str | None = Field(
        default=None,
        description="Binary task without whose positive this task is undefined; it may have a "
        "parent of its own (purchase given cart given view). null: none.",
    )
    space: Literal["masked", "entire"] = Field(
        default="masked",
        description="masked learns from the rows where the parent is positive, entire from all: "
        "p(task | parent) times the probabilities of all tasks above it (1804.07931).",
    )
    delay: Duration = Field(
        default=0,
        description="Time from a row until its label is known and enters statistics; a plain "
        "number is seconds.",
    )
    weight: NonNegativeFloat = Field(
        default=1.0, description="Weight of the task among the scenario's tasks."
    )

    positive_weight: PositiveFloat = Field(
        default=1.0,
        description="Weight of the positives of a binary task in its loss: predictions are above "
        "the rates of the log where it is above 1.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of a label of a binary or multiclass task that is spread evenly over "
        "its classes in the loss (1512.00567).",
    )
    focal: NonNegativeFloat = Field(
        default=0.0,
        description="Gamma of the focal loss of a binary task, (1 - p)^gamma on rows whose label "
        "has probability p (1708.02002). 0: log loss.",
    )
    huber: PositiveFloat | None = Field(
        default=None,
        description="Error, in units of the label of a regression, from which on the loss grows as "
        "a line. null: squares alone.",
    )
    class_weights: ClassWeights | None = Field(
        default=None,
        exclude_if=is_none,
        description="Weight of each class of a multiclass task in its loss (others: 1); "
        "probabilities are no rates with them. null: all 1.",
    )

    @property
    def shape(self) -> dict[str, object]:
        """The fields of the loss that are not as its kind has them, by name."""
        fields = {name: getattr(self, name) for name in SHAPES}
        return {k: v for k, v in fields.items() if v != type(self).model_fields[k].default}

    def check_shape(self) -> Iterator[str]:
        """Yields a line for each shape of the loss that a task of this kind cannot have."""
        for name, value in self.shape.items():
            kinds = SHAPES[name]
            if self.kind not in kinds:
                found = f"{value:g}" if isinstance(value, float) else shorten(value)
                allowed = " or ".join(kinds)
                yield f"{name}: found {found} in a {self.kind} task; allowed: a {allowed} one"

    def check_space(self) -> Iterator[str]:
        """Yields a line for an entire space without a parent."""
        if self.space == "entire" and (self.given is None or self.kind != "binary"):
            yield "space: found entire; allowed: masked, or a binary task with given (1804.07931)"

    def check_label(self) -> Iterator[str]:
        """Yields a line for a label of 0 and 1 that follows from a column, of another kind."""
        if self.label.ways and self.kind != "binary":
            way = self.label.ways[0]
            yield f"label.{way}: found it in a {self.kind}; allowed: a binary task, or the column"

    def check_classes(self) -> Iterator[str]:
        """Yields a line for a multiclass task without classes, and for classes of another kind."""
        if self.kind == "multiclass" and self.classes is None:
            yield "classes: found none in a multiclass task; allowed: a list of 2 values or more"
        for name, value in (("classes", self.classes), ("gains", self.gains)):
            if value is not None and self.kind != "multiclass":
                found = f"found {shorten(value)} in a {self.kind} task"
                yield f"{name}: {found}; allowed: a multiclass one"

    def check_numbers_of_classes(self) -> Iterator[str]:
        """Yields a line for each number of a value that is no class, and for gains all alike."""
        if self.kind != "multiclass" or self.classes is None:
            return
        wrong = list(check_keys("gains", self.gains, self.classes))
        yield from wrong
        yield from check_keys("class_weights", self.class_weights, self.classes)
        if not wrong and len(set(self.class_gains)) == 1:
            found = f"found {self.class_gains[0]:g} of every class"
            yield f"gains: {found}; allowed: two numbers or more, by which lists can rank"

    @property
    def class_gains(self) -> tuple[float, ...]:
        """The number of each class, in their order; empty for another kind."""
        classes = self.classes or ()
        default = [0.0] * len(classes) if self.gains else own_gains(classes)
        return by_class(self.gains, classes, default)

    @property
    def weights_of_classes(self) -> tuple[float, ...]:
        """The weight of each class in the loss, in their order."""
        classes = self.classes or ()
        return by_class(self.class_weights, classes, [1.0] * len(classes))
