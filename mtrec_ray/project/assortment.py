"""Sections of a project file that shape the final list: rules on items, and exploration."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, NonNegativeInt, PositiveFloat

from mtrec_ray.project.base import Section, Share


def read_value(value: object) -> object:
    """Returns a value of a column as it stands in the file: text, a number, true or false."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("allowed: text, a number, true or false")
    return value


Value = Annotated[bool | int | float | str, BeforeValidator(read_value)]


class Filter(Section):
    """A rule on a column of the catalogue; an item that breaks it is not recommended."""

    column: str = Field(
        description="Column of the catalogue file. An item passes all rules of its scenario's list."
    )
    equals: Value | None = Field(default=None, description="The only value that passes.")
    one_of: tuple[Value, ...] | None = Field(default=None, description="Values that pass.")
    none_of: tuple[Value, ...] | None = Field(
        default=None, description="Values that do not pass; an item without a value passes."
    )
    at_least: FiniteFloat | None = Field(default=None, description="The least number that passes.")
    at_most: FiniteFloat | None = Field(default=None, description="The largest that passes.")

    @property
    def values(self) -> dict[str, tuple[bool | int | float | str, ...]]:
        """The values of the rule, by its field; bounds have one each."""
        one = {k: getattr(self, k) for k in ("equals", "at_least", "at_most")}
        several = {k: getattr(self, k) for k in ("one_of", "none_of")}
        return {k: (v,) for k, v in one.items() if v is not None} | {
            k: v for k, v in several.items() if v is not None
        }

    def check_one_way(self) -> Iterator[str]:
        """Yields a line unless there is one rule, or bounds, and each list has a value."""
        given = [key for key in self.values if key != "at_most"] or list(self.values)
        if len(given) != 1 or (
            "at_most" in self.values and given[0] not in ("at_least", "at_most")
        ):
            yield (
                f"found {sorted(self.values) or 'none'}; allowed: one of equals, one_of, none_of, "
                "or at_least and at_most"
            )
        for field, values in self.values.items():
            if not values:
                yield f"{field}: found []; allowed: at least one value"

    def check_order(self) -> Iterator[str]:
        """Yields a line for bounds that are not in order."""
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            yield f"at_least: found {self.at_least:g}; allowed: at most at_most, {self.at_most:g}"


class Explore(Section):
    """Chance in the final list, with the probability of each choice."""

    way: Literal["none", "epsilon", "softmax"] = Field(
        default="none",
        description="epsilon: a place takes any candidate with probability `epsilon`, else the "
        "best; softmax: each by its share of exp(score / temperature) (Plackett-Luce).",
    )
    epsilon: Share = Field(
        default=0.1, description="Probability with which a place takes any of the candidates."
    )
    temperature: PositiveFloat = Field(
        default=0.1,
        description="Of softmax, where the user's best candidate has score 1 and the last 0.",
    )
    seed: NonNegativeInt = Field(
        default=0, description="Seed of the choices; with the user's id it makes them repeatable."
    )
