"""A small log, prepared in this process by the functions of the passes; no Ray."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from mtrec_ray.data import storage
from mtrec_ray.data.catalogue import NO_TIME, TOKENS, assemble, category_codes, value_codes
from mtrec_ray.data.columns import fixed_list, hash_strings
from mtrec_ray.data.outcomes import level_bounds
from mtrec_ray.data.prepared import Classes, Prepared, Shard
from mtrec_ray.data.preparing import features, passes, samples, values
from mtrec_ray.data.preparing.features import FeatureSpec
from mtrec_ray.data.preparing.scan import label_facts
from mtrec_ray.data.snapshot import SnapshotColumns
from tests.builders import VIDEO


def canonical_table(log, scenario, num_items):
    """The log as canonical rows, with their split and sampled negatives.

    `log`: `user` and `item` as numbers, `time`, `split` and `labels` of its N rows.
    """
    ids = pa.array([f"user {u}" for u in log["user"]])
    num = len(ids)
    split = np.full(num, 3, np.int8) if scenario.split.fractions else log["split"]
    table = pa.table(
        {
            "row": np.arange(num),
            "user": hash_strings(ids).view(np.int64),
            "user_id": ids,
            "item": log["item"].astype(np.int32),
            "time": log["time"],
            "split": split,
            "sampled": np.zeros(num, bool),
            "labels": fixed_list(log["labels"].astype(np.float32)),
            "event_numeric": fixed_list(np.zeros((num, 0), np.float32), 1),
            "event_categorical": fixed_list(np.zeros((num, 0), np.int64), 1),
        }
    )
    if scenario.split.fractions:
        table = samples.split_by_fractions(table, scenario, 0)
    if scenario.draws_negatives:
        published = np.full(num_items, NO_TIME)
        table = samples.add_negatives(table, scenario, np.ones(num_items), published, 0)
    return table


def prepare_log(log, scenario, items, folder, name="video", vocabulary=None):
    """The layout of a log prepared below `folder`; its `split` becomes that of the samples.

    `vocabulary`: sorted hashes of the users that training knows, by default those of the log.
    """
    table = canonical_table(log, scenario, items.num_rows)
    real = table.filter(pa.array(~table.column("sampled").to_numpy())).sort_by("row")
    log["split"] = real.column("split").to_numpy()
    train = log["split"] == 0
    labels = features.with_gains(log["labels"].astype(np.float32), scenario)
    means = [float(np.nanmean(x[train])) for x in labels.T]
    sums = label_facts(labels[train], np.ones(train.sum()))[0]
    stds = np.sqrt(np.maximum(sums[3] / sums[0] - (sums[2] / sums[0]) ** 2, 1e-12))
    tokens = pa.array([[1]] * items.num_rows)
    rows = np.bincount(log["item"][train], minlength=items.num_rows)
    prepared_items = assemble(items.append_column(TOKENS, tokens), scenario, rows)[0]
    storage.write_table(f"{folder}/{name}/catalogue.parquet", prepared_items)
    tasks = list(scenario.tasks)
    facts = replace(
        VIDEO, name=name, kinds={n: t.kind for n, t in scenario.tasks.items()},
        given={n: t.given for n, t in scenario.tasks.items() if t.given},
        num_items=items.num_rows, label_means=dict(zip(tasks, means, strict=True)),
        label_stds=dict(zip(tasks, stds.tolist(), strict=True)),
        end_ms=int(log["time"].max()) + 1, history_last=scenario.history.last,
        history_outcomes=scenario.history.outcomes, user_space=scenario.users or name,
        classes={
            n: Classes(list(t.classes), list(t.class_gains), [1 / len(t.classes)] * len(t.classes))
            for n, t in scenario.tasks.items()
            if t.classes
        },
    )  # fmt: skip
    known = vocabulary
    if known is None:
        known = np.unique(real.column("user").to_numpy()[train].view(np.uint64))
    columns, several = scenario.items.statistics_columns, scenario.items.pooled_columns
    spec = FeatureSpec(
        scenario, tuple(means), facts.end_ms, np.full(items.num_rows, NO_TIME), known, (), 0,
        {c: category_codes(items.column(c)) for c in columns},
        values={c: value_codes(items.column(c), separator) for c, separator in several.items()},
        level_bounds=level_bounds(vars(facts)),
    )  # fmt: skip
    facts = replace(facts, shards=write_passes(table, spec, folder, name))
    return SnapshotColumns(Prepared(str(folder), "", {name: facts}), name, scenario)


def write_passes(table, spec, folder, name):
    """Run the passes over one partition and write what they write; returns the shards."""
    states, of_values = {}, {}
    for column, own in spec.values.items():
        narrow = values.exploded(table, own)
        of_values[column], states[f"values.{column}"] = values.value_features(narrow, spec)
    for column in spec.categories:
        table, states[f"category.{column}"] = features.category_features(table, spec, column)
    table, states["items"] = features.item_features(table, spec)
    for column, own in of_values.items():
        table = values.add_pooled(table, own, spec, column)
    finished, of_users = features.user_features(table, spec)
    for kind, state in (states | of_users).items():
        storage.write_table(f"{folder}/{name}/state/{kind}/part-00000.parquet", state)
    written = passes.write_samples(finished, folder, name, 0)
    return {
        split: [Shard(w["path"], w["rows"]) for w in written if w["split"] == split]
        for split in ("train", "valid", "test")
    }
