"""The tables of README.md and of the pages beside the code: `python -m benchmarks.tables`.

A table stands between `<!-- NAME -->` and `<!-- end -->`, followed by the command, the commit and
the date of its result. What a table says is written by hand beside it (`sentences.py`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.beside import LEFT_OUT
from benchmarks.common import RESULTS, TOP
from mtrec_ray.report.fields import fields_table
from mtrec_ray.report.tables import markdown_table

Result = Mapping[str, Any]
Row = Mapping[str, object]

PAGES = [TOP / p for p in ("README.md", "benchmarks/README.md", "jobs/README.md")]
ALONE = ("alone", "joint less alone")


def plain(result: Result) -> Sequence[Row]:
    """The table as the benchmark wrote it."""
    return result["table"]


def without(rows: Sequence[Row], columns: Sequence[str]) -> Sequence[Row]:
    """Rows without some columns."""
    return [{k: v for k, v in row.items() if k not in columns} for row in rows]


def headline(result: Result) -> Sequence[Row]:
    """The first task of each scenario of real4: the joint model, and LightGBM."""
    return [
        headline_row(str(row["task"]), result["figures"]) for row in first_tasks(result["table"])
    ]


def headline_row(task: str, figures: Mapping[str, float]) -> Row:
    """A row of `headline`."""
    own = {m: figures[f"{task}.{m}"] for m in ("joint", "trees", "lightgbm_here", "reference")}
    low, high = (figures[f"{task}.less_trees_{end}"] for end in ("low", "high"))
    return {
        "first task": task,
        "joint": f"{own['joint']:.4f}",
        "LightGBM": f"{own['trees']:.4f}",
        "joint less LightGBM [95 % interval]": (
            f"{own['joint'] - own['trees']:+.4f} [{low:+.4f}, {high:+.4f}]"
        ),
        "all but the network": f"{own['lightgbm_here']:.4f}",
        "B0-B4": f"{own['reference']:.4f}",
    }


def first_tasks(table: Sequence[Row]) -> Sequence[Row]:
    """The rows of each scenario's first task."""
    firsts = {str(row["task"]).partition(".")[0]: row for row in reversed(table)}
    return list(reversed(firsts.values()))


def real4(result: Result) -> Sequence[Row]:
    """The joint model beside all others."""
    return without(result["table"], ALONE)


def alone(result: Result) -> Sequence[Row]:
    """Joint beside each scenario alone; bold is the better of these two."""
    return [alone_row(row, result["figures"]) for row in result["table"]]


def alone_row(row: Mapping[str, str], figures: Mapping[str, float]) -> Row:
    """A row of `alone`."""
    task = row["task"]
    metric = "auc" if f"{task}.auc" in figures else "rmse"
    gap = round(figures[f"{task}.{metric}"], 4) - round(figures[f"{task}.alone.{metric}"], 4)
    cells = {m: row[m].strip("*") for m in ("joint", "alone")}
    if gap:  # equal as shown: neither is bold
        winner = "joint" if (gap > 0) == (metric == "auc") else "alone"
        cells[winner] = f"**{cells[winner]}**"
    return {"task": task, **cells, ALONE[1]: row[ALONE[1]]}


def cosines(result: Result) -> Sequence[Row]:
    """Mean over seeds of the gradients' cosines after the last epoch."""
    last = [curve[-1] for curve in result["gradient_cosine"].values()]
    return [
        {"scenarios": pair, "cosine": f"{sum(c[pair] for c in last) / len(last):+.2f}"}
        for pair in last[0]
    ]


def ranking(result: Result) -> Sequence[Row]:
    """Recall and NDCG of the quickstart over the catalogue."""
    figures = result["figures"]
    columns = [(t, m) for t in ("recall", "ndcg") for m in ("list", "popularity", "rival")]
    heads = {"list": "list", "popularity": "popularity", "rival": "best rival"}
    return [
        {"scenario": name}
        | {f"{t}@20 {heads[m]}": f"{figures[f'{name}.{t}.{m}']:.4f}" for t, m in columns}
        for name in dict.fromkeys(row["scenario"] for row in result["table"])
    ]


def encoder(result: Result) -> Sequence[Row]:
    """The variants on the first cell: items, history and precision as in the first row."""
    same = ("items", "history", "precision")
    first = [result["table"][0][k] for k in same]
    return without([row for row in result["table"] if [row[k] for k in same] == first], same)


def ingest(result: Result) -> Sequence[Row]:
    """Both ways to feed a worker."""
    return [ingest_row(kind, result["figures"]) for kind in ("object_store", "stream")]


def ingest_row(kind: str, figures: Mapping[str, float]) -> Row:
    """A row of `ingest`."""
    return {
        "fed from": f"`cache: {kind}`",
        "rows/s": f"{figures[f'{kind}.rows_per_s']:,.0f}",
        "over DataLoader": f"{figures[f'{kind}.over_dataloader']:.1f}",
        "first batch": f"{figures[f'{kind}.first_batch_s']:.1f} s",
        "pause between passes": f"{1000 * figures[f'{kind}.pause_between_passes_s']:.0f} ms",
        "waiting in training": f"{figures[f'{kind}.data_wait_share']:.1%}",
    }


def memory(result: Result) -> Sequence[Row]:
    """Peak memory of the largest process of each kind, by size of the data."""
    figures = result["figures"]
    kinds = {"training worker": "workers", "reading task": "readers", "job": "driver"}
    return [
        {"data": f"{n}x: {figures[f'{n}x.rows']:,.0f} rows, {figures[f'{n}x.rows_mb']:.0f} MB"}
        | {k: f"{figures[f'{n}x.{v}.peak_rss_mb']:,.0f} MB" for k, v in kinds.items()}
        for n in (1, 4, 16)
    ]


def ray_cost(result: Result) -> Sequence[Row]:
    """Ray Train beside torchrun."""
    return [ray_cost_row(ranks, result["figures"]) for ranks in (1, 2)]


def ray_cost_row(ranks: int, figures: Mapping[str, float]) -> Row:
    """A row of `ray_cost`."""
    own = {k.partition(".")[2]: v for k, v in figures.items() if k.startswith(f"{ranks}.")}
    return {
        "ranks": ranks,
        "Ray Train": f"{own['ray_rows_per_s']:,.0f} rows/s",
        "`torchrun`": f"{own['torchrun_rows_per_s']:,.0f} rows/s",
        "ratio": f"{own['ray_over_torchrun']:.3f}",
        "of medians": f"{own['ray_over_torchrun_median']:.3f}",
        "Ray's other processes": f"{own['ray_cores']:.2f} cores",
        "first step": f"{own['ray_start_s']:.0f} s, {own['torchrun_start_s']:.0f} s",
    }


def fanout(result: Result) -> Sequence[Row]:
    """Time and storage of scenarios that are fine-tuned side by side."""
    figures = result["figures"]
    return [
        {
            "scenarios": f"{figures['k']:.0f}",
            "one after another": f"{figures['serial_seconds']:.0f} s",
            "side by side": f"{figures['parallel_seconds']:.0f} s",
            "base": f"{figures['base_megabytes']:.1f} MB",
            "encoder": f"{figures['encoder_megabytes']:.1f} MB",
            "each scenario": f"{figures['delta_megabytes']:.2f} MB",
        }
    ]


def chosen(result: Result) -> Sequence[Row]:
    """The values that a search chose, and the importance of each field."""
    values = {f: v for f, v in result["chosen"]["values"].items() if isinstance(v, int | float)}
    importance = result["importance"]
    return [
        {"field": f"`{f}`", "chosen": f"{v:.3g}", "importance": f"{importance.get(f, 0):.2f}"}
        for f, v in values.items()
    ]


def of_real4(result: Result) -> Sequence[Row]:
    """All tasks of real4; without `lightgbm_all` and `alone_all`, whose scenarios share nobody."""
    return without(result["table"], ("data", "test rows", "alone_all", "lightgbm_all"))


def shared_users(result: Result) -> Sequence[Row]:
    """The first task of each scenario whose people are in others, too."""
    return without(first_tasks(result["table"]), ("data", "B0-B4"))


def left_out(result: Result) -> Sequence[Row]:
    """Mean AUC of the first tasks, of the first seed, without each part that stands beside."""
    figures = result["figures"]
    names = {"joint_first": "joint"} | {f"without_{w}": f"without {w}" for w in LEFT_OUT}
    return [
        {"data": data} | {told: f"{figures[f'{data}.all.{m}']:.4f}" for m, told in names.items()}
        for data in dict.fromkeys(row["data"] for row in result["table"])
    ]


def adapted(result: Result) -> Sequence[Row]:
    """Cosines by themselves and the blend with them, of new items, by who taught the encoder."""
    figures = result["figures"]
    tasks = [str(row["task"]) for row in result["table"]]
    return [adapted_row(task, figures) for task in tasks if f"{task}.new.adapted" in figures]


def adapted_row(task: str, figures: Mapping[str, float]) -> Row:
    """A row of `adapted`."""
    own = {k.removeprefix(f"{task}."): v for k, v in figures.items() if k.startswith(f"{task}.")}
    versions = ("frozen", "adapted", "permuted")
    return (
        {"task": task, "rows of new items": f"{own['new.rows']:,.0f}"}
        | {f"cosine, {v}": f"{own[f'cosine.new.{v}']:.3f}" for v in versions}
        | {f"blend, {v}": f"{own[f'new.{v}']:.4f}" for v in ("without", *versions)}
        | {"cosine of all items, frozen / adapted / permuted": " / ".join(
            f"{own[f'cosine.{v}']:.3f}" for v in versions
        )}
    )  # fmt: skip


def recommend(result: Result) -> Sequence[Row]:
    """Lists from catalogues of each size, by the length of the shortlist."""
    figures = result["figures"]
    places = [key.split(".") for key in figures if key.endswith(".users_per_s")]
    return [recommend_row(size, short, figures) for size, short, _ in places]


def recommend_row(size: str, short: str, figures: Mapping[str, float]) -> Row:
    """A row of `recommend`."""
    own = {k.removeprefix(f"{size}."): v for k, v in figures.items() if k.startswith(f"{size}.")}
    return {
        "items": f"{int(size):,}",
        "shortlist": short,
        "users/s": f"{own[f'{short}.users_per_s']:,.0f}",
        "recall@20": f"{own[f'{short}.recall']:.4f}",
        "recall lost": f"{own[f'{short}.lost']:.1%}" if f"{short}.lost" in own else "-",
        "users/s, all items scored": f"{own['users_per_s_full']:,.3f}",
        "users/s, EASE": f"{own['users_per_s_ease']:,.0f}",
        "users/s, faiss": f"{own['users_per_s_faiss']:,.0f}",
        "index recall": f"{own['index_recall']:.4f}",
        "memory": f"{own['peak_mb'] / 1024:.1f} GB",
    }


def serve(result: Result) -> Sequence[Row]:
    """Requests a second and their time, of each way to answer, by catalogue and clients."""
    figures = result["figures"]
    places = [k.split(".") for k in figures if k.endswith(".requests_per_s") and ".served." in k]
    return [serve_row(size, clients, figures) for size, _, clients, _ in places]


def serve_row(size: str, clients: str, figures: Mapping[str, float]) -> Row:
    """A row of `serve`."""

    def cell(way: str) -> str:
        keys = ("requests_per_s", "p50_ms", "p99_ms")
        rate, p50, p99 = (figures[f"{size}.{way}.{clients}.{key}"] for key in keys)
        return f"{rate:,.1f} ({p50:,.0f}, {p99:,.0f} ms)"

    ways = {"service": "served", "plain FastAPI": "plain", "in process": "in_process"}
    return {
        "items": f"{int(size):,}",
        "clients": clients,
        **{f"{head}: requests/s (p50, p99)": cell(way) for head, way in ways.items()},
    }


def serve_limits(result: Result) -> Sequence[Row]:
    """Load beyond capacity, events, memory and start, by catalogue."""
    figures = result["figures"]
    sizes = [key.partition(".")[0] for key in figures if key.endswith(".beyond.refused")]
    return [serve_limits_row(size, figures) for size in sizes]


def serve_limits_row(size: str, figures: Mapping[str, float]) -> Row:
    """A row of `serve_limits`."""
    own = {k.removeprefix(f"{size}."): v for k, v in figures.items() if k.startswith(f"{size}.")}
    return {
        "items": f"{int(size):,}",
        "answered/s": f"{own['beyond.requests_per_s']:,.1f}",
        "p99 of these": f"{own['beyond.p99_ms']:,.0f} ms",
        "refused with 429": f"{own['beyond.refused']:.0%}",
        "other statuses": f"{own['beyond.other']:,.0f}",
        "events/s": f"{own['events_per_s']:,.0f}",
        "memory of the replica": f"{own['replica_mb'] / 1024:.1f} GB",
        "prepared, trained, fitted": f"{own['made_s'] / 60:.1f} min",
        "start": f"{own['start_s']:.0f} s",
    }


FAULTS = {
    "replica": "one of two replicas killed",
    "replicas": "both replicas killed at once",
    "swap": "another version takes over, and is taken back",
    "disk": "the disk of SQLite's file is full, then has room",
    "redis": "the Redis server killed, then started",
}


def serve_faults(result: Result) -> Sequence[Row]:
    """What clients of a service heard while a part of it failed."""
    figures = result["figures"]
    names = [name for name in FAULTS if f"{name}.answered" in figures]
    return [serve_faults_row(name, figures) for name in names]


def serve_faults_row(name: str, figures: Mapping[str, float]) -> Row:
    """A row of `serve_faults`."""
    counts = {
        "answered": "answered", "refused, with a hint": "refused", "no answer": "broken",
        "other status": "other", "wrong answers": "wrong", "events acknowledged": "events",
        "of these lost": "lost",
    }  # fmt: skip
    return {
        "fault": FAULTS[name],
        **{head: f"{figures[f'{name}.{key}']:,.0f}" for head, key in counts.items()},
        "longest request": f"{figures[f'{name}.longest_s']:.1f} s",
        "no answer to anybody for": f"{figures[f'{name}.pause_s']:.1f} s",
    }


# The name of a block, with its result and what makes the table's rows.
BLOCKS: dict[str, tuple[str, Callable[[Result], Sequence[Row]]]] = {
    "headline": ("shared_users_real4", headline),
    "of_real4": ("shared_users_real4", of_real4),
    "left_out": ("shared_users_real4", left_out),
    "quickstart": ("quickstart", plain),
    "quickstart_ranking": ("quickstart", ranking),
    "lists": ("ranking", plain),
    "recommend": ("recommend", recommend),
    "shared_users_anime": ("shared_users_anime", shared_users),
    "left_out_anime": ("shared_users_anime", left_out),
    "shared_users_grocery": ("shared_users_grocery", shared_users),
    "left_out_grocery": ("shared_users_grocery", left_out),
    "dials": ("dials", plain),
    "newcomer": ("newcomer", plain),
    "adapted": ("adapted", adapted),
    "prepare": ("prepare", plain),
    "real4": ("real4", real4),
    "real4_slices": ("real4", lambda result: result["slices"]),
    "real4_alone": ("real4", alone),
    "real4_cosines": ("real4", cosines),
    "ablation": ("ablation", plain),
    "features": ("features", plain),
    "joining": ("joining", lambda result: result["three_ways"]),
    "joining_curves": ("joining", lambda result: result["curves"]),
    "tune_quickstart": ("tune_quickstart", plain),
    "tune_quickstart_chosen": ("tune_quickstart", chosen),
    "tune_real4": ("tune_real4", plain),
    "tune_real4_chosen": ("tune_real4", chosen),
    "sweep": ("sweep", plain),
    "weighting": ("weighting", plain),
    "weighting_scenarios": ("weighting", lambda result: result["scenarios"]),
    "fanout": ("fanout", fanout),
    "encoder": ("encoder", encoder),
    "encoder_clusters": ("encoder", lambda result: result["clusters"]),
    "quality_speed": ("quality_speed", plain),
    "inference": ("inference", plain),
    "faults": ("faults", plain),
    "serve_faults": ("serve_faults", serve_faults),
    "ingest": ("ingest", ingest),
    "memory": ("memory", memory),
    "ray_cost": ("ray_cost", ray_cost),
}


def block(name: str) -> str:
    """A block's table and where it comes from."""
    file, rows = BLOCKS[name]
    result = json.loads((RESULTS / f"{file}.json").read_text())
    return f"{markdown_table(rows(result))}\n\n{source(result)}"


def source(result: Result) -> str:
    """Command, commit, date and machine of a result."""
    return (
        f"Reproduce with `{result['command']}`. Measured on {result['date']} at commit "
        f"`{result['commit']}`, {result['cores']} cores ({result['processor']})."
    )


def renewed(text: str) -> str:
    """A page with every block made from its result."""
    bodies = {name: block(name) for name in BLOCKS if f"<!-- {name} -->" in text}
    if "<!-- fields -->" in text:
        bodies["fields"] = fields_table()
    for name, body in bodies.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text()))
