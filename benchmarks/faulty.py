"""A train job that fails where a plan says so, and notes the rows that it takes: for `faults.py`.

    python -m benchmarks.faulty PROJECT.yaml STORAGE PLAN

The plan is a folder:

    plan.json       faults in their order: {"kind": .., "step": .., "rank": ..}
    fired/I         the I-th fault happened, at the time inside
    rows/*.jsonl    of each process of a rank: time, step, rank, ranks, rows by scenario
    step            the step that rank 0 is at
    reported        the step of the last checkpoint that rank 0 handed over

A fault happens at the first occasion from its step on, once all before it have happened. Those of
the kinds `step`, `validation` and `upload` end a process of a rank with SIGKILL, before the weights
change, before its scores are gathered, and after half of a checkpoint's files are stored.
`storage` lets the storage fail three times. Other kinds are those of `faults.py`.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.fs as pafs

from mtrec_ray.project.load import load_project
from mtrec_ray.stages import ray_context, train
from mtrec_ray.training import loop
from mtrec_ray.training.batches import BatchComposer
from mtrec_ray.training.collectives import world
from mtrec_ray.training.run import RankRun

FAILURES = 3  # of the storage, in a row
PAUSE = 0.05  # seconds after each step: in time for a fault from outside to come within the run


class Plan:
    """The plan's folder, as a process sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text())

    def due(self, kind: str, step: int, rank: int | None = None) -> int | None:
        """The number of the next fault, if it is of this kind and its time has come."""
        number = len(list((self.folder / "fired").iterdir()))
        if number == len(self.faults):
            return None
        fault = self.faults[number]
        mine = rank is None or fault["rank"] == rank
        return number if fault["kind"] == kind and mine and step >= fault["step"] else None

    def fire(self, number: int) -> None:
        """Note that a fault happens now."""
        (self.folder / "fired" / str(number)).write_text(repr(time.time()))

    def at(self, what: str) -> int:
        """The number in a file of the folder, 0 where there is none yet."""
        path = self.folder / what
        return int(path.read_text() or 0) if path.exists() else 0


def die(plan: Plan, number: int) -> None:
    """End this process as the kernel does when memory is short."""
    plan.fire(number)
    os.kill(os.getpid(), signal.SIGKILL)


def faulty_worker(folder: str, config: dict[str, Any]) -> dict[str, Any]:
    """What a Ray Train worker runs, with the plan's faults in it."""
    plan = Plan(Path(folder))
    at: dict[str, Any] = {"step": 0, "rows": {}}
    note_rows(plan, plan.folder / "rows" / f"{os.getpid()}.jsonl", at)
    note_reports(plan)
    fail_in_step(plan)
    fail_in_validation(plan, at)
    fail_in_upload(plan, at)
    return train.train_worker(config)


def note_rows(plan: Plan, path: Path, at: dict[str, Any]) -> None:
    """Note the rows of each step once it is done."""
    take, train_step = BatchComposer.next_batch, RankRun.train_step

    def noting_take(feed: BatchComposer) -> Any:
        found = take(feed)
        for name, rows in found.items():
            at["rows"].setdefault(name, []).extend(rows["row"].tolist())
        return found

    def noting_step(run: RankRun) -> Any:
        at.update(step=run.progress.step, rows={})
        result = train_step(run)
        line = {"time": time.time(), "size": run.size, "rank": run.rank, **at}
        with path.open("a") as notes:
            notes.write(json.dumps(line) + "\n")
        if run.rank == 0:
            (plan.folder / "step").write_text(str(run.progress.step))
        time.sleep(PAUSE)
        return result

    mock.patch.object(BatchComposer, "next_batch", noting_take).start()
    mock.patch.object(RankRun, "train_step", noting_step).start()


def note_reports(plan: Plan) -> None:
    """Note the step of each checkpoint that was handed over."""
    report = ray_context.RayTrainContext.report

    def noting_report(
        host: ray_context.RayTrainContext, metrics: dict[str, Any], folder: Path | None
    ) -> None:
        report(host, metrics, folder)
        if folder:
            (plan.folder / "reported").write_text(str(metrics["step"]))

    mock.patch.object(ray_context.RayTrainContext, "report", noting_report).start()


def fail_in_step(plan: Plan) -> None:
    """Die after the gradient was computed and before the weights change."""
    learn = RankRun.learn

    def failing_learn(run: RankRun, result: Any) -> None:
        number = plan.due("step", run.progress.step, run.rank)
        if number is not None:
            die(plan, number)
        learn(run, result)

    mock.patch.object(RankRun, "learn", failing_learn).start()


def fail_in_validation(plan: Plan, at: dict[str, Any]) -> None:
    """Die when the rows were trained and before the scores are gathered."""
    validate = loop.validate

    def failing_validate(*args: Any) -> Any:
        number = plan.due("validation", at["step"], world()[0])
        if number is not None:
            die(plan, number)
        return validate(*args)

    mock.patch.object(loop, "validate", failing_validate).start()


def fail_in_upload(plan: Plan, at: dict[str, Any]) -> None:
    """Die with half a checkpoint stored; or let the storage fail for a while."""
    copy_files, left = pafs.copy_files, {"storage": 0}

    def failing_copy(source: str, target: str, **more: Any) -> None:
        number = plan.due("upload", at["step"])
        if number is not None:
            first = min(Path(source).iterdir())
            copy_files(str(first), f"{target}/{first.name}", **more)
            die(plan, number)
        number = plan.due("storage", at["step"])
        if number is not None:
            plan.fire(number)
            left["storage"] = FAILURES
        if left["storage"]:
            left["storage"] -= 1
            raise OSError("the storage does not answer (a planned fault)")
        copy_files(source, target, **more)

    mock.patch.object(pafs, "copy_files", failing_copy).start()


def main() -> None:
    """Train as the train job does."""
    config, storage, plan = sys.argv[1:]
    from benchmarks.faulty import faulty_worker as worker  # pickled by its name, not by value

    mock.patch.object(train, "train_worker", partial(worker, plan)).start()
    summary = train.run_train(load_project(config), storage, lambda text: print(text, flush=True))
    print(json.dumps({"rows": summary["rows"], "steps": summary["steps"]}))


if __name__ == "__main__":
    main()
