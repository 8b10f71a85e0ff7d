"""How fast are statistics and histories computed, and does the cost grow with the rows alone?

    python -m benchmarks.prepare [--quick] [--rows 1000000 --rows 4000000 ...] [--out FILE]

A generated log of clicks and purchases is prepared, once as the project does it, and once by a
script of polars that computes the same columns and writes them (`benchmarks/by_hand.py`). The log
has 50 rows a user and always the same catalogue, so that the rows of an item and of a brand grow
with the log. For each number of rows:

    ROWS.rows_per_s             rows over seconds of the passes that read the log, add statistics
                                and histories, and write the shards
    ROWS.whole_rows_per_s       rows over seconds of the whole stage: tokens, scan and audit, too
    ROWS.by_hand_rows_per_s     of the script
    ROWS.over_polars            rows_per_s over those of the script
    ROWS.peak_mb                private memory (RSS without shared pages) of the largest process
    ROWS.total_peak_mb          of all processes together
    ROWS.by_hand_peak_mb        of the script, which is one process
    ROWS.largest_difference     from the columns of the script, in some shards; histories and
                                missing numbers are equal, or the benchmark fails
    ROWS.rows_compared          rows of these shards
    peak_mb_LARGEx_over_1x      peak_mb of the most rows over that of the fewest
    rate_LARGEx_over_1x         the same of rows_per_s: 1 where the cost grows like the rows
"""

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from benchmarks import by_hand
from benchmarks.common import TOP, write_result
from mtrec_ray.data import storage as files
from mtrec_ray.data.prepared import PreparedScenario, load_prepared
from mtrec_ray.data.shards import read_columns
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.stages.prepare import run_prepare

SIZES = (1_000_000, 4_000_000, 16_000_000)
QUICK = (20_000, 40_000)
NUM_ITEMS, NUM_BRANDS = 20_000, 200
ROWS_PER_USER = 50
DAYS = 90
START_MS = 1_735_689_600_000  # 2025-01-01
DAY_MS = by_hand.DAY_MS
POPULARITY_SKEW = 1.7  # rank = uniform ** skew, as in the sample world
GROUP = 50_000
EVERY = 0.25  # seconds between two looks at the processes
SHARDS_COMPARED = 8


# --- the log ---------------------------------------------------------------------------------


def write_log(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write a log, sorted by time, no two rows at one moment, and its items."""
    rng = np.random.default_rng([seed, num_rows])
    number = np.arange(NUM_ITEMS)
    brand = (NUM_BRANDS * rng.random(NUM_ITEMS) ** POPULARITY_SKEW).astype(np.int64)
    items = {"item_id": number, "title": [f"item {i}" for i in number], "brand": brand}
    pq.write_table(pa.table(items), folder / "items.parquet")
    span = DAYS * DAY_MS - num_rows
    time_ms = START_MS + np.sort(rng.integers(0, span, num_rows)) + np.arange(num_rows)
    with pq.ParquetWriter(folder / "events.parquet", schema()) as writer:
        for begin in range(0, num_rows, GROUP):
            part = draw(rng, time_ms[begin : begin + GROUP], max(num_rows // ROWS_PER_USER, 1))
            writer.write_table(pa.table(part, schema()), row_group_size=GROUP)


def schema() -> pa.Schema:
    """The columns of the log."""
    kinds = {"user_id": pa.int64(), "item_id": pa.int64(), "time": pa.timestamp("ms")}
    return pa.schema(kinds | dict.fromkeys(by_hand.DELAYS, pa.float32()))


def draw(rng: np.random.Generator, time_ms: np.ndarray, num_users: int) -> dict[str, pa.Array]:
    """Rows at some moments: any user, a popular item more often, a purchase after a click."""
    num = len(time_ms)
    item = (NUM_ITEMS * rng.random(num) ** POPULARITY_SKEW).astype(np.int64)
    click = rng.random(num) < 0.2 + 0.2 * (item % 7 == 0)
    return {
        "user_id": pa.array(rng.integers(0, num_users, num)),
        "item_id": pa.array(item),
        "time": pa.array(time_ms, pa.timestamp("ms")),
        "click": pa.array(click.astype(np.float32)),
        "buy": pa.array((rng.random(num) < 0.2).astype(np.float32), mask=~click),
    }


def project_of(folder: Path) -> Project:
    """A project of the log alone, with the encoder of the quickstart."""
    tree = load_project(TOP / "jobs" / "quickstart.yaml").dump()
    days = (f"2025-03-{day}T00:00:00" for day in (12, 22))
    shop = {
        "items": {"path": "items.parquet", "text": "{title}", "categorical": ["brand"]},
        "events": {"path": "events.parquet", "time": "time"},
        "split": {"time": list(days)},
        "history": {"of": "click", "last": by_hand.LAST},
        "tasks": {
            "click": {"kind": "binary"},
            "buy": {"kind": "binary", "given": "click", "delay": f"{by_hand.DELAYS['buy']}d"},
        },
    }
    tree |= {"root": str(folder), "sample_world": None, "scenarios": {"shop": shop}}
    tree["run"] |= {"name": "prepare"}
    return parse_project(tree)


# --- both ways -------------------------------------------------------------------------------


def prepare_here(folder: str) -> dict[str, float]:
    """Prepare the log in this process; returns seconds of the whole and of its passes."""
    moments: dict[str, float] = {}

    def note(text: str) -> None:
        moments[text] = time.monotonic()

    started = time.monotonic()
    run_prepare(project_of(Path(folder)), folder, note)
    passes = moments["leakage audit"] - moments["statistics, histories and shards"]
    return {"whole": time.monotonic() - started, "passes": passes}


def by_hand_here(folder: str, priors: Mapping[str, float]) -> dict[str, float]:
    """Run the script in this process; returns its seconds, without those of the import."""
    by_hand.library()
    started = time.monotonic()
    log, items, out = (f"{folder}/{name}.parquet" for name in ("events", "items", "by_hand"))
    by_hand.write(log, items, priors, out)
    return {"whole": time.monotonic() - started}


def call_and_write(function: Callable[..., Any], out: Path, arguments: tuple[Any, ...]) -> None:
    """Write what a function returns."""
    out.write_text(json.dumps(function(*arguments)))


def watched(
    function: Callable[..., dict[str, float]], folder: Path, *arguments: Any
) -> tuple[dict[str, float], float, float]:
    """What a function returns that runs in a process of its own, and its memory.

    Returns:
        Its result; private MB of the largest of its processes at their peak, and of all together.
    """
    out = folder / "seconds.json"
    context = multiprocessing.get_context("spawn")
    job = context.Process(target=call_and_write, args=(function, out, (str(folder), *arguments)))
    job.start()
    assert job.pid is not None
    largest = total = 0.0
    while job.is_alive():
        used = private_mb(psutil.Process(job.pid))
        largest, total = max(largest, *used, 0.0), max(total, sum(used))
        job.join(EVERY)
    if job.exitcode:
        raise RuntimeError(f"{function.__name__} ended with {job.exitcode}")
    return json.loads(out.read_text()), largest, total


def private_mb(process: psutil.Process) -> list[float]:
    """Memory of a process and of all below it, without pages that they share."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        try:
            used = one.memory_info()
        except psutil.Error:
            continue
        found.append((used.rss - used.shared) / 2**20)
    return found


def compare(folder: Path, facts: PreparedScenario, prepared: str) -> dict[str, float]:
    """Largest difference of numbers in some shards; histories are equal, or an error says where."""
    names, largest, compared = list(facts.numeric_names), 0.0, 0
    shards = [s.path for split in facts.shards.values() for s in split]
    step = max(len(shards) // SHARDS_COMPARED, 1)
    wanted = by_hand_columns(folder / "by_hand.parquet", names)
    for path in shards[::step]:
        columns = ("row", "numeric", "history", "history_age")
        for arrays in read_columns([files.join(prepared, path)], columns):
            rows = arrays["row"]
            numbers = np.stack([wanted[name][rows] for name in names], 1)
            np.testing.assert_array_equal(np.isnan(numbers), np.isnan(arrays["numeric"]))
            gap = np.nan_to_num(np.abs(numbers - arrays["numeric"]))
            largest = max(largest, float(gap.max(initial=0)))
            compared += len(rows)
            for name in ("history", "history_age"):
                np.testing.assert_array_equal(wanted[name][rows], arrays[name])
    return {"largest_difference": largest, "rows_compared": compared}


def by_hand_columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The columns of the script, nulls as the project writes them."""
    columns = {}
    for name in names:
        table = pq.read_table(path, columns=[name])
        columns[name] = table.column(name).to_numpy().astype(np.float32)
    for name, empty in (("history", -1), ("history_age", 0)):
        lists = pq.read_table(path, columns=[name]).column(name).combine_chunks()
        values = lists.flatten().fill_null(empty).to_numpy(zero_copy_only=False)
        columns[name] = values.reshape(-1, by_hand.LAST)
    return columns


def measure(num_rows: int, base: Path) -> dict[str, float]:
    """Figures of a log with so many rows."""
    folder = base / str(num_rows)
    folder.mkdir(parents=True)
    write_log(folder, num_rows)
    seconds, largest, total = watched(prepare_here, folder)
    prepared = files.join(str(folder), "prepare", "prepared")
    facts = load_prepared(prepared).scenarios["shop"]
    own, own_peak, _ = watched(by_hand_here, folder, facts.label_means)
    figures = {
        "rows_per_s": num_rows / seconds["passes"],
        "whole_rows_per_s": num_rows / seconds["whole"],
        "by_hand_rows_per_s": num_rows / own["whole"],
        "over_polars": own["whole"] / seconds["passes"],
        "peak_mb": largest,
        "total_peak_mb": total,
        "by_hand_peak_mb": own_peak,
    } | compare(folder, facts, prepared)
    shutil.rmtree(folder)
    print(num_rows, figures, flush=True)
    return figures


def table_row(num_rows: int, figures: Mapping[str, float]) -> dict[str, str]:
    """A row of the table."""
    return {
        "rows": f"{num_rows:,}",
        "rows/s": f"{figures['rows_per_s']:,.0f}",
        "whole stage": f"{figures['whole_rows_per_s']:,.0f}",
        "polars": f"{figures['by_hand_rows_per_s']:,.0f}",
        "over polars": f"{figures['over_polars']:.2f}",
        "peak MB": f"{figures['peak_mb']:,.0f}",
        "peak MB of polars": f"{figures['by_hand_peak_mb']:,.0f}",
    }


def main(
    quick: Annotated[bool, typer.Option(help="Few rows.")] = False,
    rows: Annotated[list[int] | None, typer.Option(help="Rows of a log; many times.")] = None,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    storage: Annotated[str, typer.Option(help="Folder of the logs and of what is made.")] = "",
) -> None:
    """Prepare logs of each size, both ways."""
    sizes = rows or (QUICK if quick else SIZES)
    base = Path(storage or tempfile.mkdtemp())
    found = {num: measure(num, base) for num in sizes}
    figures = {f"{num}.{key}": v for num, own in found.items() for key, v in own.items()}
    few, many = found[min(sizes)], found[max(sizes)]
    times = f"{max(sizes) // min(sizes)}x_over_1x"
    figures[f"peak_mb_{times}"] = many["peak_mb"] / few["peak_mb"]
    figures[f"rate_{times}"] = many["rows_per_s"] / few["rows_per_s"]
    figures |= {key: many[key] for key in ("rows_per_s", "over_polars")}  # of the most rows
    table = [table_row(num, own) for num, own in found.items()]
    write_result("prepare", figures, out, table=table, sizes=list(sizes))


if __name__ == "__main__":
    typer.run(main)
