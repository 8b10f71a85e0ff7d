"""What comes out of trials: the choice by each rule, the table, a project file."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mtrec_ray.project.load import parse_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.records import Trial, load_trials
from mtrec_ray.search.space import space_of, weight_overrides
from mtrec_ray.stages.tuning.advice import advice_lines
from mtrec_ray.stages.tuning.confirm import confirmed
from mtrec_ray.stages.tuning.outcome import (
    Outcome,
    chosen_yaml,
    losses,
    outcome_of,
    trial_rows,
    trials_table,
    write_outcome,
)
from mtrec_ray.stages.tuning.runner import concurrency, need_of
from mtrec_ray.stages.tuning.searcher import BRACKETS, Halving, known_trial, optuna_search
from mtrec_ray.stages.tuning.trial import entry_of, report_of, trial_project
from tests.builders import two_scenario_project

NAMES = ("shop", "video")
NODES = [{"CPU": 8.0, "GPU": 2.0}]
SMALL_NODES = [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 2.0}]


def searching(**search) -> Project:
    """The project of two scenarios, uniform weights, with a search of weights and a rate."""
    fields = {"training.lr": {"loguniform": [1e-4, 1e-1]}}
    own = with_overrides(two_scenario_project(), weight_overrides(NAMES, [1.0, 1.0])).dump()
    return parse_project(own | {"search": {"fields": fields} | search})


def trial_of(name: str, shop: float, video: float, share: float = 1.0, **more) -> Trial:
    """A trial of two epochs, the second of which is the better one."""
    curve = [
        {
            "epoch": epoch,
            "joint_score": (shop + video) / 2 + worse,
            "scores": {"shop": shop + worse, "video": video + worse},
            "tasks": {"shop/click": shop + worse},
        }
        for epoch, worse in ((1, 0.1), (2, 0.0))
    ]
    overrides = {} if name == "own" else weight_overrides(NAMES, [share, 2 - share])
    point = {"lambda.shop": 0.5, "lambda.video": 0.5, "training.lr": 1e-2}
    fields = {"status": "finished", "curve": curve, "point": point, "overrides": overrides} | more
    return Trial(name, **fields)


TRIALS = [
    trial_of("own", 0.80, 0.60),
    trial_of("only_shop", 0.70, 0.99, 2.0),
    trial_of("only_video", 0.98, 0.50, 0.0),
    trial_of("t001", 0.72, 0.64, 1.5),
    trial_of("t002", 0.81, 0.61, 1.1, status="stopped"),
    trial_of("t003", 0.79, 0.52, 0.5),
    Trial("t004", weight_overrides(NAMES, [1.2, 0.8]), {}, "failed", "ValueError: no"),
]


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ({}, "t003"),
        ({"choose": "worst_case"}, "t003"),
        ({"choose": "preference", "preference": {"shop": 9, "video": 1}}, "t001"),
        ({"choose": "preference", "preference": {"video": 1}}, "only_video"),
    ],
)
def test_the_rule_chooses(search, wanted):
    """Lowest joint score, best worst-case gain, lowest preferred mean; failed trials never."""
    assert outcome_of(searching(**search), TRIALS).chosen.name == wanted


def test_a_failed_trial_is_never_chosen():
    """Not even one with the best epoch of all: training with its values fails."""
    lost = trial_of("t005", 0.1, 0.1, 0.5, status="failed", reason="NotFiniteError: loss")
    outcome = outcome_of(searching(), [*TRIALS, lost])
    assert outcome.chosen.name == "t003"
    assert lost not in outcome.scored


def test_worst_case_compares_with_the_best_epoch_of_a_model_alone():
    """Of its own scenario, whatever the others' scores are by then."""
    early = trial_of("only_video", 0.98, 0.50, 0.0)
    best = {"epoch": 3, "joint_score": 9.0, "scores": {"shop": 17.6, "video": 0.40}, "tasks": {}}
    early.curve.append(best)
    trials = [early if t.name == "only_video" else t for t in TRIALS]
    project = searching(choose="worst_case")
    found = losses(project, trials[:6], outcome_of(project, trials).points)
    assert found[5] == pytest.approx(-(1 - 0.52 / 0.40))


def test_values_that_no_project_may_have_are_in_the_table():
    """A trial that failed for its values has a row with them."""
    wrong = Trial("t006", {"model.width": 40.3}, {}, "failed", "ProjectError: model.width")
    project = searching(fields={"model.width": [16, 32]})
    rows = trial_rows(project, outcome_of(project, [*TRIALS, wrong]))
    assert rows[-1]["model.width"] == 40.3


def test_worst_case_needs_its_references():
    """Without the score of a model alone there is no gain over it: one clear line."""
    with pytest.raises(ValueError, match=r"search\.choose: found no score of .*'shop'.* alone"):
        outcome_of(searching(choose="worst_case"), [t for t in TRIALS if t.name != "only_shop"])


def test_no_trial_with_a_score():
    """Where all trials failed the reasons are said."""
    with pytest.raises(ValueError, match=r"no trial with a score \(ValueError: no\)"):
        outcome_of(searching(), [TRIALS[-1]])


def test_the_table_has_all_trials():
    """A row a trial, with its own weights, best and last epoch, front and reason."""
    project = searching()
    outcome = outcome_of(project, TRIALS)
    rows = {row["trial"]: row for row in trials_table(trial_rows(project, outcome)).to_pylist()}
    assert list(rows) == [t.name for t in TRIALS]
    assert rows["t004"]["reason"] == "ValueError: no"
    assert rows["t004"]["joint_score"] is None
    assert rows["t001"]["scenarios.shop.weight"] == 1.5
    assert rows["own"]["training.lr"] == project.training.lr
    assert rows["own"]["best_epoch"] == 2
    front = {n for n, row in rows.items() if row["on_front"]}
    assert front == {"only_shop", "only_video", "t001", "t003"}


def test_the_chosen_project_file():
    """It is a whole project file, without the search, that differs in the chosen values alone."""
    project = searching()
    tree = yaml.safe_load(chosen_yaml(project, outcome_of(project, TRIALS)))
    assert "search" not in tree
    chosen = parse_project(tree | {"search": project.dump()["search"]})
    assert chosen == with_overrides(project, weight_overrides(NAMES, [0.5, 1.5]))


def test_own_weights_stand_for_uniform_ones():
    """Where the own weights are uniform, no second trial of them is compared."""
    outcome = outcome_of(searching(), TRIALS)
    assert outcome.trial("uniform") is outcome.trial("own") is TRIALS[0]


def test_what_is_written(tmp_path):
    """Table, front, project file, plots, page; the front's volume refers to scores of 1."""
    project = searching()
    record = write_outcome(project, outcome_of(project, TRIALS), None, ["Do it"], str(tmp_path))
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["reference_point"] == {"shop": 1.0, "video": 1.0}
    assert front["hypervolume"] == record["hypervolume"] > 0.2 * 0.4
    assert {"chosen.yaml", "trials.parquet", "report.html"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "report.html").read_text()
    assert "ValueError: no" in page
    assert "<li>Do it.</li>" in page
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "plots").iterdir())) >= 3
    assert record["by_status"] == {"failed": 1, "finished": 5, "stopped": 1}


def test_confirmation_pairs_seeds():
    """Gains are uniform less chosen, seed by seed; a failed run is named and takes no part."""
    outcome = outcome_of(searching(), TRIALS)

    def run(name: str, joint: float) -> Trial:
        test = {"joint_score": joint, "scores": {"shop": joint, "video": joint}}
        return replace(TRIALS[0], name=name, result={"test": test})

    lost = replace(run("own-seed0", 0.5), status="failed", reason="lost")
    runs = [run("t003-seed0", 0.5), run("t003-seed1", 0.6), lost, run("own-seed1", 0.7)]
    found = confirmed(outcome, runs)
    assert found["gains"] == pytest.approx([0.1])
    assert not found["better_on_all_seeds"]
    assert found["variants"]["chosen"]["test"]["joint"] == pytest.approx(
        {"mean": 0.55, "spread": 0.1}
    )
    assert found["variants"]["uniform"]["failed"] == {"own-seed0": "lost"}
    assert confirmed(outcome, [*runs[:2], run("own-seed0", 0.6), runs[3]])["better_on_all_seeds"]


def confirmation(scores: dict[str, list[float]]) -> tuple[Outcome, dict]:
    """A search whose chosen trial changed weights and rate, and its whole runs by variant."""
    chosen = replace(TRIALS[5], overrides=TRIALS[5].overrides | {"training.lr": 0.02})
    outcome = replace(outcome_of(searching(), TRIALS), chosen=chosen)
    runs = []
    for name, values in scores.items():
        for seed, joint in enumerate(values):
            test = {"joint_score": joint, "scores": {"shop": joint, "video": joint}}
            curve = [{"epoch": 1, "tasks": {}, **test}]
            runs.append(replace(chosen, name=f"{name}-seed{seed}", curve=curve,
                                result={"test": test}))  # fmt: skip
    return outcome, confirmed(outcome, runs)


def test_what_weights_and_rates_brought_is_told_apart():
    """By runs with the chosen rate and the project's own weights; the parts add up to the gain."""
    scores = {"own": [0.70, 0.74], "t003": [0.60, 0.63], "own_weights": [0.62, 0.66]}
    outcome, found = confirmation(scores)
    assert outcome.chosen.name == "t003"
    worth = {what: of["test"] for what, of in found["worth"].items()}
    assert worth["weights"]["mean"] == pytest.approx(0.025)
    assert worth["other_values"]["mean"] == pytest.approx(0.08)
    assert worth["all"]["mean"] == pytest.approx(0.105)
    # Student's t of two runs: 12.706 standard errors.
    assert worth["all"]["high"] == pytest.approx(0.105 + 12.7062 * 0.005, abs=1e-4)
    lines = advice_lines(searching(), outcome, found, ["Buy."])
    assert lines[0].startswith("t003 has a lower joint score than the project's own values: by ")
    assert "by 0.0450 in the search, by whose rows it was chosen" in lines[0]
    assert lines[0].endswith("and +0.1050 [+0.0415, +0.1685] on test")
    assert lines[1].startswith("of the gain on test the loss weights brought +0.0250 [")
    assert "take the values of t003 (chosen.yaml): scenarios.shop.weight 0.5" in lines[2]
    assert lines[-1] == "Buy."


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"own": [0.6, 0.6], "t003": [0.7, 0.7]}, "keep the project's own values: on test those"),
        ({"own": [0.6, 0.9], "t003": [0.5, 0.5]}, "though chance could have made the gain"),
        ({"own": [0.6], "t003": [0.5], "own_weights": [0.5]}, "its loss weights bring nothing"),
    ],
)
def test_advice_follows_what_test_says(scores, told):
    """Worse on test: keep the own values; better by chance; rates alone bring it."""
    outcome, found = confirmation(scores)
    assert any(told in line for line in advice_lines(searching(), outcome, found, []))


def test_advice_without_a_confirmation_says_what_is_not_known():
    """The gain of the search alone is called that; a search that found nothing says so."""
    outcome = outcome_of(searching(), TRIALS)
    assert "search.confirm_seeds: 3 tells whether it holds" in "".join(
        advice_lines(searching(), outcome, None, [])
    )
    own = replace(outcome, chosen=TRIALS[0])
    assert advice_lines(searching(), own, None, [])[0].endswith("own values: keep them")


# --- how trials are kept and told ------------------------------------------------------------


def test_trials_are_kept_as_they_are(tmp_path):
    """A record says the same after it was written and read."""
    for trial in TRIALS:
        trial.save(str(tmp_path))
    assert load_trials(str(tmp_path)) == {t.name: t for t in TRIALS}


def test_an_epoch_told_twice_counts_once():
    """A later report of the same epoch takes the place of the first; epochs stay in order."""
    trial = replace(TRIALS[0], curve=[])
    for epoch, score in ((2, 0.5), (1, 0.7), (2, 0.6)):
        trial.add({"epoch": epoch, "joint_score": score, "scores": {}, "tasks": {}})
    assert [(e["epoch"], e["joint_score"]) for e in trial.curve] == [(1, 0.7), (2, 0.6)]


def test_reports_are_of_the_best_epoch_so_far():
    """Tune is told the scores of the epoch whose model is kept; mid-epoch reports are no epochs."""
    assert entry_of({"epoch": 1, "step": 5, "joint_score": 1e308}) is None
    metrics = {"epoch": 2, "joint_score": 0.9, "shop/click/ne": 0.9, "video/stars/ne": 0.9}
    told = report_of([*TRIALS[0].curve], entry_of(metrics))
    assert told["joint_score"] == pytest.approx(0.7)
    assert told["score"] == pytest.approx({"shop": 0.8, "video": 0.6})
    assert math.isnan(report_of([], None)["joint_score"])


def test_a_kept_trial_is_told_to_the_searcher():
    """A finished trial with its scores, a failed one without; the others wait in their order."""
    project, space = searching(), space_of(searching())
    assert known_trial(project, space, TRIALS[3]).values == pytest.approx([0.72, 0.64])
    waiting = Trial("t009", {}, {"lambda.shop": 0.1, "lambda.video": 0.2, "training.lr": 0.05})
    searcher = optuna_search(project, space, [TRIALS[3], waiting])
    assert searcher.suggest("a") == {
        "lambda.shop": 0.1, "lambda.video": 0.2, "training.lr": 0.05
    }  # fmt: skip
    fresh = searcher.suggest("b")
    assert fresh is not None
    assert fresh["training.lr"] != 0.05


def test_halving_spares_and_remembers():
    """A trial behind the better half ends; a spared one, one in its last epoch, does not."""

    class Known:
        def __init__(self, name: str) -> None:
            self.trial_id, self.config = name, {"trial": {"name": name}}

    scheduler = Halving(epochs=4, grace=1, spared=["own"])
    kept = [trial_of(f"t{i}", 0.5 + i / 100, 0.5) for i in range(4)]
    scheduler.fill(kept)

    def decide(name: str, epoch: int, score: float) -> str:
        known = Known(name)
        scheduler.on_trial_add(None, known)
        return scheduler.on_trial_result(None, known, {"epoch": epoch, "joint_score": score})

    assert decide("bad", 1, 0.9) == "STOP"
    assert decide("good", 1, 0.4) == "CONTINUE"
    assert decide("own", 1, 0.9) == "CONTINUE"
    assert decide("late", 4, 0.9) == "CONTINUE"
    assert decide("lost", 1, math.nan) == "CONTINUE"
    assert scheduler.stopped == {"bad"}


# --- resources -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "run", "local", "wanted"),
    [
        ({"num_workers": 0}, {}, False, 8),
        ({"num_workers": 0}, {}, True, 6),
        ({}, {"num_workers": 2}, False, 4),
        ({}, {"num_workers": 3, "cpus_per_worker": 2}, False, 1),
        ({}, {"num_workers": 64}, False, 1),
        ({"num_workers": 1}, {"num_workers": 64, "use_gpu": True}, False, 2),
        ({"concurrent": 3}, {"num_workers": 64}, False, 3),
    ],
)
def test_trials_at_a_time(search, run, local, wanted):
    """As many as the cluster has room for, and at least one; a local Ray's spare CPUs are none."""
    project = searching(**search)
    project = with_overrides(project, {f"run.{key}": value for key, value in run.items()})
    assert concurrency(project, NODES, local=local) == wanted


def test_a_trial_of_one_process_fits_a_node():
    """Two CPUs of two nodes are no place for it; workers may lie on both."""
    two = {"run.cpus_per_worker": 2}
    here = with_overrides(searching(num_workers=0), two)
    assert concurrency(here, SMALL_NODES, local=False) == 3
    spread = with_overrides(searching(num_workers=1), two)
    assert concurrency(spread, SMALL_NODES, local=False) == 4


def test_a_trial_with_workers_takes_no_cpu_itself():
    """Its head asks for memory alone: workers may fill a node's CPUs."""
    assert need_of(searching()).head["CPU"] == 0
    assert need_of(searching()).head["memory"] > 0
    assert need_of(searching(num_workers=0)).head["CPU"] == 1


def test_a_trial_has_the_searchs_epochs():
    """Epochs, rows and workers are the search's where it names them, the rest the project's."""
    project = trial_project(searching(epochs=1, rows_per_epoch=99, num_workers=0))
    assert (project.training.epochs, project.training.rows_per_epoch) == (1, 99)
    assert project.run.num_workers == 1
    assert project.evaluation.valid_rows == 20_000
    plain = searching(grace=1, valid_rows=None)
    assert trial_project(plain) == plain


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, [0.25, 1, 2, 3]),
        ({"grace": 0.1}, [0.1, 0.4, 1, 1.6, 2, 3]),
        ({"grace": 1}, [1, 2, 3]),
        ({"scheduler": "pbt"}, [1, 2, 3]),
        ({"scheduler": "pbt", "grace": 0.5}, [0.5, 1, 1.5, 2, 2.5, 3]),
        ({"scheduler": "hyperband"}, [0.25, 1, 2, 3]),
        ({"scheduler": "none"}, [1, 2, 3]),
    ],
)
def test_a_trial_is_validated_where_it_can_end(fields, wanted):
    """After each epoch, and where asha can end a trial or pbt moves it."""
    training = trial_project(searching(epochs=3, **fields)).training
    assert training.validation_epochs == pytest.approx(wanted)


def halved(scheduler, num):
    """Returns by trial after how many epochs of two it ended; trial `t0` has the best score."""
    names = [f"t{i}" for i in range(num)]
    trials = {
        n: SimpleNamespace(trial_id=n, config={"trial": {"name": n}}, status="RUNNING")
        for n in names
    }
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    ended = {}
    for validation in range(1, 9):
        for name in [n for n in names if n not in ended]:
            told = {"epoch": validation / 4, "joint_score": float(names.index(name))}
            if scheduler.on_trial_result(None, trials[name], told) == "STOP":
                ended[name] = validation / 4
    assert scheduler.stopped == set(ended)
    return ended


def test_a_trial_is_ended_within_an_epoch():
    """Of eight trials of two epochs, all but the best quarter end at 1/4 or 1."""
    ended = halved(Halving(epochs=2, grace=0.25, spared=["t0"]), 8)
    assert "t0" not in ended
    assert len(ended) >= 6
    assert set(ended.values()) <= {0.25, 1}


def test_hyperband_ends_some_trials_later():
    """Some of 60 are first in question a rung later, or two."""
    np.random.seed(0)  # Ray draws brackets by it
    plain = halved(Halving(epochs=2, grace=0.25, spared=["t0"]), 60)
    spread = halved(Halving(epochs=2, grace=0.25, spared=["t0"], brackets=BRACKETS), 60)
    worst = [f"t{i}" for i in range(40, 60)]
    assert {plain[name] for name in worst} == {0.25}
    assert {spread.get(name) for name in worst} == {0.25, 1, None}
    assert "t0" not in spread
