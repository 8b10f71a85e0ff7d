"""What is lost when a worker, a node, the job or the storage fails, and when does training go on?

    python -m benchmarks.faults [--quick] [--seeds 3] [--out FILE]

A Ray of three nodes on this machine: a head without workers, and two nodes with one each. For every
seed, a small run is trained undisturbed, and once more with every fault at a random step, one after
another (`benchmarks/faulty.py`). The top layer of its encoder learns from gathered gradients. Then
a run of one or two workers loses a node for good. `--quick` is one seed. The rows that count are
those of the last time that a step was made:

    rows_lost, rows_twice       against the undisturbed run's, step by step
    weight_difference           largest of the final weights, relative to the largest weight
    FAULT.seconds               until a step was made again
    FAULT.steps_again           steps that were made a second time
    elastic.rows_again          rows replayed with another number of workers
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from ray.cluster_utils import Cluster
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks.common import TOP, write_result
from benchmarks.faulty import Plan
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.cluster import local_environment

KINDS = {
    "step": "worker killed in a step",
    "validation": "worker killed in validation",
    "upload": "worker killed while it stores a checkpoint",
    "storage": "storage fails three times",
    "notice": "node preempted, with notice",
    "node": "node lost, another added",
    "job": "job killed and submitted again",
}
EPOCHS, STEPS, BATCH, CHECKPOINT_STEPS = 6, 30, 96, 20
PATIENCE = 500.0  # seconds for a run
NOTICE_SECONDS = 30

Record = dict[str, Any]


def small_project(num_workers: int | list[int]) -> Project:
    """The quickstart's project with a small generated world, a small model and short epochs."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml").dump()
    tree["sample_world"] |= {"users": 200, "items": 60, "events": 2500}
    tree["model"] |= {"width": 16, "hidden": [32, 16], "head_hidden": 8}
    tree["model"]["encoder"] |= {"trainable": "top_k", "top_k": 1, "max_tokens": 16}
    tree["training"] |= {
        "epochs": EPOCHS, "batch_size": BATCH, "rows_per_epoch": BATCH * STEPS, "patience": EPOCHS,
        "alpha": 0.5,
    }  # fmt: skip
    tree["run"] |= {
        "num_workers": num_workers, "checkpoint_steps": CHECKPOINT_STEPS, "max_failures": 8,
    }  # fmt: skip
    return parse_project(tree)


# --- a cluster that can be harmed ------------------------------------------------------------


class Nodes:
    """A head without workers and two nodes of one worker each."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1",
                "dashboard_port": free_port(),
            },
        )  # fmt: skip
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def add(self) -> None:
        """Another node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def lose(self, number: int) -> None:
        """End a node with SIGKILL."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def warn(self, number: int) -> None:
        """Tell Ray that a node is about to be preempted."""
        words = {
            "address": self.cluster.address,
            "node-id": self.nodes[number].node_id,
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "a planned fault",
            "deadline-remaining-seconds": str(NOTICE_SECONDS),
        }
        options = [word for key, value in words.items() for word in (f"--{key}", value)]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *options],
                       check=True)  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def harmed_cluster() -> Iterator[Nodes]:
    """Such a cluster, to which jobs of this process's environment connect."""
    with local_environment():
        os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.cluster.shutdown()


# --- a run with faults -----------------------------------------------------------------------


@dataclass
class Attempt:
    """A run in its folder, whose job may be started several times."""

    project: Project
    folder: Path
    faults: Sequence[Record] = ()
    job: "subprocess.Popen[bytes] | None" = None
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        for name in ("fired", "rows"):
            (self.folder / "plan" / name).mkdir(parents=True)
        (self.folder / "plan" / "plan.json").write_text(json.dumps(list(self.faults)))
        (self.folder / "project.yaml").write_text(yaml.safe_dump(self.project.dump()))
        self.plan = Plan(self.folder / "plan")

    def start(self) -> None:
        """Start the job, its output in a file."""
        words = [self.folder / "project.yaml", self.folder, self.plan.folder]
        with (self.folder / "out.txt").open("ab") as out:
            self.job = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.faulty", *map(str, words)],
                cwd=TOP, stdout=out, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(TOP)},
            )  # fmt: skip

    def running(self) -> bool:
        """Whether the job is still to end.

        Raises:
            RuntimeError: it failed.
        """
        assert self.job is not None
        code = self.job.poll()
        if code:
            raise RuntimeError(f"the job ended with {code}:\n{self.output()[-3000:]}")
        return code is None

    def output(self) -> str:
        """What its jobs printed."""
        return (self.folder / "out.txt").read_text()

    def records(self) -> list[Record]:
        """What the ranks' processes noted, in the order of time."""
        found = [
            {"process": path.stem, **json.loads(line)}
            for path in (self.plan.folder / "rows").iterdir()
            for line in path.read_text().splitlines()
        ]
        return sorted(found, key=lambda r: r["time"])

    def weights(self) -> dict[str, np.ndarray]:
        """Those of the last checkpoint."""
        joint = self.folder / self.project.run.name / "joint"
        last = max(path for path in joint.glob("checkpoint_*") if path.is_dir())
        return load_file(last / "model.safetensors")


def run(attempt: Attempt, nodes: Nodes, seed: int) -> None:
    """Start the job, do to it what the plan wants from outside, and wait until it ends."""
    rng = np.random.default_rng(seed)
    attempt.start()
    ends = time.monotonic() + PATIENCE
    try:
        while attempt.running():
            if time.monotonic() > ends:
                raise TimeoutError(f"no end after {PATIENCE:g} s:\n{attempt.output()[-3000:]}")
            harm(attempt, nodes, rng)
            time.sleep(0.05)
    finally:
        if attempt.job:
            attempt.job.kill()
            attempt.job.wait()


def harm(attempt: Attempt, nodes: Nodes, rng: np.random.Generator) -> None:
    """The fault from outside that is due, if there is one."""
    plan, step = attempt.plan, attempt.plan.at("step")
    for kind in ("notice", "node", "lost", "job"):
        number = plan.due(kind, step)
        if number is None:
            continue
        if kind == "job":
            assert attempt.job is not None
            plan.fire(number)
            attempt.job.send_signal(signal.SIGKILL)
            attempt.job.wait()
            attempt.start()
            return
        victim = int(rng.integers(len(nodes.nodes)))
        if kind == "notice":
            give_notice(plan, nodes, victim)
        plan.fire(number)
        nodes.lose(victim)
        if kind != "lost":
            nodes.add()


def give_notice(plan: Plan, nodes: Nodes, victim: int) -> None:
    """Tell Ray that a node is about to go, and leave the time for a checkpoint."""
    reported = plan.at("reported")
    nodes.warn(victim)
    wait_for(lambda: plan.at("reported") > reported)
    time.sleep(3)  # Ray Train looks for checkpoints every two seconds


def wait_for(condition: Any, seconds: float = 30) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(0.05)


def plan_faults(kinds: Sequence[str], seed: int) -> list[Record]:
    """Faults in a random order, at random steps and ranks, all before the last epoch."""
    rng = np.random.default_rng(seed)
    each = (EPOCHS - 2) * STEPS / len(kinds)
    return [
        {
            "kind": kinds[k],
            "step": int(rng.integers(int(each * i) + 3, int(each * (i + 1)) + 3)),
            "rank": int(rng.integers(2)),
        }
        for i, k in enumerate(rng.permutation(len(kinds)))
    ]


# --- what was lost ---------------------------------------------------------------------------


def counted(records: Sequence[Record]) -> dict[int, dict[str, Counter[int]]]:
    """By step, the rows of each scenario of the last time that it was made."""
    last: dict[tuple[int, int], Record] = {}
    for record in records:
        last[record["step"], record["rank"]] = record
    found: dict[int, dict[str, Counter[int]]] = {}
    for (step, rank), record in last.items():
        newest = max(
            (r for (s, _), r in last.items() if s == step), key=lambda r: r["time"]
        )  # of another number of ranks, perhaps
        if rank >= newest["size"]:
            continue
        rows = found.setdefault(step, {})
        for name, own in record["rows"].items():
            rows.setdefault(name, Counter()).update(own)
    return found


def totals(by_step: dict[int, dict[str, Counter[int]]]) -> dict[str, Counter[int]]:
    """How often each row of each scenario counted."""
    found: dict[str, Counter[int]] = {}
    for rows in by_step.values():
        for name, own in rows.items():
            found.setdefault(name, Counter()).update(own)
    return found


def went_on(fault: Record, happened: float, records: Sequence[Record]) -> dict[str, float]:
    """Seconds until a step was made after a fault, and steps that were made again."""
    before = [r for r in records if r["time"] <= happened]
    old = {r["process"] for r in before} if fault["kind"] != "storage" else set()
    after = [r for r in records if r["time"] > happened and r["process"] not in old]
    furthest = max(r["step"] for r in records if r["time"] < after[0]["time"])
    again = 0 if fault["kind"] == "storage" else furthest + 1 - after[0]["step"]
    return {
        "seconds": after[0]["time"] - happened,
        "steps_again": max(again, 0),
        "step": after[0]["step"],
    }


def weight_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Largest difference of the weights over the largest weight."""
    largest = max(float(np.abs(v).max()) for v in first.values())
    return max(float(np.abs(v - second[k]).max()) for k, v in first.items()) / largest


def faults_of(attempt: Attempt) -> list[Record]:
    """What each fault of a run cost."""
    records = attempt.records()
    found = []
    for number, fault in enumerate(attempt.faults):
        path = attempt.plan.folder / "fired" / str(number)
        if not path.exists():
            raise RuntimeError(f"the fault {fault} never happened")
        found.append(fault | went_on(fault, float(path.read_text()), records))
    return found


def compare(disturbed: Attempt, undisturbed: Attempt) -> dict[str, float]:
    """Rows lost and taken twice, step by step, and the difference of the final weights."""
    mine, theirs = counted(disturbed.records()), counted(undisturbed.records())
    if sorted(mine) != sorted(theirs):
        raise RuntimeError(f"{len(mine)} steps against {len(theirs)}")
    lost = twice = 0
    for step, rows in theirs.items():
        for name, own in rows.items():
            lost += (own - mine[step][name]).total()
            twice += (mine[step][name] - own).total()
    return {
        "rows_lost": lost,
        "rows_twice": twice,
        "weight_difference": weight_difference(undisturbed.weights(), disturbed.weights()),
    }


def uneven_rows(by_step: dict[int, dict[str, Counter[int]]], num_rows: dict[str, int]) -> int:
    """Rows that counted once less, or once more, than a scenario's whole passes allow."""
    uneven = 0
    for name, counts in totals(by_step).items():
        passes = counts.total() // num_rows[name]
        every = [counts[row] for row in counts] + [0] * (num_rows[name] - len(counts))
        uneven += sum(c < passes or c > passes + 1 for c in every)
    return uneven


# --- the benchmark ---------------------------------------------------------------------------


def prepared_attempt(
    prepared: Path, folder: Path, num_workers: int | list[int], faults: Sequence[Record] = ()
) -> Attempt:
    """A run on a copy of the prepared data."""
    project = small_project(num_workers)
    shutil.copytree(prepared, folder / project.run.name / "prepared")
    return Attempt(project, folder, faults)


def one_seed(nodes: Nodes, prepared: Path, folder: Path, seed: int) -> Record:
    """An undisturbed run, and one with all faults."""
    undisturbed = prepared_attempt(prepared, folder / "undisturbed", 2)
    run(undisturbed, nodes, seed)
    faults = plan_faults(list(KINDS), seed)
    disturbed = prepared_attempt(prepared, folder / "disturbed", 2, faults)
    run(disturbed, nodes, seed)
    return {
        "seed": seed, **compare(disturbed, undisturbed), "faults": faults_of(disturbed),
        "uneven_rows": uneven_rows(counted(disturbed.records()), num_rows(disturbed)),
    }  # fmt: skip


def elastic(nodes: Nodes, prepared: Path, folder: Path, seed: int) -> Record:
    """A run of one or two workers that loses a node for good; the node comes back afterwards."""
    fault = {"kind": "lost", "step": 50 + seed, "rank": 0}
    attempt = prepared_attempt(prepared, folder / "elastic", [1, 2], [fault])
    run(attempt, nodes, seed)
    nodes.add()
    found = faults_of(attempt)[0]
    by_step = counted(attempt.records())
    sizes = [r["size"] for r in attempt.records()]
    return found | {
        "rows_again": found["steps_again"] * BATCH, "workers": [sizes[0], sizes[-1]],
        "uneven_rows": uneven_rows(by_step, num_rows(attempt)), "steps": len(by_step),
    }  # fmt: skip


def num_rows(attempt: Attempt) -> dict[str, int]:
    """Training rows by scenario, as the job's last line tells."""
    line = json.loads(attempt.output().splitlines()[-1])
    return {name: rows["available"] for name, rows in line["rows"].items()}


def measure(folder: Path, seeds: int) -> tuple[list[Record], list[Record]]:
    """The records of every seed: all faults, and the elastic run."""
    project = small_project(2)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    (folder / "project.yaml").write_text(yaml.safe_dump(project.dump()))
    subprocess.run(
        [sys.executable, "-m", "jobs.prepare", "--config", str(folder / "project.yaml"),
         "--storage", str(folder)],
        cwd=TOP, env=environment | {"PYTHONPATH": str(TOP)}, check=True, capture_output=True,
    )  # fmt: skip
    prepared = folder / project.run.name / "prepared"
    runs, elastics = [], []
    with harmed_cluster() as nodes:
        for seed in range(seeds):
            runs.append(one_seed(nodes, prepared, folder / str(seed), seed))
            print(json.dumps(runs[-1]), flush=True)
            elastics.append(elastic(nodes, prepared, folder / str(seed), seed))
            print(json.dumps(elastics[-1]), flush=True)
    return runs, elastics


def figures_of(runs: Sequence[Record], elastics: Sequence[Record]) -> dict[str, float]:
    """Flat figures: worst over seeds of what was lost, means of what a fault cost."""
    found = {
        key: max(r[key] for r in runs)
        for key in ("rows_lost", "rows_twice", "uneven_rows", "weight_difference")
    }
    for kind in KINDS:
        own = [f for r in runs for f in r["faults"] if f["kind"] == kind]
        found[f"{kind}.seconds"] = float(np.mean([f["seconds"] for f in own]))
        found[f"{kind}.steps_again"] = max(f["steps_again"] for f in own)
    for key in ("rows_again", "uneven_rows"):
        found[f"elastic.{key}"] = max(e[key] for e in elastics)
    found["elastic.seconds"] = float(np.mean([e["seconds"] for e in elastics]))
    return found


def table_of(figures: dict[str, float]) -> list[dict[str, str]]:
    """A row for each fault."""
    lost = f"{figures['rows_lost']:.0f} / {figures['rows_twice']:.0f}"
    rows = [
        {
            "fault": text,
            "rows lost / taken twice": lost,
            "steps made again": f"{figures[f'{kind}.steps_again']:.0f}",
            "training went on after": f"{figures[f'{kind}.seconds']:.0f} s",
        }
        for kind, text in KINDS.items()
    ]
    again = f"{figures['elastic.rows_again'] / BATCH:.0f}"
    rows.append(
        {
            "fault": "node lost for good, `num_workers: [1, 2]`",
            "rows lost / taken twice": f"{figures['elastic.uneven_rows']:.0f} / 0",
            "steps made again": again,
            "training went on after": f"{figures['elastic.seconds']:.0f} s",
        }
    )
    return rows


def main(
    quick: Annotated[bool, typer.Option(help="One seed.")] = False,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
) -> None:
    """Harm runs and write what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        runs, elastics = measure(Path(folder), 1 if quick else seeds)
    figures = figures_of(runs, elastics)
    table = table_of(figures)
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("faults", figures, out, table=table, runs=runs, elastic=elastics)


if __name__ == "__main__":
    typer.run(main)
