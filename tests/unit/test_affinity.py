"""Which scenarios conflict or help each other at the shared layers, as a search tells it."""

import numpy as np
import pytest

from mtrec_ray.search.affinity import advice_of, affinities, as_json, as_matrix
from mtrec_ray.search.records import Trial
from mtrec_ray.stages.tuning.trial import mean_cosines

NAMES = ("shop", "video", "news")


def trial(name: str, **cosines: float) -> Trial:
    """A finished trial with cosines by `first_second`."""
    told = {pair.replace("_", "/"): value for pair, value in cosines.items()}
    return Trial(name, {}, {}, result={"gradient_cosine": told})


def trials(seed: int = 0, number: int = 6) -> list[Trial]:
    """Shop and video conflict, video and news help each other, shop and news do neither."""
    noise = np.random.default_rng(seed).normal(0, 0.03, (number, 3))
    return [
        trial(f"t{i}", shop_video=-0.2 + a, shop_news=b + 0.1 * (-1) ** i, video_news=0.3 + c)
        for i, (a, b, c) in enumerate(noise)
    ]


def test_means_and_intervals():
    """The mean over trials, and twice its standard error."""
    found = affinities(trials())["shop/video"]
    values = [t.result["gradient_cosine"]["shop/video"] for t in trials()]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.mean == pytest.approx(2 * np.std(values, ddof=1) / 6**0.5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_the_advice_names_sure_pairs_alone():
    """A conflict and a help, each with its interval; nothing of a pair that is neither."""
    first, second = advice_of(affinities(trials()))
    assert first.startswith("scenarios whose gradients conflict at the shared layers: shop and vid")
    assert second.startswith("scenarios that help each other there: video and news (+0.")
    assert "shop and news" not in first + second


def test_few_trials_say_nothing():
    """Two trials are no sample; trials that were ended tell no cosines."""
    assert affinities(trials(number=2)) == {}
    ended = [Trial(f"t{i}", {}, {}) for i in range(5)]
    assert affinities([*ended, *trials(number=2)]) == {}
    assert advice_of({}) == []
    unsure = [trial(f"t{i}", shop_video=0.1 * (-1) ** i) for i in range(4)]
    assert advice_of(affinities(unsure)) == [
        "no two scenarios surely conflict or help each other at the shared layers"
    ]


def test_the_table_is_symmetric():
    """A row and a column for each scenario; nothing on the diagonal."""
    found = affinities(trials())
    rows = as_matrix(found, NAMES)
    assert [row["scenario"] for row in rows] == list(NAMES)
    assert all(row[row["scenario"]] == "" for row in rows)
    assert rows[0]["video"] == rows[1]["shop"] == f"{found['shop/video'].mean:+.2f}"
    assert as_json(found)["shop/video"]["mean"] == found["shop/video"].mean


def test_cosines_of_a_trial_are_means_over_validations():
    """Of a curve the mean of each pair; of none nothing."""
    curve = [{"gradient_cosine": {"a/b": value}} for value in (0.1, 0.3)]
    assert mean_cosines(curve) == {"a/b": pytest.approx(0.2)}
    assert mean_cosines([]) == {}
