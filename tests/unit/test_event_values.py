"""Columns of the log with several values: read, counted, coded, pooled, learned."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtrec_ray.data.catalogue import NO_TIME, Catalogue, ItemLookup
from mtrec_ray.data.columns import fixed_list, hash_strings
from mtrec_ray.data.prepared import parse_scenario
from mtrec_ray.data.preparing import samples
from mtrec_ray.data.preparing.event_values import (
    MOST_VALUES,
    EventValues,
    all_codes,
    column_name,
    hashed_values,
    most_values,
)
from mtrec_ray.data.preparing.events import canonical
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.preparing.manifest import facts_of_values, known_event_values
from mtrec_ray.data.preparing.scan import LogSource, Scan, merge_scans, scan_rows
from mtrec_ray.data.shards import LISTS, SCALARS, SEVERAL, concatenate, read_rows
from mtrec_ray.data.storage import write_table
from mtrec_ray.model.inputs import PooledCodes
from mtrec_ray.model.samples import Samples
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import prepared_data_depends_on
from mtrec_ray.project.load import parse_project
from mtrec_ray.training.boosted_trees import Columns, fit_trees
from tests.builders import SHOP, make_rows, project_tree, scenario_tree
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

LOOKUP = ItemLookup.of(pa.chunked_array([["a", "b"]]))


def project_of(root=".", negatives="none", **events):
    """A shop whose log has columns with several values."""
    section = {"path": "events.parquet", "time": "time"} | events
    tree = scenario_tree({"click": {"kind": "binary"}}, events=section, negatives=negatives)
    return parse_project(project_tree({"shop": tree}, root=str(root)))


def log_of(tags, **columns) -> pa.Table:
    """A log of a row an hour, two in three of train."""
    num = len(tags)
    table = {
        "user_id": [f"u{i % 3}" for i in range(num)], "item_id": ["a", "b"] * (num // 2),
        "time": pa.array(1_735_689_600_000 + 3_600_000 * np.arange(num), pa.timestamp("ms")),
        "split": ["test" if i % 3 == 2 else "train" for i in range(num)],
        "click": (np.arange(num) // 3 % 2).astype(float), "tags": tags,
    }  # fmt: skip
    return pa.table(table | columns)


def scanned(project, *tables) -> tuple[pa.Table, Scan]:
    """Canonical rows of the row groups of a log, and their scan."""
    scenario, rows, scan = project.scenarios["shop"], [], None
    source = LogSource(scenario, LOOKUP, 1, 2, np.full(2, NO_TIME))
    for table in tables:
        found, findings = canonical(table, scenario, sum(r.num_rows for r in rows), LOOKUP, 1)
        rows.append(found)
        scan = merge_scans(scan, scan_rows(found, findings, source))
    assert scan is not None
    return pa.concat_tables(rows), scan


def tags_by_chance(num: int) -> list[list[str] | None]:
    """Lists of words, some of them null, empty, or with more words than a row keeps."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([0, 1, 3, 40], num, p=[0.2, 0.4, 0.35, 0.05])
    lists = [[f"w{int(w)}" for w in rng.geometric(0.08, size)] for size in sizes]
    return [None if i % 17 == 0 else words for i, words in enumerate(lists)]


def wanted_codes(tags, split) -> tuple[list[str], list[list[int]]]:
    """The vocabulary, the most frequent first, and the codes of each row, by brute force."""
    rows = [sorted(set(words or [])) for words in tags]
    counts = Counter(w for words, s in zip(rows, split, strict=True) if s == "train" for w in words)
    order = {w: int(hash_strings(pa.array([w]))[0]) for w in counts}
    known = sorted((w for w in counts if counts[w] >= 5), key=lambda w: (-counts[w], order[w]))
    codes = [sorted(known.index(w) + 1 for w in words if w in known) for words in rows]
    return known, [own[:MOST_VALUES] for own in codes]


@pytest.mark.parametrize("separator", [None, "|"])
def test_rows_have_the_codes_of_their_values(separator):
    """Those that five training rows have, the most frequent first; in parts of a log, too."""
    tags = tags_by_chance(600)
    column = tags if separator is None else [None if t is None else separator.join(t) for t in tags]
    several = {"lists": ["tags"]} if separator is None else {"separators": {"tags": separator}}
    project, table = project_of(**several), log_of(pa.array(column))
    rows, scan = scanned(project, table.slice(0, 200), table.slice(200))
    known, wanted = wanted_codes(tags, table.column("split").to_pylist())
    assert len(known) > 15
    assert max(map(len, wanted)) < MOST_VALUES  # of forty words few differ
    (values,) = scan.several_vocabularies
    assert values.hashes.tolist() == [int(hash_strings(pa.array([w]))[0]) for w in known]
    found = all_codes(rows, scan.several_vocabularies)
    assert [own[own > 0].tolist() for own in found] == wanted
    assert found.shape[1] == max(len(set(t or [])) for t in tags)
    whole = scanned(project, table)[1]
    assert whole.several_vocabularies[0].hashes.tolist() == values.hashes.tolist()


WORDS = st.lists(st.lists(st.integers(0, 60), max_size=50), min_size=1, max_size=6)


@given(WORDS, st.integers(0, 60))
def test_a_row_keeps_its_most_frequent_values(rows, num_known):
    """At most 32, whatever the row has; values beyond the vocabulary are none."""
    column = pa.chunked_array([pa.array(rows, pa.list_(pa.int64()))])
    hashed = pa.chunked_array([hashed_values(column, None)])
    known = hash_strings(pa.array([str(n) for n in range(num_known)], pa.string()))
    values = EventValues(known, most_values(hashed))
    wanted = [sorted({n + 1 for n in own if n < num_known})[:MOST_VALUES] for own in rows]
    found = values.codes(hashed)
    assert [own[own > 0].tolist() for own in found] == wanted
    assert found.shape == (len(rows), max(1, min(MOST_VALUES, max(len(set(r)) for r in rows))))


def test_two_columns_lie_side_by_side():
    """Each in its width; the manifest says sizes and widths, and the report the known values."""
    project = project_of(lists=["tags"], separators={"query": " "})
    table = log_of([["x", "y"]] * 12, query=pa.array(["red red shoes now", None] * 6))
    rows, scan = scanned(project, table)
    vocabularies = scan.several_vocabularies
    assert [v.width for v in vocabularies] == [2, 3]
    found = all_codes(rows, vocabularies)
    assert found.shape == (12, 5)
    assert found[::2].min(1).tolist() == [0] * 6  # of query no word has five training rows
    assert found[:, :2].tolist() == [[1, 2]] * 12
    spec = type("Spec", (), {"event_values": vocabularies, "event_vocabularies": ()})()
    assert facts_of_values(spec) == {"several_sizes": [3, 1], "several_widths": [2, 3]}
    assert known_event_values(project.scenarios["shop"], spec) == {"tags": 2, "query": 0}


def test_what_means_missing_is_no_value():
    """A value in a list, or the whole text; both are counted."""
    missing = {"tags": ["-"], "query": ["none"]}
    project = project_of(lists=["tags"], separators={"query": " "}, missing=missing)
    table = log_of([["x", "-"], ["-"], ["x"]] * 4, query=["none", "a none", None] * 4)
    rows, scan = scanned(project, table)
    counts = scan.findings.counts
    assert counts["value of tags that means missing"] == 8
    assert counts["value of query that means missing"] == 4
    lists = [rows.column(column_name(i)).to_pylist() for i in range(2)]
    assert [len(own) for own in lists[0][:3]] == [1, 0, 1]
    assert [len(own) for own in lists[1][:3]] == [0, 2, 0]


def test_negatives_have_the_values_of_their_positive():
    """As all that a row of the log says of its own event."""
    project = project_of(negatives={"of": "click", "per_positive": 1}, lists=["tags"])
    users = [f"u{i}" for i in range(12)]
    rows, _ = scanned(project, log_of([[f"t{i}"] for i in range(12)], user_id=users))
    of = {row["row"]: row[column_name(0)] for row in rows.to_pylist()}
    weights, published = np.ones(2), np.full(2, NO_TIME)
    scenario = project.scenarios["shop"]
    drawn = samples.add_negatives(rows, scenario, weights, published, 0).to_pylist()[12:]
    assert drawn
    for row in drawn:
        assert row[column_name(0)] == of[samples.source_rows(np.array([row["row"]]), scenario)[0]]


def test_shards_with_values_are_read(tmp_path):
    """In batches, as the other columns; shards without them have no such column."""
    rng = np.random.default_rng(0)
    rows = make_rows(rng, SHOP, 30)
    codes = rng.integers(0, 4, (30, 5)).astype(np.int32)
    columns = {name: rows[name] for name in SCALARS}
    columns |= {c: fixed_list(rows[c]) for c in LISTS}
    for name, more in (("with", {SEVERAL: fixed_list(codes)}), ("without", {})):
        write_table(str(tmp_path / name), pa.table(columns | more))
        found = concatenate(list(read_rows([str(tmp_path / name)], 7, 0, 30)))
        assert (SEVERAL in found) == (name == "with")
        samples_found = Samples.of(found)
        assert samples_found.several.tolist() == (codes.tolist() if more else [[]] * 30)


def test_a_manifest_may_leave_values_out():
    """One that an earlier version wrote is read as one without such columns."""
    tree = {k: v for k, v in SHOP.__dict__.items() if not k.startswith("several_")}
    assert parse_scenario(tree) == SHOP
    assert parse_scenario(tree | {"several_sizes": [3], "several_widths": [2]}).row_bytes == (
        SHOP.row_bytes + 8
    )


def test_data_that_was_prepared_before_there_were_lists_stays_valid():
    """What it depends on has no word of them, unless the project has."""
    without = prepared_data_depends_on(project_of())["scenarios"]["shop"]["events"]
    assert not {"lists", "separators"} & set(without)
    found = prepared_data_depends_on(project_of(lists=["tags"]))["scenarios"]["shop"]["events"]
    assert (found["lists"], found["separators"]) == (["tags"], {})


def test_embeddings_of_codes_are_averaged():
    """The mean over the codes of a row, zeros for a row without one, whatever the padding."""
    pool = PooledCodes(4, 5)
    codes = torch.tensor([[1, 3, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [1, 2, 3, 0]])
    wanted = torch.zeros(4, 5)
    for row, own in ((0, [1, 3]), (2, [2]), (3, [1, 2, 3])):
        wanted[row] = pool.table.weight[own].mean(0)
    torch.testing.assert_close(pool(codes), wanted)
    torch.testing.assert_close(pool(codes[:, :3])[:3], wanted[:3])
    pool(codes).sum().backward()
    assert pool.table.weight.grad is not None
    assert not pool.table.weight.grad[0].any()


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ({"lists": ["query"]}, "lists: found column 'query' of .* type string; allowed: a list"),
        ({"separators": {"tags": "|"}}, "separators: found column 'tags' of .* allowed: text"),
        ({"lists": ["x"]}, "lists: found no column 'x' in "),
        ({"lists": ["tags"], "missing": {"query": [""]}},
         "missing: found column 'query', which no field"),
    ],
)  # fmt: skip
def test_a_column_of_another_kind_is_one_line(tmp_path, events, line):
    """Before a row is read, as for the columns of items."""
    pq.write_table(log_of([["x"]] * 6, query=["a b"] * 6), tmp_path / "events.parquet")
    found = [x for x in input_problems(project_of(tmp_path, **events)) if ".events." in x]
    assert len(found) == 1
    assert pd.Series(found).str.match(f"scenarios.shop.events.{line}").all(), found


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ({"separators": {"g": ""}}, "separators.g: found ''; allowed: a separator, such as '"),
        ({"lists": ["g"], "separators": {"g": "|"}}, "lists: found 'g' twice; allowed: in one of"),
        ({"lists": ["g"], "categorical": ["g"]}, "lists: found 'g' twice; allowed: in one of "),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line(events, line):
    """Empty separators, and columns that would be read in two ways."""
    with pytest.raises(ProjectError) as error:
        project_of(**events)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(f"scenarios.shop.events.{line}")


# --- a planted world -------------------------------------------------------------------------

NUM_ITEMS, NUM_VALUES, WIDTH, LOVED = 10, 12, 4, 3
ITEMS = Catalogue(
    tokens=np.full(NUM_ITEMS, 7, np.int32), offsets=np.arange(NUM_ITEMS + 1),
    categorical=np.zeros((NUM_ITEMS, 0), np.int32), numeric=np.zeros((NUM_ITEMS, 0), np.float32),
    published=np.full(NUM_ITEMS, NO_TIME), known=np.ones(NUM_ITEMS, bool),
)  # fmt: skip
WITHOUT = planted_facts(NUM_ITEMS, [])
WITH = replace(WITHOUT, several_sizes=[3, NUM_VALUES + 1], several_widths=[1, WIDTH])


def rows_of(seed: int):
    """Rows that are positive where their event has one value among several."""
    rng = np.random.default_rng(seed)
    ranks = rng.random((2000, NUM_VALUES)).argsort(1)[:, :WIDTH] + 1
    codes = np.where(np.arange(WIDTH) < rng.integers(0, WIDTH + 1, (2000, 1)), ranks, 0)
    item = rng.integers(0, NUM_ITEMS, 2000)
    rows = planted_rows(rng, item, np.zeros(len(item), int), (codes == LOVED).any(1))
    return rows | {SEVERAL: np.concatenate([rng.integers(0, 3, (2000, 1)), codes], 1)}


@pytest.mark.parametrize("facts", [WITH, WITHOUT], ids=["with", "without"])
def test_what_lies_in_one_of_several_values_is_learned(facts):
    """By the network and by trees; nothing else of these rows tells it."""
    model, vectors = planted_model(facts, ITEMS)
    learn(model, vectors, rows_of)
    rows = rows_of(999)
    label = rows["labels"][:, 0]
    columns = Columns(facts, ITEMS, np.eye(NUM_ITEMS, 4, dtype=np.float32))
    parts = [(columns.plain(r), r["labels"][:, 0]) for r in (rows_of(1), rows_of(2))]
    trees = fit_trees("binary", *parts, 0, seed=0, num_threads=1, rounds=60)
    scores = (predicted(model, vectors, rows), trees.predict(columns.plain(rows)))
    found = [roc_auc_score(label, score) for score in scores]
    if facts is WITH:
        assert min(found) > 0.7
    else:
        assert max(abs(auc - 0.5) for auc in found) < 0.04
