"""The gloo ranks of test_two_ranks.py: `python -m tests.distributed.rank FOLDER SIZE...`.

Only data and processes differ between one rank and several: the functions below run the same code
of the package in each. What they find is written to FOLDER/rankRofSIZE.pt. Ranks are forked from a
process that has only imported (and has no threads yet): importing in each takes longer than all
of the rest.
"""

import copy
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from mtrec_ray.data.prepared import PreparedScenario, load_prepared
from mtrec_ray.data.shards import Arrays
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.weighting import Method, Weighting
from mtrec_ray.training import validation
from mtrec_ray.training.cached_gradients import CachedGradients
from mtrec_ray.training.collectives import world
from mtrec_ray.training.forward import Forward, wrap
from mtrec_ray.training.item_vectors import Batch
from mtrec_ray.training.losses import task_keys, task_shapes, weight_tensor
from mtrec_ray.training.retrieval_loss import CandidateDraws
from mtrec_ray.training.step import accumulate
from mtrec_ray.training.weighting import MovingWeights, moving_weights, units_of
from mtrec_ray.training.weighting_methods import Seen
from tests.builders import (
    EVERY_KIND,
    FACTS,
    RETRIEVAL,
    WITH_CLASSES,
    build,
    classes_project,
    every_kind_project,
    make_catalogues,
    make_rows,
    make_timelines,
    shaped_project,
    small_model,
    take,
    two_scenario_project,
    with_vectors,
    with_weights,
)

SECONDS = 100
ACCUMULATION = 2
# Rows of one micro-batch of one of two ranks, so that a step has 4 times as many.
MICRO_ROWS = {"shop": 5, "video": 3}
METHODS = [method for method in get_args(Method) if method != "fixed"]  # of moving weights
# Trainable part, whether the step encodes, and whether DDP looks for unused parameters: as the
# loop wraps each of them (`every: 2` encodes in every second step only).
MODES = {
    "all": ("all", True, False),
    "top_k": ("top_k", True, False),
    "lora": ("lora", True, False),
    "none": ("none", False, False),
    "every": ("all", False, True),
    "rerun": ("all", True, False),
    "gather": ("all", False, False),
    "gather_some": ("all", False, False),
    "weighted": ("none", False, False),
    "kinds": ("none", False, False),
    "shapes": ("none", False, False),
    "vectors": ("none", False, False),
    "classes": ("none", False, False),
    "elsewhere": ("none", False, False),
} | {f"weighting {method}": ("top_k", True, False) for method in METHODS}
# In one micro-batch of each rank, which is computed once.
AT_ONCE = [f"weighting {method} at once" for method in ("famo", "pcgrad", "gradnorm")]
MODES |= dict.fromkeys(AT_ONCE, ("top_k", True, False))
KINDS = ("kinds", "shapes")  # modes in which shop has a task of every kind; their rows have weights


def facts_of(mode: str) -> dict[str, PreparedScenario]:
    """The scenarios of a mode."""
    if mode == "classes":
        return WITH_CLASSES
    return EVERY_KIND if mode in KINDS else FACTS


def step_rows(mode: str = "all") -> dict[str, Arrays]:
    """All rows of the step. The second half of them is that of rank 1, and has no stars at all."""
    rng = np.random.default_rng(11)
    rows = {n: make_rows(rng, f, 4 * MICRO_ROWS[n]) for n, f in facts_of(mode).items()}
    half = 2 * MICRO_ROWS["video"]
    rows["video"]["labels"][half:, 1] = np.nan
    rows["video"]["labels"][:half, 1] = [2.0, 5.0, 3.0, np.nan, 4.5, 1.0]
    rows["shop"]["labels"][:7, 0] = np.nan
    rows["shop"]["labels"][:7, 1] = np.nan
    for name, positives in {"shop": [12, 14, 19], "video": [0, 1, 2]}.items():
        rows[name]["labels"][positives, 0] = 1
        rows[name]["history"][positives[0]] = -1
    if mode in (*KINDS, "weighted", "classes"):
        return {name: with_weights(own) for name, own in rows.items()}
    return rows


def batches_of(rank: int, size: int, mode: str = "all") -> list[Batch]:
    """The micro-batches of a rank: equal parts of the step's rows."""
    rows, accumulation = step_rows(mode), 1 if mode in AT_ONCE else ACCUMULATION
    parts = size * accumulation
    batches = []
    for part in range(rank * accumulation, (rank + 1) * accumulation):
        cuts = {n: 4 * MICRO_ROWS[n] // parts for n in rows}
        batches.append(
            {
                n: Samples.of(take(a, slice(part * cuts[n], (part + 1) * cuts[n])))
                for n, a in rows.items()
            }
        )
    return batches


def positive_counts() -> dict[str, torch.Tensor]:
    """Training positives of each item, drawn at random."""
    generator = torch.Generator().manual_seed(2)
    return {
        n: torch.randint(0, 9, (f.num_items,), generator=generator).double()
        for n, f in FACTS.items()
    }


def step(mode: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Loss, counts and gradients of a step; None for a parameter without gradient."""
    trainable, encode, some_unused = MODES[mode]
    encoder = {"lora": {"layers": 1}, "rerun": mode == "rerun"}
    if mode == "gather_some":
        encoder["gather_items"] = 3
    options = small_model(trainable, encoder=encoder, retrieval=RETRIEVAL)
    facts = facts_of(mode)
    catalogues = make_catalogues()
    catalogues = with_vectors(catalogues) if mode == "vectors" else catalogues
    timelines = make_timelines() if mode == "elsewhere" else {}
    model, vectors = build(options, catalogues, facts, timelines)
    vectors.compute_frozen(folder / f"frozen{size}")
    vectors.refresh()
    if mode.startswith("gather"):
        vectors.gathered = CachedGradients(vectors)
    module = wrap(Forward(model, vectors), some_unused=some_unused)
    projects = {"kinds": every_kind_project, "shapes": shaped_project, "classes": classes_project}
    project = projects.get(mode, two_scenario_project)()
    weights = weight_tensor(facts, project.scenarios)
    batches = batches_of(rank, size, mode)
    moving = moving_of(mode, facts, weights)
    drawn = CandidateDraws(options, facts, positive_counts(), seed=3).of_step(batches, step=5)
    shapes = task_shapes(project.scenarios)
    result = accumulate(
        module, facts, batches, weights, encode=encode, drawn=drawn, shapes=shapes, moving=moving,
        step=7,
    )  # fmt: skip
    if vectors.gathered is not None:
        vectors.gathered.collect()
        vectors.gathered.backward()
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    retrieval = {"sums": result.retrieval_sums, "counts": result.retrieval_counts}
    return {
        "loss": result.loss, "counts": result.counts, "gradients": gradients,
        "retrieval": retrieval, "moving": told_of(moving, result),
    }  # fmt: skip


def moving_of(mode: str, facts: dict[str, PreparedScenario], weights) -> MovingWeights | None:
    """Weights that have moved for two steps, or None."""
    if not mode.startswith("weighting "):
        return None
    method = mode.removeprefix("weighting ").removesuffix(" at once")
    by = "tasks" if METHODS.index(method) % 2 else "scenarios"
    options = Weighting.model_validate({"method": method, "by": by, "every": 1, "lr": 0.3})
    units = units_of(task_keys(facts), weights, by)
    moving = moving_weights(options, units, 3, 50)
    assert moving is not None
    first = torch.linspace(0.5, 1.0, len(units.names), dtype=torch.float64)
    gramian = torch.eye(len(first), dtype=torch.float64) + 0.1
    for number, losses in enumerate((first, first.flip(0) * 0.7)):
        seen = Seen(number, losses, gramian)
        moving.task_weights(seen)
        moving.update(seen, losses**2)
    moving.take_means()
    return moving


def told_of(moving: MovingWeights | None, result) -> dict[str, torch.Tensor]:
    """What a method saw of the step, the weights that it gave, and the losses of a second look."""
    if moving is None:
        return {}
    found = {"losses": result.seen.losses, "means": moving.total}
    if result.seen.gramian is not None:
        found["gramian"] = result.seen.gramian
    if result.look_back is not None:
        found["after"] = result.look_back()
    return found


def resumed_gradients(rank: int, size: int, folder: Path, *, gather: bool) -> list[dict[str, Any]]:
    """The encoder's gradients after two more steps: of a run, and of one resumed from its state.

    With `gather` from gathered gradients, else from this rank's own rows.
    """
    model, vectors = build(small_model("top_k"), make_catalogues())
    again, resumed = build(small_model("top_k"), make_catalogues())
    for one in (vectors, resumed):
        one.compute_frozen(folder / f"frozen{size}")
        one.gathered = CachedGradients(one) if gather else None
    vectors.refresh()
    take_steps(model, vectors, rank, size, gather=gather)
    resumed.restore(copy.deepcopy(vectors.state()))
    found = []
    for one, its in ((model, vectors), (again, resumed)):
        take_steps(one, its, rank, size, gather=gather)
        if its.gathered is not None:
            its.gathered.backward()
        names = one.encoder.named_parameters()
        gradients = {n: p.grad.clone() for n, p in names if p.grad is not None}
        found.append({"gradients": gradients, "cache": its.cache})
    return found


def take_steps(model: Any, vectors: Any, rank: int, size: int, *, gather: bool) -> None:
    """Add up the gradients of a step, without changing the weights."""
    model.zero_grad()
    weights = weight_tensor(FACTS, two_scenario_project().scenarios)
    module = wrap(Forward(model, vectors), some_unused=False)
    accumulate(module, FACTS, batches_of(rank, size), weights, encode=not gather)
    if gather:
        vectors.gathered.collect()


@contextmanager
def recorded_rows() -> Iterator[dict[str, list[int]]]:
    """The numbers of the rows that `validate` scores meanwhile, by scenario."""
    seen: dict[str, list[int]] = {name: [] for name in FACTS}
    score_rows = validation.score_rows

    def recording(model: Any, vectors: Any, name: str, batches: Any) -> Iterator[Any]:
        for arrays, scores in score_rows(model, vectors, name, batches):
            seen[name] += arrays["row"].tolist()
            yield arrays, scores

    with patch.object(validation, "score_rows", recording):
        yield seen


def validate(folder: Path) -> dict[str, Any]:
    """The metrics of the validation split, and the rows that this rank scored."""
    prepared = load_prepared(str(folder / "prepared"))
    catalogues = {name: prepared.catalogue(name) for name in prepared.scenarios}
    model, vectors = build(small_model("top_k"), catalogues, prepared.scenarios)
    vectors.compute_frozen(folder / f"frozen{world()[1]}")
    vectors.refresh()
    with recorded_rows() as seen:
        metrics = validation.validate(model, vectors, prepared, "valid")
    return {"metrics": metrics, "rows": seen}


def run_rank(folder: Path, rank: int, size: int) -> None:
    """Run a rank and write what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{size}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SECONDS),
    )
    found: dict[str, Any] = {"validation": validate(folder)}
    if size == 2:
        found["steps"] = {mode: step(mode, rank, size, folder) for mode in MODES}
        found["resumed"] = {
            name: resumed_gradients(rank, size, folder, gather=name == "gather")
            for name in ("gather", "own")
        }
    torch.save(found, folder / f"rank{rank}of{size}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(folder: Path, size: int) -> bool:
    """Whether all ranks end well and in time; the first that does not ends the others."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(folder, r, size)) for r in range(size)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + SECONDS
    running = ranks
    while running and time.monotonic() < deadline:
        wait([p.sentinel for p in running], timeout=1)
        running = [p for p in ranks if p.exitcode is None]
        if any(p.exitcode for p in ranks):
            break
    for process in running:
        process.kill()
        process.join()
    return all(p.exitcode == 0 for p in ranks)


def main(folder: str, *sizes: str) -> int:
    """Run the ranks of each size; returns the exit code."""
    return 0 if all(run_ranks(Path(folder), int(size)) for size in sizes) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
