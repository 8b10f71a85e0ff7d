"""What the page asks and is told beside lists and scores, as JSON."""

from typing import Any, Literal

from pydantic import Field

from mtrec_ray.stages.serving.requests import (
    Answer,
    Asker,
    Message,
    Ranked,
    RequestError,
    Text,
    Value,
    Weight,
)

ListKind = Literal["joint", "finetuned", "zero-shot", "popular"]


class NotInstalledError(RequestError):
    """A library that an answer needs is not installed."""

    status = 501


class UsersAnswer(Message):
    """Some users of a scenario, those with long histories first."""

    users: list[str]


class MetItem(Message):
    """An item that a user met; without its text it is one of a request's `history`."""

    item: str
    text: str | None = Field(description="As the model reads it; null: no catalogue file.")
    seconds_ago: float | None = Field(description="null in scenarios whose rows have no time.")
    labels: dict[str, Any] = Field(description="Labels by task, as far as they are known.")


class UserAnswer(Message):
    """What is known of a user in a scenario.

    As the `history` of a request the items stand for the user, but for what the model learned of
    him by his id and what he did in other scenarios.
    """

    user: str
    new_user: bool = Field(description="Whether training has no row of the user.")
    profile: dict[str, Value] = Field(
        description="His row of the table of users, where there is one, as a request has it."
    )
    rows: int = Field(description="Rows of the user; `history` has the latest of them.")
    history: list[MetItem] = Field(description="What the user met, the latest last.")


class ExplainRequest(Asker):
    """Why an item has its score."""

    item: Text = Field(description="Id of an item of the catalogue.")
    by: dict[Text, Weight] | None = Field(
        default=None, description="Weights of the tasks. null: those that the scenario ranks by."
    )
    words: bool = Field(default=True, description="Whether words are explained, too.")


class HistoryPart(Message):
    """What an item of the history does to the score."""

    place: int = Field(description="In the history; 0 is the latest.")
    item: str
    text: str | None
    effect: float = Field(description="The score less that without the item.")


class ElsewherePart(Message):
    """What an item that the user took in another scenario does to the score."""

    place: int = Field(description="Among these items; 0 is the latest.")
    scenario: str
    item: str | None = Field(description="null: the scenario is not served.")
    text: str | None
    effect: float = Field(description="The score less that without the item.")


class ColumnPart(Message):
    """What a column of the catalogue, or of the table of users, does to the score."""

    column: str | None = Field(description="null: all of them together.")
    effect: float = Field(description="The score less that with null there.")


class StatisticPart(Message):
    """What a group of numbers does to the score."""

    group: str
    columns: int
    effect: float = Field(description="The score less that of a group without a past.")


class WordPart(Message):
    """What a word of the item's text does to the score."""

    word: str
    effect: float = Field(description="Its share, by integrated gradients.")


class ExplainAnswer(Answer):
    """Why an item has its score, as the network computes it."""

    item: str
    text: str | None
    score: float = Field(description="The weighted sum of the network's predictions.")
    blend: dict[str, float] = Field(description="The weights of the tasks.")
    predictions: dict[str, float] = Field(description="Of the network alone, by task.")
    history: list[HistoryPart]
    elsewhere: list[ElsewherePart] = Field(description="Of the latest in other scenarios.")
    profile: list[ColumnPart] = Field(
        description="Of the user's profile; `text` are all columns of its text. Empty without one."
    )
    columns: list[ColumnPart] = Field(description="Of the item in the catalogue.")
    statistics: list[StatisticPart]
    words: list[WordPart] | None = Field(description="null: not asked for.")


class CompareRequest(Asker):
    """The lists of all models for a user, and what is popular."""

    k: int | None = Field(
        default=None, ge=1, description="Items of a list. null: as the project says."
    )
    by: dict[Text, Weight] | None = Field(
        default=None, description="Weights of the tasks. null: those that the scenario ranks by."
    )


class ListOf(Message):
    """A list, and what ordered it."""

    kind: ListKind
    served: bool = Field(description="Whether this model answers requests.")
    items: list[Ranked]


class CompareAnswer(Answer):
    """Lists side by side: each model's by its predictions, and what most users took."""

    lists: list[ListOf]
