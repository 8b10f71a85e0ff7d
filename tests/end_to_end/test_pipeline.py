"""The quickstart as a user runs it: one command, one JSON line, and nothing is done twice."""

import json
import time
from subprocess import CompletedProcess

import pyarrow.parquet as pq
import pytest

from mtrec_ray.project.load import load_project
from mtrec_ray.training.checkpoint import FACTS
from tests.end_to_end.jobs import QUICKSTART, SMALL, TOP, last_line, options, run_process

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1200)]

TASKS = {
    "shop": {"click": "binary", "buy": "binary"},
    "news": {"click": "binary", "like": "binary"},
    "video": {"like": "binary", "rating": "regression"},
}
PAIRS = [(name, task) for name, tasks in TASKS.items() for task in tasks]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Where the runs lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(storage, session_ray) -> tuple[CompletedProcess[str], float]:
    """The pipeline as a process with a Ray of its own, beside another one, and its seconds."""
    return timed(storage)


@pytest.fixture(scope="module")
def second(first, storage) -> tuple[CompletedProcess[str], float]:
    """The same command again."""
    return timed(storage)


def timed(storage) -> tuple[CompletedProcess[str], float]:
    start = time.monotonic()
    found = run_process("pipeline", options(QUICKSTART, storage, SMALL), timeout=1000)
    return found, time.monotonic() - start


def test_last_line(first):
    """The pipeline exits with 0, and its last line is JSON that names the job and the run."""
    found, _ = first
    assert found.returncode == 0, found.stderr
    line = last_line(found.stdout)
    assert line["job"] == "pipeline"
    assert line["run"] == "quickstart"
    assert {n: set(t) for n, t in line["metrics"].items()} == {n: set(t) for n, t in TASKS.items()}


def test_training_takes_what_the_search_chose(first, storage):
    """Weights and rates of the joint model are those of the short search's chosen trial."""
    assert first[0].returncode == 0
    folder = storage / "quickstart"
    chosen = load_project(folder / "tune" / "chosen.yaml").dump()
    trained = json.loads((folder / "joint" / "best" / FACTS).read_text())["project"]
    assert trained["scenarios"] == chosen["scenarios"]
    assert trained["training"] == chosen["training"]
    assert len(list((folder / "tune" / "trials").iterdir())) == 2


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_metrics_of_each_task(first, name, task):
    """Each task has its kind's metrics over its rows, with popularity's beside them."""
    found = last_line(first[0].stdout)["metrics"][name][task]
    binary = {"auc", "popularity_auc", "gauc", "gauc_unweighted", "logloss", "ne", "calibration"}
    wanted = binary if TASKS[name][task] == "binary" else {"rmse", "mae", "mean_rmse"}
    assert set(found) >= wanted | {"rows"}
    assert 20 < found["rows"] < 4000
    assert all(isinstance(found[key], float) for key in wanted)
    if TASKS[name][task] == "binary":
        assert 0 <= found["auc"] <= 1
        assert 0 <= found["popularity_auc"] <= 1
        assert 0 < found["logloss"] < 2
    else:
        assert 0 < found["rmse"] < 3
        assert 0 < found["mean_rmse"] < 3


@pytest.mark.parametrize("name", TASKS)
def test_what_came_of_each_scenario(first, name):
    """Each scenario has its choice, recommendations for every user, and recall beside others'."""
    line = last_line(first[0].stdout)
    assert line["chosen"][name] in ("joint", "finetuned")
    assert line["recommended"][name]["model"] == line["chosen"][name]
    assert line["recommended"][name]["users"] > 100
    if line["chosen"][name] == "joint":
        assert line["metrics"][name] == line["joint_metrics"][name]
    for model in ("model", "popularity", "last_7_days", "item_knn", "ease", "neighbours"):
        assert 0 <= line["ranking"][name][model]["recall"] <= 1
        assert 0 <= line["ranking"][name][model]["ndcg"] <= 1


def test_output_says_that_the_world_is_generated(first):
    """Header, progress and both tables say that the data is generated, not real."""
    said = [line for line in first[0].stdout.splitlines() if "GENERATED" in line]
    assert len(said) == 4
    assert all("not real data" in line for line in said)


def test_progress_names_the_stages(first):
    """The progress says what is prepared, audited, trained and scored."""
    for words in ("tokenising", "leakage audit", "chosen: ", "joint training with 2", "test rows"):
        assert words in first[0].stdout
    assert "already done" not in first[0].stdout


def test_another_ray_on_the_machine_does_not_disturb(first):
    """Beside another local Ray the run prints no traceback, not even one of Ray's own actors."""
    assert "Traceback" not in first[0].stdout + first[0].stderr


def test_nothing_of_ray_is_printed(first, storage):
    """No line of Ray or of a library is printed; they are in the log that the header names."""
    found = first[0]
    assert found.stderr == ""
    for words in ("pid=", "ray::", "(raylet", "Warning", "core_worker", "INFO", "WARNING"):
        assert words not in found.stdout
    (log,) = (storage / "quickstart" / "logs").glob("pipeline-*.log")
    assert str(log) in found.stdout


def test_no_line_is_wide(first):
    """All lines but paths, commands and the JSON line fit 80 columns."""
    lines = first[0].stdout.splitlines()[:-1]
    wide = [x for x in lines if len(x.rstrip()) > 80 and "/" not in x and "--" not in x]
    assert wide == []


def test_training_progress_reaches_the_driver(first):
    """What rank 0 of the joint training and of each fine-tuning tells is shown, with scores."""
    out = first[0].stdout
    assert "epoch 1: joint validation score" in out
    for name in TASKS:
        assert f"{name}: epoch 1: joint" in out
    assert "trials: 2 of 2 ended" in out


def test_files_of_the_run(first, storage):
    """A run leaves prepared data, the best model, predictions and metrics."""
    run = storage / "quickstart"
    for file in (
        "prepared/manifest.json",
        "joint/best/model.safetensors",
        "joint/finished.json",
        "evaluation/metrics.json",
    ):
        assert (run / file).is_file()
    for name in TASKS:
        assert (run / "scenarios" / name / "decision.json").is_file()
        table = pq.read_table(run / "recommendations" / name)
        assert {"user", "rank", "item", "score"} <= set(table.column_names)
        assert list((run / "evaluation" / "predictions" / name).glob("*.parquet"))
    assert not list(storage.rglob("*.part"))
    assert not (run / "prepared" / "work").exists()


def test_nothing_is_done_twice(second):
    """The same command again skips every stage."""
    found, _ = second
    assert found.returncode == 0, found.stderr
    for stage in ("prepare", "train", "finetune", "evaluate"):
        assert f"{stage}: already done" in found.stdout
    assert found.stdout.count("already done") == 4 + len(TASKS)  # recommending, by scenario
    for words in ("trials of", "tokenising", "writing the GENERATED", "joint training", "scoring"):
        assert words not in found.stdout


def test_other_jobs_take_the_same_file(second, storage):
    """A job of its own, with the pipeline's file, knows what its search chose."""
    assert second[0].returncode == 0
    found = run_process("evaluate", options(QUICKSTART, storage, SMALL))
    assert found.returncode == 0, found.stderr
    assert "evaluate: already done" in found.stdout
    assert last_line(found.stdout)["metrics"] == last_line(second[0].stdout)["metrics"]


def test_same_line_again(first, second):
    """The second run's last line is the first one's, to the last digit."""
    first_line, second_line = (r[0].stdout.splitlines()[-1] for r in (first, second))
    assert first_line == second_line


def test_second_run_is_quick(first, second):
    """The second run takes less than half of the first one's time."""
    assert second[1] < first[1] / 2


def test_cut_down_sizes_are_the_quickstarts(first):
    """The overrides reach the project: the shipped file itself has other sizes."""
    small, shipped = load_project(TOP / QUICKSTART, SMALL), load_project(TOP / QUICKSTART)
    assert small.sample_world.events == 4000 < shipped.sample_world.events
    assert small.scenarios == shipped.scenarios
    assert set(TASKS) == set(shipped.scenarios)
