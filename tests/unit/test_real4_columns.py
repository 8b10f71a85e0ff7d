"""The columns of real4 equal those of the plain formula, which asks one row after another.

The reference below is the definition without sorted codes, blocks of questions and shared
searches: for each row, the rows of its key that lie before it.
"""

from pathlib import Path

import numpy as np
import pytest

from mtrec_ray.data.columns import DAY_MS
from mtrec_ray.data.preparing import inputs, past, statistics
from mtrec_ray.data.preparing.scan import read_canonical, source_of
from mtrec_ray.data.preparing.statistics import SMOOTHING, WINDOWS_MS, KeyedRows
from mtrec_ray.project.load import load_project

TOP = Path(__file__).parents[2]
ROOT = TOP.parent / "shared" / "data" / "real4"
SHOWN, PRIOR = 400, 0.3
pytestmark = pytest.mark.skipif(not ROOT.exists(), reason=f"real4 is not in {ROOT}")


@pytest.fixture(scope="module", params=["shop", "video", "news"])
def log(request):
    """A row group of a log with time: users, items, times and labels of its first two tasks."""
    project = load_project(TOP / "jobs" / "real4.yaml", [f"root={ROOT}"])
    name = request.param
    source = source_of(project, name, inputs.read_items(project, name))
    path = project.path(project.scenarios[name].events.path)
    table, _ = read_canonical(inputs.fragments(name, path)[0], source)
    labels = np.stack(table.column("labels").to_numpy())[:, :2]
    columns = (table.column(c).to_numpy() for c in ("user", "item", "time"))
    return (*columns, labels)


def plain(key, time, labels, i, delays):
    """The statistics of row i."""
    past = np.flatnonzero((key == key[i]) & (time < time[i]))
    found = [np.log1p(len(past))]
    found += [np.log1p((time[past] >= time[i] - w).sum()) for w in WINDOWS_MS.values()]
    for moment in (time[past].min(initial=2**62), time[past].max(initial=-(2**62))):
        found.append(np.log1p((time[i] - moment) / 1000) if len(past) else np.nan)
    for label, delay in zip(labels.T, delays, strict=True):
        until = time[i] - delay
        for begin in (None, *WINDOWS_MS.values()):
            rows = (key == key[i]) & (time < until)
            rows &= True if begin is None else time >= until - begin
            known = label[rows & np.isfinite(label)].astype(np.float64)
            rate = (known.sum() + SMOOTHING * PRIOR) / (len(known) + SMOOTHING)
            found += [np.log1p(len(known)), rate] if begin is None else [rate]
    return found


@pytest.mark.parametrize("kind", ["user", "item"])
@pytest.mark.parametrize("block", [64, past.QUESTIONS])
def test_columns_are_those_of_the_plain_formula(log, kind, block, monkeypatch):
    """Statistics of some rows of a row group, with a delayed task, whatever the block size."""
    monkeypatch.setattr(past, "QUESTIONS", block)
    user, item, time, labels = log
    _, key = np.unique(user if kind == "user" else item, return_inverse=True)
    delays = [0, 31 * DAY_MS]
    rows = KeyedRows(key, time, labels, np.ones(len(key), bool))
    found = statistics.statistics(rows, delays, [PRIOR] * 2, dtype=np.float32)
    shown = np.random.default_rng(0).choice(len(key), SHOWN, replace=False)
    wanted = np.array([plain(key, time, labels, i, delays) for i in shown], np.float32)
    np.testing.assert_allclose(found[shown], wanted, rtol=1e-6, atol=1e-6)


def test_histories_are_those_of_the_plain_formula(log):
    """The last items with a positive label that is known, newest first, and their ages."""
    user, item, time, labels = log
    _, key = np.unique(user, return_inverse=True)
    listed, delay, last = labels[:, 0] == 1, DAY_MS, 5
    rows = KeyedRows(key, time, labels, np.ones(len(key), bool))
    found = statistics.histories(rows, item, last, delay, listed)
    history, ages = found.items, found.ages
    for i in np.random.default_rng(1).choice(len(key), SHOWN, replace=False):
        past = np.flatnonzero((key == key[i]) & listed & (time < time[i] - delay))
        newest = past[np.argsort(time[past], kind="stable")][::-1][:last]
        empty = last - len(newest)
        assert history[i].tolist() == item[newest].tolist() + [-1] * empty
        wanted = np.floor(np.log2(1 + (time[i] - time[newest]) / 1000)).astype(int)
        assert ages[i].tolist() == wanted.tolist() + [0] * empty
