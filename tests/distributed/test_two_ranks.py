"""What R gloo ranks compute equals what one process computes: gradients, losses, metrics."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import FACTS, make_catalogues, make_rows, take, write_prepared
from tests.distributed import rank as own
from tests.distributed.rank import AT_ONCE, METHODS, MODES, SECONDS

pytestmark = pytest.mark.distributed
TOP = Path(__file__).parents[2]

# Rows of each validation shard: ranks begin and end inside of shards, and one of 3 has no video.
VALID = {"shop": [2, 1, 9, 1], "video": [1, 1]}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Prepared data with validation rows in shards of odd sizes."""
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(4)
    shards = {}
    for name, sizes in VALID.items():
        rows = make_rows(rng, FACTS[name], sum(sizes))
        rows["labels"] = np.where(np.isnan(rows["labels"]), 0.0, rows["labels"]).astype(np.float32)
        rows["labels"][0, 0] = 1 - rows["labels"][1, 0]
        cuts = np.cumsum([0, *sizes])
        shards[name] = {"valid": [take(rows, slice(a, b)) for a, b in pairwise(cuts)]}
    write_prepared(folder / "prepared", make_catalogues(), shards)
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> dict[int, list[dict[str, Any]]]:
    """What each of two and of three ranks found; a rank that fails or hangs fails the tests."""
    command = [sys.executable, "-m", "tests.distributed.rank", str(folder), "2", "3"]
    done = subprocess.run(
        command, cwd=TOP, capture_output=True, text=True, check=False, timeout=3 * SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        size: [torch.load(folder / f"rank{r}of{size}.pt", weights_only=True) for r in range(size)]
        for size in (2, 3)
    }


@pytest.fixture(scope="module")
def one(folder) -> dict[str, Any]:
    """What one process finds, with all rows."""
    return {
        "validation": own.validate(folder),
        "steps": {m: own.step(m, 0, 1, folder) for m in MODES},
    }


def test_the_halves_are_unlike():
    """The rows of the two ranks have unequal label counts, and rank 1 has no label of one task."""
    counts = [
        {
            n: sum(np.isfinite(b[n].labels.numpy()).sum(0) for b in own.batches_of(r, 2))
            for n in FACTS
        }
        for r in range(2)
    ]
    first, second = ([*c["shop"], *c["video"]] for c in counts)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert second[3] == 0
    assert first[3] > 0


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_loss_of_one(one, ranks, mode):
    """Each of two ranks reports the loss and the label counts of the whole step."""
    wanted = one["steps"][mode]
    for found in (r["steps"][mode] for r in ranks[2]):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert torch.equal(found["counts"], wanted["counts"])


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_gradient_of_one(one, ranks, mode):
    """Two ranks with half the rows each have the gradient of one rank with all rows, everywhere."""
    wanted = one["steps"][mode]["gradients"]
    largest = max(g.abs().max().item() for g in wanted.values() if g is not None and g.numel())
    for found in (r["steps"][mode]["gradients"] for r in ranks[2]):
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            if gradient is None:
                assert found[name] is None or not found[name].any(), name
            elif gradient.numel():
                scale = max(gradient.abs().max().item(), 1e-3 * largest)
                assert (found[name] - gradient).abs().max() <= 2e-5 * scale, name


def test_the_step_reads_what_was_taken_elsewhere(one):
    """Every parameter that reads other scenarios' items has a gradient to compare."""
    gradients = one["steps"]["elsewhere"]["gradients"]
    of_sides = {name: g for name, g in gradients.items() if name.startswith("elsewhere.")}
    assert len(of_sides) == 26
    assert all(g is not None and g.any() for g in of_sides.values())


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_retrieval_loss_of_one(one, ranks, mode):
    """Each of two ranks reports the retrieval side's loss over all positives of the step."""
    wanted = one["steps"][mode]["retrieval"]
    assert all(count > 1 for count in wanted["counts"].values())
    for found in (r["steps"][mode]["retrieval"] for r in ranks[2]):
        assert found["counts"] == wanted["counts"]
        assert found["sums"] == pytest.approx(wanted["sums"], rel=1e-5)


@pytest.mark.parametrize("mode", AT_ONCE)
def test_a_step_at_once_is_that_in_parts(one, mode):
    """One micro-batch, computed once, gives the weights and gradients of two, computed twice."""
    at_once, parts = one["steps"][mode], one["steps"][mode.removesuffix(" at once")]
    for name, values in parts["moving"].items():
        torch.testing.assert_close(at_once["moving"][name], values, rtol=1e-4, atol=1e-7)
    for name, gradient in parts["gradients"].items():
        if gradient is not None:
            torch.testing.assert_close(at_once["gradients"][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_have_the_moving_weights_of_one(one, ranks, method):
    """Ranks and micro-batches see the losses and gradients of the whole step, and weigh alike.

    The weights are not those of the project file, and move the gradient of the shared layers.
    """
    wanted = one["steps"][f"weighting {method}"]
    for found in (r["steps"][f"weighting {method}"]["moving"] for r in ranks[2]):
        assert found.keys() == wanted["moving"].keys()
        for name, values in wanted["moving"].items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-7)
    assert (wanted["moving"]["means"] - 1).abs().max() > 0.01
    fixed = one["steps"]["top_k"]["gradients"]
    name = next(n for n in fixed if n.startswith("sharing."))
    assert (wanted["gradients"][name] - fixed[name]).norm() > 0.01 * fixed[name].norm()


HEADS = [f"heads.{n}.{t}." for n, f in FACTS.items() for t in f.tasks]


def test_weights_change_the_step(one):
    """With weights a step has other counts and another loss."""
    plain, weighted = one["steps"]["none"], one["steps"]["weighted"]
    assert (plain["counts"] != weighted["counts"]).all()
    assert plain["loss"] != pytest.approx(weighted["loss"], rel=1e-3)


@pytest.mark.parametrize("mode", ["kinds", "shapes", "classes"])
def test_each_kind_of_task_learns(one, mode):
    """The step whose gradients are compared moves the head of a task of each kind."""
    gradients = one["steps"][mode]["gradients"]
    for task in own.facts_of(mode)["shop"].tasks:
        of_head = [g for n, g in gradients.items() if n.startswith(f"heads.shop.{task}.out.")]
        assert all(g.any() for g in of_head), task


@pytest.mark.parametrize("part", ["encoder.", "sharing.", "retrieval.", *HEADS])
def test_the_compared_gradients_are_not_zero(one, part):
    """The gradients that are compared are not zero: encoder, shared layers, retrieval, heads."""
    wanted = one["steps"]["all"]["gradients"]
    own_part = {n: g for n, g in wanted.items() if n.startswith(part)}
    # A bias added to all keys moves all scores of a softmax alike: its gradient is zero.
    moving = [g for n, g in own_part.items() if not n.endswith("key.bias")]
    assert moving
    assert all(g.any() for g in moving)


@pytest.mark.parametrize("how", ["gather", "own"])
def test_a_resumed_run_goes_on_to_the_bit(ranks, how):
    """After a checkpoint two ranks and their resumed copies have the same gradients and vectors."""
    caches = []
    for rank in ranks[2]:
        run, resumed = rank["resumed"][how]
        assert run["gradients"]
        assert run["gradients"].keys() == resumed["gradients"].keys()
        for name, gradient in run["gradients"].items():
            assert gradient.any()
            assert torch.equal(gradient, resumed["gradients"][name]), name
        assert torch.equal(run["cache"], resumed["cache"])
        caches.append(run["cache"])
    assert torch.equal(*caches) == (how == "gather")


@pytest.mark.parametrize("mode", ["rerun", "gather"])
def test_other_ways_have_the_same_gradient(one, mode):
    """Chunks run again, and gradients gathered at cached vectors, give the gradient of one pass."""
    wanted, found = (one["steps"][m]["gradients"] for m in ("all", mode))
    largest = max(g.abs().max().item() for g in wanted.values() if g is not None and g.numel())
    for name, gradient in wanted.items():
        if gradient is not None and gradient.numel():
            assert (found[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("mode", ["top_k", "lora"])
def test_part_of_the_encoder_learns(one, mode):
    """With a cut encoder only its trainable part has a gradient, and that is not zero."""
    wanted = one["steps"][mode]["gradients"]
    encoder = {n: g for n, g in wanted.items() if n.startswith("encoder.")}
    learning = [n for n, g in encoder.items() if g is not None]
    assert any("query" in n for n in learning)
    assert all("layer.0" in n for n in learning)
    assert all("lora_" in n for n in learning) == (mode == "lora")


@pytest.mark.parametrize("mode", ["none", "every", "weighted", "kinds", "shapes", "classes"])
def test_an_encoder_that_does_not_learn_has_no_gradient(one, ranks, mode):
    """A frozen encoder, and one in a step that does not encode, has no gradient on any rank."""
    for found in (one, *ranks[2]):
        gradients = found["steps"][mode]["gradients"]
        assert not any(
            g.any() for n, g in gradients.items() if n.startswith("encoder.") and g is not None
        )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_validation_scores_every_row_once(one, ranks, size):
    """The ranks score every validation row once, whatever their number and the shards' sizes."""
    for name, sizes in VALID.items():
        parts = [r["validation"]["rows"][name] for r in ([one], *ranks.values())[size - 1]]
        assert sorted(row for part in parts for row in part) == list(range(sum(sizes)))
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", [2, 3])
def test_validation_metrics_are_those_of_one(one, ranks, size):
    """Metrics are the same on all ranks, and equal those of one process to 1e-5."""
    metrics = [r["validation"]["metrics"] for r in ranks[size]]
    for name, tasks in one["validation"]["metrics"].items():
        for task, wanted in tasks.items():
            found = [m[name][task] for m in metrics]
            assert all(f == pytest.approx(wanted, rel=1e-5, nan_ok=True) for f in found)
            assert all(f == pytest.approx(found[0], rel=0, abs=0, nan_ok=True) for f in found)
            assert wanted["rows"] == sum(VALID[name])
    assert {n: list(t) for n, t in metrics[0].items()} == {n: f.tasks for n, f in FACTS.items()}
