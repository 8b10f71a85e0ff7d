"""The scenarios of the sample world: what their items show, and how labels follow from traits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.data.sample_texts import BRANDS, NEWS, SHOP, VIDEO, Phrases

START = np.datetime64("2025-01-01T00:00:00", "ms")
NEWS_LIFETIME_DAYS = 20
NO_RATING_CHANCE = 0.15


@dataclass(frozen=True)
class Effects:
    """Weights of a label's score: constant, topic match, item quality, user generosity."""

    constant: float
    match: float
    quality: float
    generosity: float


POSITIVE = Effects(constant=-2.2, match=3.4, quality=0.45, generosity=0.35)


FOLLOW_UP = Effects(
    constant=-1.95, match=1.1, quality=0.6, generosity=0.4
)  # buy, like after a click


RATING = Effects(constant=2.4, match=1.8, quality=0.35, generosity=0.3)


RATING_NOISE = 0.6


@dataclass(frozen=True)
class WorldItems:
    """Hidden traits of one scenario's items: topic, shares (items, topics), quality, birth time.

    `group` holds shares of topics that the text does not tell.
    """

    topic: np.ndarray
    second: np.ndarray
    shares: np.ndarray
    group: np.ndarray
    quality: np.ndarray
    published_ms: np.ndarray


@dataclass(frozen=True)
class WorldPairs:
    """Distinct (user, item) pairs, the time of each, and the hidden traits behind its labels.

    `common`: whether the pair's user is the same person in all scenarios.
    """

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray
    match: np.ndarray
    quality: np.ndarray
    generosity: np.ndarray
    common: np.ndarray


@dataclass(frozen=True)
class WorldScenario:
    """What differs between scenarios: phrases, further item columns, labels, item lifetime."""

    phrases: Phrases
    extra_columns: Callable[[np.random.Generator, WorldItems, np.ndarray], dict[str, pa.Array]]
    labels: Callable[[np.random.Generator, WorldPairs], dict[str, pa.Array]]
    lifetime_days: int | None = None


def _score(pairs: WorldPairs, effects: Effects) -> np.ndarray:
    return (
        effects.constant
        + effects.match * pairs.match
        + effects.quality * pairs.quality
        + effects.generosity * pairs.generosity
    )


def _binary(rng: np.random.Generator, pairs: WorldPairs, effects: Effects) -> np.ndarray:
    return rng.random(len(pairs.user)) < 1 / (1 + np.exp(-_score(pairs, effects)))


def _label(values: np.ndarray, *, missing: np.ndarray | None = None) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=missing)


def _shop_labels(rng: np.random.Generator, pairs: WorldPairs) -> dict[str, pa.Array]:
    click, buy = _binary(rng, pairs, POSITIVE), _binary(rng, pairs, FOLLOW_UP)
    return {"click": _label(click), "buy": _label(buy, missing=~click)}


def _news_labels(rng: np.random.Generator, pairs: WorldPairs) -> dict[str, pa.Array]:
    click, like = _binary(rng, pairs, POSITIVE), _binary(rng, pairs, FOLLOW_UP)
    return {"click": _label(click), "like": _label(like, missing=~click)}


def _video_labels(rng: np.random.Generator, pairs: WorldPairs) -> dict[str, pa.Array]:
    like = _binary(rng, pairs, POSITIVE)
    noise = RATING_NOISE * rng.standard_normal(len(like))
    stars = np.round(2 * (_score(pairs, RATING) + noise)) / 2
    not_rated = rng.random(len(like)) < NO_RATING_CHANCE
    return {"like": _label(like), "rating": _label(stars.clip(1, 5), missing=not_rated)}


def _shop_columns(
    rng: np.random.Generator, items: WorldItems, kind: np.ndarray
) -> dict[str, pa.Array]:
    brand = np.array(BRANDS)[rng.integers(0, len(BRANDS), size=len(kind))]
    price = np.round(np.exp(3 + 0.8 * rng.standard_normal(len(kind))), 2)
    return {"brand": pa.array(brand.tolist()), "price": pa.array(price.astype(np.float32))}


def _news_columns(
    rng: np.random.Generator, items: WorldItems, kind: np.ndarray
) -> dict[str, pa.Array]:
    return {"published": timestamps(items.published_ms)}


def _video_columns(
    rng: np.random.Generator, items: WorldItems, kind: np.ndarray
) -> dict[str, pa.Array]:
    year = rng.integers(1975, 2025, size=len(kind))
    return {"genre": pa.array(kind.tolist()), "year": pa.array(year.astype(np.int32))}


SCENARIOS: dict[str, WorldScenario] = {
    "shop": WorldScenario(SHOP, _shop_columns, _shop_labels),
    "news": WorldScenario(NEWS, _news_columns, _news_labels, NEWS_LIFETIME_DAYS),
    "video": WorldScenario(VIDEO, _video_columns, _video_labels),
}


def timestamps(since_start_ms: np.ndarray) -> pa.Array:
    """Returns times that lie so many milliseconds after the start of the world."""
    return pa.array(START + since_start_ms.astype("timedelta64[ms]"), pa.timestamp("ms"))
