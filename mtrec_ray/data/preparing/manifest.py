"""The manifest of prepared data: fitted numbers, shards, and the report of what was found."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.preparing.classes import class_facts, class_rows
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.shards import read_rows
from mtrec_ray.project.project import Project
from mtrec_ray.project.scenario import Scenario
from mtrec_ray.project.split import SPLITS

if TYPE_CHECKING:
    from mtrec_ray.data.preparing.scan import Scan


SAMPLE_ROWS = 200_000


NUM_QUANTILES = 33


def manifest_of(
    project: Project,
    scans: Mapping[str, "Scan"],
    specs: Mapping[str, FeatureSpec],
    vocabularies: Mapping[str, dict[str, list[str]]],
    written: list[dict[str, Any]],
    item_facts: Mapping[str, dict[str, Any]],
    folder: str,
) -> dict[str, Any]:
    """Returns the manifest's `scenarios` and `report`; `item_facts` are part of the report."""
    scenarios, report = {}, {}
    for name, scenario in project.scenarios.items():
        shards = shard_lists(written, name)
        scenarios[name] = {
            "name": name,
            **task_facts(scenario, scans[name]),
            **class_facts(scenario, scans[name].class_sums),
            "history_last": scenario.history.last,
            **({"history_outcomes": True} if scenario.history.outcomes else {}),
            "numeric_names": list(specs[name].columns.names),
            **fit_numeric(folder, shards["train"]),
            **fit_items(storage.join(folder, name, "catalogue.parquet")),
            "item_category_sizes": [
                len(vocabularies[name][column]) + 1 for column in scenario.items.categorical
            ],
            "category_sizes": [len(v) + 1 for v in specs[name].event_vocabularies],
            "user_space": scenario.users or name,
            "num_users": len(specs[name].users) + 1,
            "num_items": len(scans[name].item_rows),
            "popularity": {t: popularity_column(scenario, t) for t in scenario.tasks},
            "end_ms": scans[name].last_ms + 1,
            "shards": shards,
            **facts_of_values(specs[name]),
        }
        report[name] = {
            **data_report(
                scenario, scans[name], [w for w in written if w["scenario"] == name], shards
            ),
            **item_facts[name],
            "known_values": {c: len(v) for c, v in vocabularies[name].items()}
            | known_event_values(scenario, specs[name]),
            "train_after_test": share_after(folder, shards["train"], scans[name].test_ms),
        }
    return {"scenarios": scenarios, "report": report}


def facts_of_values(spec: FeatureSpec) -> dict[str, Any]:
    """Returns sizes and widths of the log's columns with several values; nothing without any."""
    if not spec.event_values:
        return {}
    return {
        "several_sizes": [len(own.hashes) + 1 for own in spec.event_values],
        "several_widths": [own.width for own in spec.event_values],
    }


def known_event_values(scenario: Scenario, spec: FeatureSpec) -> dict[str, int]:
    """Returns how many values of each column of categories of the log have an embedding."""
    known = [*map(len, spec.event_vocabularies), *(len(own.hashes) for own in spec.event_values)]
    return dict(zip((*scenario.events.categorical, *scenario.events.several), known, strict=True))


def share_after(folder: str, shards: list[dict[str, Any]], test_ms: int) -> float:
    """Returns the share of training rows that are later than the first row of test.

    Over the rows that `fit_numeric` reads.
    """
    time = first_rows(folder, shards, "time")
    return round(float((time > test_ms).mean()), 4)


def shard_lists(written: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    """Returns shards of each split in a fixed order."""
    listed = [s for w in written if w["scenario"] == name for s in w["shards"]]
    return {
        split: [
            {"path": s["path"], "rows": int(s["rows"])}
            for s in sorted(listed, key=lambda s: s["path"])
            if s["split"] == split
        ]
        for split in SPLITS
    }


def task_facts(scenario: Scenario, scan: "Scan") -> dict[str, Any]:
    """Returns kinds, parents, and mean and standard deviation of the training labels.

    By the weights of their rows.
    """
    mean, std = scan.label_moments(2)
    durations = [t.kind == "duration" for t in scenario.tasks.values()]
    log_means, log_stds = (
        {task: float(v) for task, v, wanted in zip(scenario.tasks, values, durations, strict=True)
         if wanted}
        for values in scan.label_moments(4)
    )  # fmt: skip
    return {
        "kinds": {n: t.kind for n, t in scenario.tasks.items()},
        "given": {n: t.given for n, t in scenario.tasks.items() if t.given},
        "entire": [n for n, t in scenario.tasks.items() if t.space == "entire"],
        "label_means": dict(zip(scenario.tasks, mean.tolist(), strict=True)),
        "label_stds": dict(zip(scenario.tasks, std.tolist(), strict=True)),
        "label_log_means": log_means,
        "label_log_stds": log_stds,
    }


def popularity_column(scenario: Scenario, task: str) -> str:
    """Returns the column that ranks items by popularity for a task.

    The item's smoothed past rate; where negatives are sampled statistics hold only positives of
    their task, so its popularity is the item's count.
    """
    if scenario.draws_negatives_of(task):
        return "item.log_count"
    return f"item.rate.{task}"


def fit_numeric(folder: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean, standard deviation and quantiles of the numeric columns over training rows.

    Over the first rows of each training shard, 200,000 in all: shards hold rows in a
    pseudo-random order.
    """
    values = first_rows(folder, shards, "numeric").astype(np.float64)
    return {f"numeric_{k}": v for k, v in scales(values).items()}


def first_rows(folder: str, shards: list[dict[str, Any]], column: str) -> np.ndarray:
    """Returns a column of the first rows of each shard, some `SAMPLE_ROWS` in all."""
    each = -(-SAMPLE_ROWS // max(len(shards), 1))
    parts = [
        batch[column]
        for shard in shards
        for batch in read_rows([storage.join(folder, shard["path"])], each, 0, each)
    ]
    return np.concatenate(parts)


def scales(values: np.ndarray) -> dict[str, Any]:
    """Returns the mean and standard deviation [F] and quantiles [F, Q] of columns, NaN left out."""
    empty = ~np.isfinite(values).any(0)
    values = np.where(empty, 0.0, values)
    mean, std = np.nanmean(values, 0), np.nanstd(values, 0)
    quantiles = np.nanquantile(values, np.linspace(0, 1, NUM_QUANTILES), 0).T
    return {
        "mean": mean.tolist(),
        "std": np.where(std < 1e-6, 1.0, std).tolist(),
        "quantiles": quantiles.tolist(),
    }


def fit_items(path: str) -> dict[str, Any]:
    """Returns the same of the catalogue's numeric columns, over items known to train."""
    catalogue = load_catalogue(path)
    known = catalogue.numeric[catalogue.known].astype(np.float64)
    return {f"item_numeric_{k}": v for k, v in scales(known).items()}


DROPPED = (
    "null user", "null item", "null time", "impossible time", "unknown item", "unknown split"
)  # fmt: skip


def data_report(
    scenario: Scenario,
    scan: "Scan",
    written: list[dict[str, Any]],
    shards: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Returns rows, nulls, duplicates, label rates, and rows dropped and why."""
    counts = dict(scan.findings.counts)
    known = scan.label_sums[0].astype(int)
    largest = min(written, key=lambda w: (-w["largest_rows"], w["largest_user"]))
    report = {
        "rows_in_log": counts.pop("rows", 0),
        "samples": {split: sum(s["rows"] for s in shards[split]) for split in SPLITS},
        "duplicates": sum(int(w["duplicates"]) for w in written),
        "items": len(scan.item_rows),
        "items_in_train": int((scan.item_rows > 0).sum()),
        "users_in_train": len(scan.users),
        "largest_user": {"user": largest["largest_user"], "rows": int(largest["largest_rows"])},
        "train_labels": dict(zip(scenario.tasks, known.tolist(), strict=True)),
        "train_label_means": dict(zip(scenario.tasks, scan.priors.round(4).tolist(), strict=True)),
        "train_label_ranges": dict(zip(scenario.tasks, scan.label_ranges.T.tolist(), strict=True)),
        **class_rows(scenario, scan.class_sums),
        "labels": {
            split: dict(zip(scenario.tasks, row.tolist(), strict=True))
            for split, row in zip(SPLITS, scan.num_labels, strict=True)
        },
        "rows_by_year": {k[5:]: v for k, v in sorted(counts.items()) if k.startswith("year ")},
        "dropped": {k: counts[k] for k in DROPPED if k in counts},
        "ignored_labels": {k: v for k, v in counts.items() if k.startswith("label of")},
        "ignored_numbers": {k: v for k, v in counts.items() if k.startswith("number of")},
        "missing_values": {k: v for k, v in counts.items() if k.startswith("value of")},
    }
    if scenario.events.time is None:
        report["note"] = "no time: out-of-fold statistics, history of other training folds"
    return report
