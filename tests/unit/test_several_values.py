"""Columns with several values: lists, and texts with a separator."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtrec_ray.data.catalogue import (
    NO_TIME,
    Catalogue,
    Ragged,
    encode_several,
    load_catalogue,
    ragged,
    value_codes,
)
from mtrec_ray.data.columns import blank
from mtrec_ray.data.preparing import inputs
from mtrec_ray.data.preparing.audit_log import raw_sets
from mtrec_ray.data.preparing.input_problems import input_problems
from mtrec_ray.data.storage import write_table
from mtrec_ray.model.inputs import PooledValues
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from mtrec_ray.training.boosted_trees import Columns, fit_trees
from tests.builders import project_tree, scenario_tree
from tests.planted import learn, planted_facts, planted_model, planted_rows, predicted

ROWS = np.array([5, 4, 0, 9, 1])
VALUES = [["b", " a", "b"], ["a"], ["c"], None, ["rare", "", None, "a "]]
COLUMNS = {
    "lists": (pa.array(VALUES), None),
    "large_lists": (pa.array(VALUES, pa.large_list(pa.string())), None),
    "of_words_in_a_dictionary": (
        pa.array(VALUES, pa.list_(pa.dictionary(pa.int32(), pa.string()))), None
    ),
    "texts": (pa.array(["b| a|b", "a", "c", None, "rare||a "]), "|"),
    "texts_in_a_dictionary": (
        pa.array(["b; a;b", "a", "c", None, "rare;;a"]).dictionary_encode(), ";"
    ),
    "bytes": (pa.array([b"b, a,b", b"a", b"c", None, b"rare,,a"]), ","),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLUMNS)
def test_values_have_codes(kind):
    """White space, repetitions, nulls and rare values fall away; the most frequent is the first."""
    column, separator = COLUMNS[kind]
    half = [column.slice(0, 2), column.slice(2)]
    lists, vocabulary = encode_several(pa.chunked_array(half), separator, ROWS)
    assert vocabulary == ["a", "b"]
    assert [sorted(codes) for codes in lists.to_pylist()] == [[1, 2], [1], [], [], [1]]
    again, same = encode_several(pa.chunked_array(half), separator, ROWS * 0, ["c", "b"])
    assert (again.to_pylist(), same) == ([[2], [], [1], [], []], ["c", "b"])


@pytest.mark.parametrize("kind", COLUMNS)
def test_values_have_numbers_for_statistics(kind):
    """All of them, rare ones, too, each once an item; the audit reads the same values."""
    column, separator = COLUMNS[kind]
    halves = pa.chunked_array([column.slice(0, 2), column.slice(2)])
    found = value_codes(halves, separator)
    wanted = [{"a", "b"}, {"a"}, {"c"}, set(), {"a", "rare"}]
    assert raw_sets(halves, separator, ()) == wanted
    parts = [codes.tolist() for codes in np.split(found.codes, found.offsets[1:-1])]
    assert parts == [sorted(set(codes)) for codes in parts]
    named = {}
    for codes, texts in zip(parts, wanted, strict=True):
        assert len(codes) == len(texts)
        for code in codes:
            named[code] = named.get(code, texts) & texts
    assert sorted(named) == [1, 2, 3, 4] == list(range(1, found.size))
    assert named[parts[1][0]] == {"a"}
    again = found.take(np.array([4, 3, 0, 0]))
    assert [c.tolist() for c in np.split(again.codes, again.offsets[1:-1])] == [
        parts[i] for i in (4, 3, 0, 0)
    ]
    assert again.rows.tolist() == [0, 0, 2, 2, 3, 3]


def test_the_audit_reads_missing_values_of_lists():
    """What `missing` names is no value, in the type of the list; nor is null."""
    column = pa.chunked_array([pa.array([[1, -1], None, [-1], [2, None, 2]])])
    assert raw_sets(column, None, (-1,)) == [{"1"}, set(), set(), {"2"}]
    numbers = value_codes(blank(column, (-1,)), None)
    assert (numbers.codes.tolist(), numbers.offsets.tolist()) == ([1, 2], [0, 1, 1, 1, 2])


@pytest.mark.parametrize(
    ("fields", "one", "several"),
    [
        ({}, ("brand",), {}),
        ({"statistics_of": []}, (), {}),
        ({"statistics_of": ["genres", "brand"]}, ("brand",), {"genres": "|"}),
        ({"statistics_of": ["tags"]}, (), {"tags": None}),
    ],
)
def test_which_columns_have_statistics(tmp_path, fields, one, several):
    """Without a list all categorical columns alone; columns with several values by name."""
    named = {"categorical": ["brand"], "lists": ["tags"], "separators": {"genres": "|"}}
    items = project_of(tmp_path, **named, **fields).scenarios["shop"].items
    assert (items.statistics_columns, items.pooled_columns) == (one, several)


def test_numbers_have_codes():
    """Values of lists are read as text, as those of categories are; lists may have a fixed size."""
    column = pa.chunked_array([pa.array([[7, 3], [3, 3]], pa.list_(pa.int64(), 2))])
    lists, vocabulary = encode_several(column, None, np.array([9, 9]))
    assert (vocabulary, lists.to_pylist()) == (["3", "7"], [[2, 1], [1]])


def test_no_value_at_all():
    """A column that says nothing leaves an empty vocabulary and no code."""
    column = pa.chunked_array([pa.array([None, []], pa.list_(pa.string()))])
    lists, vocabulary = encode_several(column, None, np.array([9, 9]))
    values = ragged(pa.chunked_array([lists]))
    assert (vocabulary, values.size, values.indicators(5).shape) == ([], 1, (2, 0))
    pooled = PooledValues(values, values.size, 4)
    assert not pooled(torch.tensor([1, 0])).any()


def test_codes_are_read_back(tmp_path):
    """A catalogue's file holds lists of codes, as they were."""
    lists = [[3, 1], [], [2]]
    columns = {
        "tokens": pa.array([[1], [2], [3]], pa.list_(pa.int32())), "known": [True] * 3,
        "several.tags": pa.array(lists, pa.large_list(pa.int32())),
    }  # fmt: skip
    write_table(str(tmp_path / "c.parquet"), pa.table(columns))
    (found,) = load_catalogue(str(tmp_path / "c.parquet")).several
    assert [c.tolist() for c in np.split(found.codes, found.offsets[1:-1])] == lists
    assert found.size == 4
    assert found.indicators(2).tolist() == [[1, 0], [0, 0], [0, 1]]


def test_embeddings_are_averaged():
    """The mean over a row's values, zeros for a row without one, in any order and repeated."""
    values = Ragged(np.array([3, 1, 2, 2, 3, 1], np.int32), np.array([0, 2, 2, 3, 6]))
    pooled = PooledValues(values, 4, 5)
    rows = torch.tensor([3, 1, 0, 0, 2, 1])
    wanted = torch.zeros(6, 5)
    for place, codes in ((0, [1, 2, 3]), (2, [1, 3]), (3, [1, 3]), (4, [2])):
        wanted[place] = pooled.table.weight[codes].mean(0)
    torch.testing.assert_close(pooled(rows), wanted)
    assert not pooled(torch.tensor([1])).any()


# --- files -----------------------------------------------------------------------------------


def project_of(root, **fields):
    """A shop with a catalogue in files."""
    items = {"path": "items.parquet", "text": "{title}"} | fields
    tree = scenario_tree({"click": {"kind": "binary"}}, items=items)
    return parse_project(project_tree({"shop": tree}, root=str(root)))


def write_items(root, **columns):
    """A catalogue of three items, two of whose rows are the same."""
    table = {
        "item_id": ["a", "b", "b"], "title": ["x", "y", "y"], "tags": [["r", "s"], ["-"], ["-"]],
        "genres": ["Drama|-", "-", "-"],
    } | columns  # fmt: skip
    pq.write_table(pa.table(table), root / "items.parquet")


def test_copies_and_missing_values(tmp_path):
    """Equal lists are equal rows; what means missing is null in a list, and as a whole text."""
    write_items(tmp_path)
    missing = {"tags": ["-"], "genres": ["-"]}
    fields = {"lists": ["tags"], "separators": {"genres": "|"}, "missing": missing}
    table = inputs.read_items(project_of(tmp_path, **fields), "shop")
    assert table.select(["item_id", "tags", "genres"]).to_pylist() == [
        {"item_id": "a", "tags": ["r", "s"], "genres": "Drama|-"},
        {"item_id": "b", "tags": [None], "genres": None},
    ]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.list_(pa.string(), 2)])
def test_missing_values_of_a_null_list(kind):
    """A null list has no value; the rows around it keep theirs, also in a part of a column."""
    lists = pa.array([["x", "x"], ["x", "y"], None, ["y", "z"]], kind)
    wanted = [["x", None], [], [None, "z"]]
    assert blank(pa.chunked_array([lists.slice(1)]), ["y"]).to_pylist() == wanted
    assert blank(pa.chunked_array([lists]), ["y"]).to_pylist() == [["x", "x"], *wanted]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"lists": ["genres"]}, "lists: found column 'genres' of .* type string; allowed: a list"),
        ({"separators": {"tags": "|"}}, "separators: found column 'tags' of .* allowed: text"),
        ({"categorical": ["tags"]}, "categorical: found column 'tags' of .* allowed: text, a num"),
        ({"lists": ["x"]}, "lists: found no column 'x' in "),
        ({"lists": ["deep"]}, "lists: found column 'deep' of .* allowed: a list of texts, numbers"),
    ],
)  # fmt: skip
def test_a_column_of_another_kind_is_one_line(tmp_path, fields, line):
    """Lists are no texts, and texts no lists; a list of lists is neither."""
    write_items(tmp_path, deep=[[["x"]]] * 3)
    found = [x for x in input_problems(project_of(tmp_path, **fields)) if ".items." in x]
    assert len(found) == 1
    assert pd.Series(found).str.match(f"scenarios.shop.items.{line}").all(), found


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"separators": {"g": ""}}, "separators.g: found ''; allowed: a separator, such as '"),
        ({"lists": ["g"], "separators": {"g": "|"}}, "lists: found 'g' twice; allowed: in one of"),
        ({"lists": ["g"], "categorical": ["g"]}, "lists: found 'g' twice; allowed: in one of "),
        (
            {"lists": ["g"], "categorical": ["b"], "statistics_of": ["g", "price"]},
            "statistics_of: found 'price'; allowed: columns of categorical, lists or separators, "
            r"\['b', 'g'\]",
        ),
        (
            {"lists": ["g"], "numeric": ["price"], "statistics_of": ["b", "g"]},
            r"statistics_of: found 'b'; allowed: columns of .* separators, \['g'\]",
        ),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line(tmp_path, fields, line):
    """Empty separators, columns that would be read in two ways, statistics of other columns."""
    with pytest.raises(ProjectError) as error:
        project_of(tmp_path, **fields)
    assert len(error.value.problems) == 1
    assert pd.Series(error.value.problems).str.match(f"scenarios.shop.items.{line}").all()


# --- a planted world -------------------------------------------------------------------------

NUM_ITEMS, NUM_VALUES, LOVED = 80, 12, 3
TAGS = [np.random.default_rng(i).permutation(NUM_VALUES)[:4] + 1 for i in range(NUM_ITEMS)]
IS_LOVED = np.array([LOVED in tags for tags in TAGS])
SEEN, NEW = np.arange(NUM_ITEMS // 2), np.arange(NUM_ITEMS // 2, NUM_ITEMS)
FACTS = planted_facts(NUM_ITEMS, [])
WITHOUT = Catalogue(
    tokens=np.full(NUM_ITEMS, 7, np.int32), offsets=np.arange(NUM_ITEMS + 1),
    categorical=np.zeros((NUM_ITEMS, 0), np.int32), numeric=np.zeros((NUM_ITEMS, 0), np.float32),
    published=np.full(NUM_ITEMS, NO_TIME), known=np.ones(NUM_ITEMS, bool),
)  # fmt: skip
VALUES_OF_ITEMS = Ragged(np.concatenate(TAGS).astype(np.int32), np.arange(0, 4 * NUM_ITEMS + 1, 4))
WITH = replace(WITHOUT, several=(VALUES_OF_ITEMS,))


def rows_of(items, seed):
    """Rows of some items: those with one value are taken by anybody."""
    rng = np.random.default_rng(seed)
    item = rng.choice(items, 3000)
    return planted_rows(rng, item, np.zeros(len(item), int), IS_LOVED[item])


def auc_of(said, rows):
    return roc_auc_score(rows["labels"][:, 0], said)


@pytest.mark.parametrize("with_values", [True, False])
def test_a_taste_for_one_of_several_values_is_learned(with_values):
    """The network and its retrieval side tell items without a row in training by their values."""
    model, vectors = planted_model(FACTS, WITH if with_values else WITHOUT)
    learn(model, vectors, lambda step: rows_of(SEEN, step))
    rows = rows_of(NEW, 999)
    found = model.retrieval.item_vectors("shop", vectors.cache)
    user = torch.nn.functional.normalize(model.retrieval.no_history["shop"], dim=0)
    network = auc_of(predicted(model, vectors, rows), rows)
    retrieval = auc_of((found @ user).detach().numpy()[rows["item"]], rows)
    if with_values:
        assert network > 0.8
        assert retrieval > 0.65
    else:
        assert max(abs(network - 0.5), abs(retrieval - 0.5)) < 0.03


def test_trees_learn_it():
    """Trees read whether an item has each of the most frequent values."""
    found = []
    for catalogue in (WITH, WITHOUT):
        columns = Columns(FACTS, catalogue, np.eye(NUM_ITEMS, 4, dtype=np.float32))
        train, valid, test = (rows_of(i, s) for i, s in ((SEEN, 1), (SEEN, 2), (NEW, 3)))
        parts = [(columns.plain(r), r["labels"][:, 0]) for r in (train, valid)]
        trees = fit_trees("binary", *parts, 0, seed=0, num_threads=1, rounds=60)
        found.append(auc_of(trees.predict(columns.plain(test)), test))
    assert found[0] > 0.8
    assert abs(found[1] - 0.5) < 0.03
