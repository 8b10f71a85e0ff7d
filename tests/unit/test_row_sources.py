"""What sources say of rows: as of each row's own moment, whatever rows are asked for together."""

from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.candidates.crowd import Crowd
from mtrec_ray.candidates.sources import HISTORY, Taken, Texts, fit_sources
from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.interactions import Moments
from mtrec_ray.stages import row_sources
from mtrec_ray.stages.row_sources import scores_of_rows
from tests.unit.test_sources import NUM_ITEMS, TRAIN_END, log


def sources_of(crowd):
    """Sources of `shop`, fitted on train."""
    rng = np.random.default_rng(1)
    texts = Texts({n: rng.normal(size=(NUM_ITEMS, 6)).astype("f4") for n in crowd.scenarios})
    published = np.arange(NUM_ITEMS) * 10 * DAY_MS
    return fit_sources(crowd, "shop", 1, texts, published, Taken.fit(crowd, 1))


def without_time(rows):
    """A log that has no times."""
    return replace(rows, time=np.zeros_like(rows.time))


def rows_of_test(rng, num=80):
    """Rows of nine persons after train, some at one moment."""
    time = TRAIN_END + DAY_MS * rng.integers(1, 50, num)
    item = rng.integers(0, NUM_ITEMS, num).astype(np.int32)
    return {"person": rng.integers(0, 9, num), "item": item, "time": time}


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("at_once", [1, 5, 1024])
def test_a_row_is_told_what_it_is_told_alone(monkeypatch, timed, at_once):
    """Rows in any order, in blocks of any size, have the scores of each asked by itself."""
    monkeypatch.setattr(row_sources, "ASK_AT_ONCE", at_once)
    logs = {"shop": log(0), "news": log(1)}
    logs = logs if timed else {name: without_time(rows) for name, rows in logs.items()}
    sources = sources_of(Crowd(logs))
    rows = rows_of_test(np.random.default_rng(3))
    found = scores_of_rows(sources, rows, timed=timed)
    assert {"popularity", "item_knn", "ease", "text_mean", "crowd_ease", "crowd_text"} <= set(found)
    for row in range(0, 80, 7):
        one = {k: v[row : row + 1] for k, v in rows.items()}
        moments = Moments(one["person"], one["time"] if timed else None, 1)
        alone = sources.scores(sources.crowd.ask("shop", moments, HISTORY))
        for name, scores in alone.items():
            wanted = scores.at(np.zeros(NUM_ITEMS, int), np.arange(NUM_ITEMS))[one["item"]]
            assert found[name][row] == pytest.approx(wanted[0], abs=1e-5), name


@pytest.mark.parametrize("timed", [True, False])
def test_no_later_row_is_known(timed):
    """What users take at or after a row's moment (without time: after train) changes nothing."""
    before, after = {"shop": log(0), "news": log(1)}, {}
    for name, rows in before.items():
        later = rows.time >= (120 * DAY_MS if timed else TRAIN_END)
        item = np.where(later, (rows.item + 1) % NUM_ITEMS, rows.item)
        after[name] = replace(rows, item=item, taken=rows.taken ^ later)
        if not timed:
            before[name], after[name] = without_time(rows), without_time(after[name])
    asked = rows_of_test(np.random.default_rng(3))
    asked["time"] = np.full(80, 120 * DAY_MS)
    found, other = (
        scores_of_rows(sources_of(Crowd(rows)), asked, timed=timed) for rows in (before, after)
    )
    for name, values in found.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)
