"""A run that stops at any step and goes on ends where the undisturbed run ends."""

import json
import math
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mtrec_ray.model.encoder import TextEncoder
from mtrec_ray.project.load import parse_project
from mtrec_ray.training import loop, run
from mtrec_ray.training.batches import make_plan
from mtrec_ray.training.checkpoint import WEIGHTS, load_state
from mtrec_ray.training.context import NO_SCORE
from mtrec_ray.training.delta import FineTuneStart
from mtrec_ray.training.run import NotFiniteError, RankRun
from tests.builders import (
    CPU,
    FACTS,
    RETRIEVAL,
    make_catalogues,
    make_rows,
    pick,
    small_model,
    take,
    two_scenario_project,
    write_prepared,
)

STEPS, ROWS = 8, {"shop": 60, "video": 25}


class StoppedError(Exception):
    """The context was ended."""


class Host:
    """Rows in memory, the last checkpoint in a folder; ends in some step where it is told to."""

    device = CPU

    def __init__(self, rows, folder, ends_at=None):
        self.rows, self.folder, self.ends_at = rows, folder, ends_at
        self.seen = {name: [] for name in rows}
        self.checkpoints = []
        self.furthest = self.redone = 0

    @property
    def open_rows(self):
        return lambda wanted: {n: self.parts(n, own.slices) for n, own in wanted.items()}

    def parts(self, name, slices):
        for one in slices:
            yield pick(self.rows[name], one)

    def report(self, metrics, folder):
        self.checkpoints.append(metrics)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)

    def show_curve(self, curve):
        pass

    def preempted(self):
        return False

    def checkpoint_folder(self):
        return self.folder if self.folder.exists() else None

    def log(self, text):
        pass

    def note_start(self, step):
        self.redone += max(self.furthest - step, 0)
        self.furthest = step
        return self.redone

    def note_step(self, step):
        self.furthest = step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared rows of two scenarios in shards of odd sizes."""
    rng = np.random.default_rng(3)
    shards, rows = {}, {}
    for name, number in ROWS.items():
        found = make_rows(rng, FACTS[name], number)
        cuts = [0, number // 3, number - 4, number]
        rows[name] = [take(found, slice(a, b)) for a, b in pairwise(cuts)]
        shards[name] = {"train": rows[name], "valid": [found]}
    folder = tmp_path_factory.mktemp("loop") / "prepared"
    return write_prepared(folder, make_catalogues(), shards), rows


def project(trainable="none", seed=0, cache=None, **training):
    """A small model with dropout, two epochs of half of `STEPS` each."""
    encoder = {"every": None, "lora": {"layers": 1}}
    model = small_model(
        trainable,
        encoder=encoder | ({"gather_items": 5} if trainable != "none" else {}),
        dropout=0.2,
        id_dropout=0.3,
        retrieval=RETRIEVAL,
    )
    tree = two_scenario_project().dump() | {"model": model.model_dump(mode="json")}
    tree["training"] |= {
        "epochs": 2, "rows_per_epoch": 12 * STEPS // 2, "batch_size": 12, "alpha": 0.5,
        "lr": 0.01, "seed": seed, **training,
    }  # fmt: skip
    tree["run"] |= {"checkpoint_steps": 3, "cache_folder": cache and str(cache)}
    return parse_project(tree)


def ended(context, options, prepared):
    """Train until the context ends it; whether it ended by itself."""
    step = RankRun.train_step

    def counted(run):
        if context.ends_at is not None and run.progress.step >= context.ends_at:
            raise StoppedError
        found = step(run)
        context.note_step(run.progress.step)
        for name, samples in run.session.last_batch.items():
            context.seen[name].append((run.progress.step, samples.user.tolist()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankRun, "train_step", counted)
        try:
            return loop.train(options, prepared, context)
        except StoppedError:
            return None


@pytest.mark.parametrize("trainable", ["none", "top_k", "lora"])
@pytest.mark.parametrize("seed", [0, 1])
def test_going_on_equals_an_undisturbed_run(data, tmp_path, trainable, seed):
    """Ended at two random steps, it takes the same rows and ends with the same bits."""
    prepared, rows = data
    options = project(trainable, seed, tmp_path / "cache")
    whole = Host(rows, tmp_path / "whole")
    wanted = ended(whole, options, prepared)
    first, second = sorted(np.random.default_rng(seed).choice(np.arange(1, STEPS), 2, False))
    cut = Host(rows, tmp_path / "cut")
    found = None
    for ends_at in (first, second, None):
        cut.ends_at = ends_at
        found = ended(cut, options, prepared)
    assert found is not None
    for name in rows:  # the last time that a step was made
        assert dict(cut.seen[name]) == dict(whole.seen[name])
    before, after = (load_file(h.folder / WEIGHTS) for h in (whole, cut))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert found["rows_seen"] == wanted["rows_seen"]
    assert found["curve"] == wanted["curve"]


@pytest.mark.parametrize("method", ["dwa", "famo", "gradnorm", "cagrad", "nash", "tchebycheff"])
def test_moving_weights_go_on(data, tmp_path, method):
    """Ended within an epoch, a run with moving weights ends with the same bits and weights."""
    prepared, rows = data
    moving = {"method": method, "by": "tasks", "lr": 0.2}
    options = project(cache=tmp_path / "cache", accumulation=2, weighting=moving)
    whole = Host(rows, tmp_path / "whole")
    wanted = ended(whole, options, prepared)
    cut = Host(rows, tmp_path / "cut")
    for ends_at in (5, 8, None):
        cut.ends_at = ends_at
        found = ended(cut, options, prepared)
    before, after = (load_file(h.folder / WEIGHTS) for h in (whole, cut))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert found["curve"] == wanted["curve"]
    heads = [n for n in before if n.startswith("heads.") and n.endswith(".out.weight")]
    assert all(before[name].any() for name in heads)  # they start at zero, without a gradient below
    told = wanted["curve"][-1]["loss_weights"]
    assert set(told) == {"shop/click", "shop/buy", "video/like", "video/stars"}
    assert max(abs(weight - 1) for weight in told.values()) > 0.001


@pytest.mark.parametrize("trainable", ["top_k", "lora"])
def test_frozen_layers_do_not_run_in_a_resumed_run(data, tmp_path, trainable):
    """Their states come from the node's cache, in a run that goes on as in one that starts."""
    options = project(trainable, cache=tmp_path / "cache")
    context = Host(data[1], tmp_path / "run", ends_at=5)
    calls = []
    frozen_states = TextEncoder.frozen_states

    def counting(encoder, tokens, mask):
        calls.append(len(tokens))
        return frozen_states(encoder, tokens, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "frozen_states", counting)
        ended(context, options, data[0])
        num_first = len(calls)
        context.ends_at = None
        assert ended(context, options, data[0]) is not None
    assert num_first > 0
    assert len(calls) == num_first


@pytest.fixture(scope="module")
def in_order(data, tmp_path_factory):
    """The summary and the weights of a run whose project lists things as the manifest does."""
    return trained_in_order(data, tmp_path_factory.mktemp("order"), ["shop", "video"], False)


def trained_in_order(data, folder, names, tasks_reversed):
    """The summary and the weights of a run whose project lists things in some order."""
    tree = project("top_k", cache=folder / "cache", epochs=1).dump()
    tree["scenarios"] = {name: tree["scenarios"][name] for name in names}
    for scenario in tree["scenarios"].values():
        tasks = list(scenario["tasks"].items())
        scenario["tasks"] = dict(reversed(tasks) if tasks_reversed else tasks)
    context = Host(broken(data[1], "video"), folder / "run")
    tree["training"]["max_skipped"] = 1.0
    found = ended(context, parse_project(tree), data[0])
    return found, load_file(context.folder / WEIGHTS)


@given(st.permutations(["shop", "video"]), st.booleans())
@settings(max_examples=4)
def test_the_order_of_the_project_file_changes_nothing(data, in_order, names, tasks_reversed):
    """Scenarios and tasks in another order: the same losses, labels, gradients and weights."""
    with tempfile.TemporaryDirectory() as folder:
        found, weights = trained_in_order(data, Path(folder), names, tasks_reversed)
    wanted, wanted_weights = in_order
    for key in ("curve", "not_finite_losses"):  # as text, in which NaN equals NaN
        assert json.dumps(found[key]) == json.dumps(wanted[key])
    assert all(torch.equal(weights[name], value) for name, value in wanted_weights.items())


def test_the_retrieval_side_learns(data, tmp_path):
    """The curve has its loss by scenario; over some epochs it falls."""
    options = project(epochs=6)
    curve = ended(Host(data[1], tmp_path / "run"), options, data[0])["curve"]
    for name in ROWS:
        losses = [record["retrieval_loss"][name] for record in curve]
        assert np.mean(losses[-2:]) < np.mean(losses[:2])


@pytest.mark.parametrize("mode", ["head", "lora", "full"])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_fine_tuned_scenario_has_its_own_retrieval(data, tmp_path, mode, is_new):
    """Its own layers of the retrieval side learn, its shared ones in mode full alone."""
    prepared, rows = data
    names = ["video"] if is_new else ["shop", "video"]
    joint = Host({n: rows[n] for n in names}, tmp_path / "joint")
    base = project() if not is_new else project().single("video")
    ended(joint, base, prepared.only(names))
    start = FineTuneStart(str(joint.folder), "shop", mode, rank=2, is_new=is_new)
    own = Host({"shop": rows["shop"]}, tmp_path / "own")
    before = run.RankRun(project().single("shop"), prepared.only(["shop"]), own, start)
    initial = {n: v.clone() for n, v in before.model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "start_model", lambda *_: (before.model, before.vectors, before.l2_sp))
        curve = loop.train(project().single("shop"), prepared.only(["shop"]), own, start)["curve"]
    assert set(curve[-1]["retrieval_loss"]) == {"shop"}
    found = before.model.state_dict()
    moved = {n for n in initial if "retrieval" in n and not torch.equal(found[n], initial[n])}
    assert {"retrieval.queries.shop", "retrieval.extras.shop.item_ids.weight"} <= moved
    assert ("retrieval.project.weight" in moved) == (mode == "full")


def test_checkpoints_within_an_epoch(data, tmp_path):
    """Every third step and after each epoch; those within an epoch never count as the best."""
    context = Host(data[1], tmp_path / "run")
    ended(context, project(), data[0])
    assert [c["step"] for c in context.checkpoints] == [3, 4, 6, 8]
    ranked = [c["joint_score"] < NO_SCORE for c in context.checkpoints]
    assert ranked == [False, True, False, True]


def test_valid_rows_are_capped(data, tmp_path):
    """Each scenario is judged on its first rows up to the cap; one with fewer on all of them."""
    context = Host(data[1], tmp_path / "run")
    tree = project().dump()
    tree["evaluation"]["valid_rows"] = 30
    found = ended(context, parse_project(tree), data[0])["curve"][-1]["valid"]
    for name, number in ROWS.items():
        labels = np.concatenate([shard["labels"] for shard in data[1][name]])[:30]
        for i, task in enumerate(FACTS[name].tasks):
            known = np.isfinite(labels[:, i]).sum()
            assert found[f"{name}/{task}/rows"] == known
            assert known <= min(30, number)


def test_a_node_that_will_go_makes_a_checkpoint(data, tmp_path):
    """When ranks are told so, a checkpoint is written at once, one an epoch."""
    context = Host(data[1], tmp_path / "run")
    context.preempted = lambda: True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PREEMPTION_CHECK_SECONDS", 0)
        ended(context, project(), data[0])
    assert [c["step"] for c in context.checkpoints] == [1, 3, 4, 5, 6, 8]


def test_rows_are_accounted_for(data, tmp_path):
    """Seen are steps times quotas; rows of more than one pass are counted as repeated."""
    context = Host(data[1], tmp_path / "run")
    for context.ends_at in (2, 5, 5, None):  # the last checkpoints are of steps 0, 4, and 4
        found = ended(context, project(), data[0])
    redone, found = 2 + 1 + 1, found["rows"]
    quotas = make_plan(project(), data[0], 1).quotas
    for name, row in found.items():
        assert row["seen"] == quotas[name] * STEPS
        assert row["repeated"] == max(row["seen"] - ROWS[name], 0)
        assert row["not_reached"] == max(ROWS[name] - row["seen"], 0)
        assert row["redone"] == quotas[name] * redone


def test_a_step_left_out_does_not_reach_the_encoder(data, tmp_path):
    """With gathered gradients, too: what is not finite is in no later step and no checkpoint."""
    context = Host(broken(data[1], "video"), tmp_path / "run")
    options = project("top_k", max_skipped=1.0)
    found = ended(context, options, data[0])
    assert set(found["not_finite_losses"]) == {"video/stars"}
    state = load_state(context.folder)["vectors"]
    (sums,) = state["gathered_sums"]
    assert sums.abs().max() < 1e6
    assert state["cache"].isfinite().all()


def test_a_step_with_an_infinite_norm_is_not_gathered(data, tmp_path):
    """Gradients at item vectors are finite, another one is not: the step leaves no trace."""
    options = project("top_k", cache=tmp_path / "cache", max_skipped=1.0)
    context = Host(data[1], tmp_path / "run")
    one = run.RankRun(options, data[0], context)
    one.start()
    one.train_step()
    gathered = one.vectors.gathered
    before = gathered.sums.clone(), gathered.met.clone(), gathered.num_steps
    weight = one.model.sharing.first_weight
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    one.train_step()
    hook.remove()
    assert one.progress.skipped_steps == one.progress.not_finite_gradients == 1
    assert torch.equal(gathered.sums, before[0])
    assert torch.equal(gathered.met, before[1])
    assert gathered.num_steps == before[2]
    one.train_step()
    assert gathered.num_steps == before[2] + 1
    assert one.progress.skipped_steps == 1


def broken(rows, name):
    """Rows of which some have a label so large that its square is not finite."""
    found = dict(rows)
    found[name] = [{**part, "labels": part["labels"].copy()} for part in rows[name]]
    found[name][0]["labels"][:, 1] = np.where(
        np.isnan(found[name][0]["labels"][:, 1]), np.nan, 1e30
    )
    return found


def test_too_many_steps_without_a_finite_gradient_stop(data, tmp_path):
    """Such steps are skipped and counted; above the share the message names scenario and task."""
    rows = broken(data[1], "video")
    context = Host(rows, tmp_path / "few")
    found = ended(context, project(max_skipped=1.0), data[0])
    assert 0 < found["skipped_steps"] < STEPS
    assert found["not_finite_losses"] == {"video/stars": found["skipped_steps"]}
    assert found["not_finite_gradients"] == 0
    weights = load_file(context.folder / WEIGHTS)
    assert all(value.isfinite().all() for value in weights.values())
    with pytest.raises(NotFiniteError, match=r"training\.max_skipped: found 1 .*video/stars 1"):
        ended(Host(rows, tmp_path / "none"), project(max_skipped=0.0), data[0])


def test_validations_within_an_epoch(data, tmp_path):
    """None changes the steps: the weights of the last are those of one validation an epoch."""
    found = []
    for each in (1, 4, [0.25, 0.5]):
        options = project(cache=tmp_path / "cache", validations=each, patience=9)
        context = Host(data[1], tmp_path / str(len(found)))
        summary = ended(context, options, data[0])
        found.append((summary, load_file(context.folder / WEIGHTS)))
    (one, first), (four, second), (some, third) = found
    assert [record["epoch"] for record in one["curve"]] == [1, 2]
    assert [record["epoch"] for record in four["curve"]] == [n / 4 for n in range(1, 9)]
    assert [record["epoch"] for record in some["curve"]] == [0.25, 0.5, 2]
    assert one["steps"] == four["steps"] == some["steps"] == STEPS
    steps = [record["step"] for record in four["curve"]]
    assert steps == [-(-n * STEPS // 8) for n in range(1, 9)]
    assert one["curve"][-1]["valid"] == four["curve"][-1]["valid"]
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert all(torch.equal(third[name], value) for name, value in first.items())
