"""What clients ask and what they are told, as JSON."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
)

from mtrec_ray.project.assortment import Filter

Text = Annotated[str, Field(min_length=1, max_length=256)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Plain = WithJsonSchema({"type": ["number", "string", "boolean"]})
Labels = dict[Text, Annotated[Any, Plain]]  # as the tasks have them
Value = JsonValue  # of a column, in the column's own type
MOST_MS = 4_102_444_800_000  # the year 2100


class RequestError(ValueError):
    """A request that cannot be answered: its mistakes, one line each."""

    status = 422

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)  # pickle calls the class with these arguments
        self.problems = list(problems)

    def __str__(self) -> str:
        """Returns one line for each mistake."""
        return "\n".join(self.problems)


class UnknownNameError(RequestError):
    """A scenario or a version that is not there."""

    status = 404


class ConflictError(RequestError):
    """A change that does not fit what is there now."""

    status = 409


class Message(BaseModel):
    """A part of a request or of an answer; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_met(value: object) -> object:
    """Returns an item of a history as a mapping: an id may stand for itself."""
    return {"item": value} if isinstance(value, str) else value


class Met(Message):
    """An item that a user met before he asks."""

    item: Text = Field(description="Id of an item of the catalogue.")
    seconds_ago: float | None = Field(
        default=None, ge=0, le=1e10, allow_inf_nan=False,
        description="How long ago; null: a second before the one above it.",
    )  # fmt: skip
    labels: Labels = Field(
        default={}, description="Labels by task. Empty: a positive of the tasks of histories."
    )


History = list[Annotated[Met, BeforeValidator(read_met)]]


class Asker(Message):
    """Who asks: a user whose state is stored, or a history and a profile of the request."""

    user: Text | None = Field(
        default=None, description="Id of a user. null: `history` says what he did."
    )
    history: History | None = Field(
        default=None, description="What somebody met, the latest last; ids, or mappings."
    )
    profile: dict[Text, Value] | None = Field(
        default=None, min_length=1,
        description="Columns of the table of users. Of a stored user they win over his row's.",
    )  # fmt: skip


class RecommendRequest(Asker):
    """The best items of a scenario for a user."""

    k: int | None = Field(
        default=None, ge=1, description="Items of the list. null: as the project says."
    )
    task: Text | None = Field(
        default=None, description="Orders by the predictions of this task. null: by the list model."
    )
    by: dict[Text, Weight] | None = Field(
        default=None, description="Orders by the weighted sum of the predictions of these tasks."
    )
    filters: list[Filter] = Field(
        default=[], description="Rules on columns of the catalogue, as `recommend.filters`."
    )
    exclude_seen: bool | None = Field(
        default=None, description="Leaves out what the user met. null: as the project says."
    )
    texts: bool = Field(default=False, description="Tells the texts of the items, too.")


class NewItem(Message):
    """An item that the catalogue may lack: its columns, as in the catalogue file."""

    item: Text = Field(description="Id; one of the catalogue is scored as the catalogue has it.")
    columns: dict[Text, Value] = Field(
        default={}, description="Columns that the text and the numbers of items are made of."
    )


def read_item(value: object) -> object:
    """Returns an item to score as a mapping: an id may stand for itself."""
    return {"item": value} if isinstance(value, str) else value


class ScoreRequest(Asker):
    """Predictions of items for a user."""

    items: list[Annotated[NewItem, BeforeValidator(read_item)]] = Field(
        min_length=1, description="Items to score; ids, or mappings for those that are new."
    )


class EventRequest(Message):
    """Something that a user did."""

    id: Text = Field(description="Of the event: the same id again adds labels to it.")
    user: Text = Field(description="Id of the user.")
    item: Text = Field(description="Id of an item of the catalogue.")
    time: int | None = Field(
        default=None, ge=0, le=MOST_MS,
        description="When, in ms since 1970. null in scenarios whose rows have no time.",
    )  # fmt: skip
    labels: Labels = Field(default={}, description="Labels by task, as far as they are known.")


class EventsRequest(Message):
    """What users did, in any order."""

    events: list[EventRequest] = Field(min_length=1, description="Events.")


class Scored(Message):
    """An item with its predictions."""

    item: str
    predictions: dict[str, float] = Field(description="By task, in the units of its label.")
    probabilities: dict[str, dict[str, float]] = Field(
        default={}, description="By multiclass task: the probability of each class."
    )
    new: bool = Field(description="Whether training has no row of the item.")


class Ranked(Scored):
    """An item of a list."""

    rank: int = Field(description="From 1 on.")
    score: float = Field(description="By which the list is ordered.")
    propensity: float | None = Field(
        default=None, description="Probability of the item at its place; null without chance."
    )
    text: str | None = Field(
        default=None, description="As the model reads it, with `texts`; null: no catalogue file."
    )


class Answer(Message):
    """What is told of who answered."""

    model: Literal["joint", "finetuned", "zero-shot"] = Field(description="Which model answered.")
    version: str = Field(description="Which version of the models answered.")
    new_user: bool = Field(description="Whether training has no row of the user.")
    new_values: dict[str, list[str]] = Field(
        default={}, description="Values of the request's profile that training does not know."
    )
    seconds: float = Field(default=0.0, description="From the request to the answer.")


class RecommendAnswer(Answer):
    """A list of a user."""

    ordered_by: Literal["list model", "predictions"]
    items: list[Ranked]


class ScoreAnswer(Answer):
    """Predictions of items for a user, in the order of the request."""

    items: list[Scored]


class EventsAnswer(Message):
    """Ids of events that are stored durably."""

    stored: list[str]


class ModelFacts(Message):
    """The model of a scenario in a version."""

    scenario: str
    model: Literal["joint", "finetuned", "zero-shot"]
    fingerprint: str = Field(description="Of the weights and of the prepared data.")
    tasks: dict[str, str] = Field(description="Kinds by task.")
    lists: bool = Field(description="Whether it recommends, or scores alone.")
    items: int


class VersionFacts(Message):
    """A version of all scenarios' models."""

    version: str
    run: str
    share: float = Field(description="Share of users whom it answers.")
    state: Literal["loading", "ready", "failed"]
    problems: list[str] = []
    scenarios: list[ModelFacts] = []


class ModelsAnswer(Message):
    """All versions that are loaded."""

    versions: list[VersionFacts]


class Problems(Message):
    """Why a request was not answered, one line for each mistake."""

    errors: list[str]
