"""Evaluation predicts every test row once, and its metrics are scikit-learn's of what it wrote."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import (
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

from mtrec_ray.data.shards import read_rows
from mtrec_ray.evaluation.blend import Blend
from mtrec_ray.stages.evaluate import run_evaluate
from mtrec_ray.stages.predictions import predict_split
from mtrec_ray.stages.row_sources import with_logarithms
from mtrec_ray.stages.trained_model import joint_model
from tests.cluster.runs import changed, prepared_folder, say_nothing

pytestmark = pytest.mark.cluster

TASKS = {"shop": ("click", "buy"), "video": ("like", "rating")}
MEANS = ("item_mean", "item_count", "user_mean", "user_count", "neighbours")
LABELS = [f"labels.{name}" for name in MEANS]
BINARY = [("shop", "click"), ("shop", "buy"), ("video", "like")]


@pytest.fixture(scope="module")
def metrics(trained):
    """The metrics of the run's own evaluation, by two workers."""
    return run_evaluate(trained.project, str(trained.storage), say_nothing)["metrics"]


@pytest.fixture(scope="module")
def predictions(trained, metrics):
    """The predictions that the evaluation wrote, by scenario."""
    folder = trained.folder / "evaluation" / "predictions"
    return {name: read_folder(folder / name) for name in metrics}


def read_folder(folder: Path) -> pd.DataFrame:
    """All predictions of a folder."""
    return pq.read_table(folder).to_pandas()


def column(found: pd.DataFrame, key: str, task: int) -> np.ndarray:
    """A task's labels, scores or popularities."""
    return np.stack(found[key].to_list())[:, task].astype(np.float64)


def labelled(predictions: dict[str, pd.DataFrame], name: str, task: str):
    """Labels, scores, popularities and users of a task's labelled rows."""
    found, i = predictions[name], TASKS[name].index(task)
    label = column(found, "label", i)
    known = np.isfinite(label)
    assert known.sum() > 20
    parts = (label, column(found, "score", i), column(found, "popularity", i), found["person"])
    return tuple(np.asarray(part)[known] for part in parts)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_is_predicted_once(trained, predictions, tmp_path, workers):
    """One and three workers predict each test row once, with the scores of the run's two."""
    project = changed(trained.project, run={"num_workers": workers})
    prepared_path = prepared_folder(project, str(trained.storage))
    model = joint_model(project, prepared_path, str(trained.folder / "joint" / "best"))
    predict_split({str(tmp_path): dict.fromkeys(TASKS, model)}, project.run)
    for name in TASKS:
        paths = trained.prepared.shard_paths(name, "test")
        assert len(paths) >= 3
        wanted = np.concatenate([a["row"] for a in read_rows(paths, 10_000, 0, 10**9)])
        found, reference = read_folder(tmp_path / name), predictions[name]
        assert sorted(found["row"]) == sorted(wanted)
        for task in range(2):
            scores = pd.Series(column(found, "score", task), found["row"]).sort_index()
            others = pd.Series(column(reference, "network", task), reference["row"]).sort_index()
            pd.testing.assert_series_equal(scores, others, rtol=1e-5)


def sources_of(found):
    """The columns of what sources of candidates say of a row."""
    return [column for column in found if column.startswith("source.")]


@pytest.mark.parametrize("name", TASKS)
def test_prediction_columns(trained, predictions, name):
    """A prediction is its sample's row, user, item and labels, with a finite score a task."""
    found = predictions[name].sort_values("row")
    assert set(found) == {
        "row", "user", "person", "item", "scenario", "label", "score", "popularity",
        "network", "trees", *sources_of(found), *LABELS,
    }  # fmt: skip
    assert {"source.popularity", "source.ease", "source.text_mean"} <= set(sources_of(found))
    assert set(found["scenario"]) == {name}
    batches = list(read_rows(trained.prepared.shard_paths(name, "test"), 10_000, 0, 10**9))
    arrays = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    order = np.argsort(arrays["row"])
    for key in ("row", "user", "person", "item"):
        assert list(found[key]) == list(arrays[key][order])
    facts = trained.prepared.scenarios[name]
    for i, task in enumerate(facts.tasks):
        np.testing.assert_array_equal(column(found, "label", i), arrays["labels"][order, i])
        place = facts.numeric_names.index(facts.popularity[task])
        np.testing.assert_array_equal(
            column(found, "popularity", i), arrays["numeric"][order, place]
        )
        score = column(found, "score", i)
        assert np.isfinite(score).all()
        assert len(np.unique(score)) > 10
        if facts.kinds[task] == "binary":
            assert 0 < score.min() < score.max() < 1


@pytest.mark.parametrize("name", TASKS)
def test_others_have_a_say_where_they_pay(trained, predictions, name):
    """A score is the blend that the record names, or the network's alone; all are written."""
    record = json.loads((trained.folder / "evaluation" / "metrics.json").read_text())
    found, blends = predictions[name], record["blends"][name]
    fitted = json.loads(
        (trained.folder / "opinions" / name / "beside-joint" / "finished.json").read_text()
    )
    for i, task in enumerate(TASKS[name]):
        score, network, trees = (column(found, key, i) for key in ("score", "network", "trees"))
        if task in blends:
            said = {"network": network, "trees": trees}
            said |= {s.removeprefix("source."): found[s].to_numpy() for s in sources_of(found)}
            said |= {s: column(found, s, i) for s in found if s.startswith("labels.")}
            wanted = Blend(**fitted[task]).of(with_logarithms(said))
            assert bool(fitted[task]["boosted"]) == blends[task]["boosted"]
            np.testing.assert_allclose(score, wanted, rtol=1e-4)
            assert blends[task]["gain"] > 0
        else:
            np.testing.assert_array_equal(score, network)
        known = np.isfinite(column(found, "label", i))
        own = record["metrics"][name][task]
        if "auc" in own:
            auc = roc_auc_score(column(found, "label", i)[known], network[known])
            assert own["network_auc"] == pytest.approx(auc)


def test_labels_of_other_items_are_those_of_the_rows_before(trained, predictions):
    """Means and counts of a user's ratings until then equal those of the raw rows, one by one."""
    facts, found = trained.prepared.scenarios["video"], predictions["video"]
    parts = {
        split: pd.concat(
            pd.DataFrame(
                {c: a[c] for c in ("row", "person", "item", "time")}
                | {"rating": a["labels"][:, facts.tasks.index("rating")]}
            )
            for a in read_rows(trained.prepared.shard_paths("video", split), 10_000, 0, 10**9)
        )
        for split in ("train", "valid", "test")
    }
    train = parts["train"].dropna()
    mean, deviation = train["rating"].mean(), train["rating"].std(ddof=0)
    above = (train["rating"] - mean) / deviation
    of_item = above.groupby(train["item"]).agg(lambda v: v.sum() / (len(v) + 5))
    everything = pd.concat(parts.values()).dropna()
    asked = parts["test"].set_index("row")
    for row in found["row"][::17]:
        one = asked.loc[row]
        known = everything[(everything.person == one.person) & (everything.time < one.time)]
        known = known.sort_values("time").drop_duplicates("item", keep="last")
        above = (known["rating"] - mean) / deviation - known["item"].map(of_item).fillna(0)
        place, i = found.index[found["row"] == row][0], facts.tasks.index("rating")
        told = {k: column(found, f"labels.{k}", i)[place] for k in ("user_mean", "user_count")}
        assert told["user_count"] == pytest.approx(np.log1p(len(known)), rel=1e-5)
        assert told["user_mean"] == pytest.approx(above.sum() / (len(known) + 5), abs=1e-5)


@pytest.mark.parametrize(("name", "task"), BINARY)
def test_binary_metrics(trained, metrics, predictions, name, task):
    """AUC, log-loss, NE, calibration, rows and popularity's AUC are scikit-learn's."""
    label, score, popularity, _ = labelled(predictions, name, task)
    found = metrics[name][task]
    assert found["auc"] == pytest.approx(roc_auc_score(label, score))
    assert found["popularity_auc"] == pytest.approx(roc_auc_score(label, popularity))
    assert found["logloss"] == pytest.approx(log_loss(label, score))
    base_rate = trained.prepared.scenarios[name].label_means[task]
    constant = log_loss(label, np.full(len(label), base_rate), labels=[0, 1])
    assert found["ne"] == pytest.approx(log_loss(label, score) / constant)
    assert found["calibration"] == pytest.approx(score.sum() / label.sum())
    assert found["rows"] == len(label)


@pytest.mark.parametrize(("name", "task"), BINARY)
def test_gauc(metrics, predictions, name, task):
    """GAUC is the mean of scikit-learn's AUC of each user, weighted by rows, and unweighted."""
    label, score, _, users = labelled(predictions, name, task)
    aucs, rows = [], []
    for user in np.unique(users):
        mine = users == user
        if len(set(label[mine])) == 2:
            aucs.append(roc_auc_score(label[mine], score[mine]))
            rows.append(mine.sum())
    assert metrics[name][task]["gauc"] == pytest.approx(np.average(aucs, weights=rows))
    assert metrics[name][task]["gauc_unweighted"] == pytest.approx(np.mean(aucs))


def test_regression_metrics(trained, metrics, predictions):
    """RMSE, MAE and the RMSE of the training mean are scikit-learn's, in the label's own units."""
    label, score, _, _ = labelled(predictions, "video", "rating")
    found = metrics["video"]["rating"]
    assert set(label) <= set(np.arange(2, 11) / 2)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(label, score))
    assert found["mae"] == pytest.approx(mean_absolute_error(label, score))
    mean = np.full(len(label), trained.prepared.scenarios["video"].label_means["rating"])
    assert found["mean_rmse"] == pytest.approx(root_mean_squared_error(label, mean))
    assert found["rows"] == len(label)


def test_details(trained, metrics):
    """Intervals hold the metrics; slices are of the right rows; bins agree with their rows."""
    record = json.loads((trained.folder / "evaluation" / "metrics.json").read_text())
    for name, tasks in TASKS.items():
        found, known = record["details"][name], trained.prepared.catalogue(name).known
        assert set(found["intervals"]) == set(tasks)
        for task, intervals in found["intervals"].items():
            for metric, (low, high) in intervals.items():
                assert low <= metrics[name][task][metric] <= high
        rows = read_folder(trained.folder / "evaluation" / "predictions" / name)
        new = ~known[rows["item"]]
        masks = {
            "warm": (rows["user"] > 0) & ~new, "new users": rows["user"] == 0, "new items": new
        }  # fmt: skip
        for i, task in enumerate(tasks):
            label, score = column(rows, "label", i), column(rows, "score", i)
            labelled_rows = np.isfinite(label)
            own = found["slices"][task]
            assert set(own) == {n for n, m in masks.items() if (m & labelled_rows).any()}
            for part, values in own.items():
                mask = np.asarray(masks[part] & labelled_rows)
                assert values["rows"] == mask.sum()
                if "auc" in values and 0 < label[mask].mean() < 1:
                    assert values["auc"] == pytest.approx(roc_auc_score(label[mask], score[mask]))
            if (name, task) in BINARY:
                bins = found["reliability"][task]
                assert len(bins) == 10
                assert all(0 <= b["actual"] <= 1 for b in bins)
                assert np.mean([b["predicted"] for b in bins]) == pytest.approx(
                    score[labelled_rows].mean(), rel=0.02
                )


def test_metrics_are_written(trained, metrics):
    """`metrics.json` holds the metrics that the stage returned, and a joint score."""
    record = json.loads((trained.folder / "evaluation" / "metrics.json").read_text())
    assert record["metrics"] == metrics
    shop = np.mean([metrics["shop"][t]["ne"] for t in ("click", "buy")])
    video = np.mean([metrics["video"]["like"]["ne"], metrics["video"]["rating"]["relative_rmse"]])
    assert record["joint_score"] == pytest.approx((shop + video) / 2)


def test_finished_evaluation_is_not_repeated(trained, metrics):
    """A second call says that it is done and returns the same metrics."""
    told: list[str] = []
    again = run_evaluate(trained.project, str(trained.storage), told.append)
    assert again["metrics"] == metrics
    assert told == ["evaluate: already done"]


def test_evaluation_needs_a_model(trained, untrained):
    """Without a trained model the error says which job to run first."""
    with pytest.raises(ValueError, match=r"joint model: found none in .*run the train job first"):
        run_evaluate(trained.project, str(untrained), say_nothing)


@pytest.mark.parametrize("sections", [{"model": {"width": 32}}, {"training": {"lr": 0.5}}])
def test_model_of_another_configuration_is_refused(trained, metrics, sections):
    """A project that differs from the one that trained the model is refused in one line."""
    with pytest.raises(ValueError, match=r"run\.name|model") as caught:
        run_evaluate(changed(trained.project, **sections), str(trained.storage), say_nothing)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_another_precision_is_another_evaluation(trained, metrics, tmp_path):
    """The same model in another precision is evaluated anew, in place of the earlier evaluation."""
    shutil.copytree(trained.folder, tmp_path / trained.project.run.name)
    project = changed(trained.project, evaluation={"precision": "fp32"})
    told: list[str] = []
    found = run_evaluate(project, str(tmp_path), told.append)
    assert "evaluate: already done" not in told
    for name, tasks in metrics.items():
        for task, values in tasks.items():
            assert found["metrics"][name][task]["rows"] == values["rows"]


def test_a_knob_of_memory_is_no_other_evaluation(trained, metrics):
    """How many pairs are scored at a time changes no result; the evaluation is found."""
    project = changed(trained.project, recommend={"pairs_per_block": 64})
    told: list[str] = []
    assert run_evaluate(project, str(trained.storage), told.append)["metrics"] == metrics
    assert told == ["evaluate: already done"]


@pytest.mark.skipif(bool(find_spec("torchao")), reason="torchao is installed")
def test_int8_needs_torchao(trained, tmp_path):
    """Without torchao int8 is refused in one line, before anything is begun."""
    storage = tmp_path / "runs"
    shutil.copytree(trained.folder, storage / trained.project.run.name)
    shutil.rmtree(storage / trained.project.run.name / "evaluation", ignore_errors=True)
    project = changed(trained.project, evaluation={"precision": "int8"})
    with pytest.raises(ValueError, match=r"^evaluation\.precision: found int8, .*; allowed: auto"):
        run_evaluate(project, str(storage), say_nothing)
    assert not (storage / trained.project.run.name / "evaluation").exists()
