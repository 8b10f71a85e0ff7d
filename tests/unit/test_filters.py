"""Rules on the catalogue's own columns: which items pass, and one line for each mistake."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.candidates.filters import allowed_items, listed_items
from mtrec_ray.data import storage
from mtrec_ray.project.assortment import Filter
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.load import parse_project
from tests.builders import project_tree, scenario_tree

CLICK = {"click": {"kind": "binary"}}
TABLE = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["A", "B", "C", "D"],
        "in_stock": [True, False, None, True],
        "price": pa.array([0.1, 5.5, None, 100], pa.float32()),
        "pages": pa.array([10, 300, None, 5], pa.int64()),
        "cost": pa.array([Decimal("5.25"), None, Decimal("1.00"), Decimal("2.00")]),
        "category": pa.array(["tea", "cups", None, "tea"]).dictionary_encode(),
        "tags": [["x"], [], None, ["y"]],
    }
)


def passed(**rule) -> str:
    """The items that pass a rule."""
    mask = allowed_items([Filter.model_validate(rule)], TABLE)
    return "".join(np.array(["a", "b", "c", "d"])[mask])


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"column": "in_stock", "equals": True}, "ad"),
        ({"column": "in_stock", "none_of": [True]}, "bc"),
        ({"column": "price", "at_least": 5, "at_most": 100}, "bd"),
        ({"column": "price", "at_most": 5}, "a"),
        ({"column": "price", "equals": 0.1}, "a"),
        ({"column": "pages", "one_of": [300, 5.0, 7]}, "bd"),
        ({"column": "pages", "equals": 5.5}, ""),
        ({"column": "pages", "none_of": [300]}, "acd"),
        ({"column": "cost", "one_of": [5.25, 2]}, "ad"),
        ({"column": "category", "one_of": ["tea", "pots"]}, "ad"),
        ({"column": "category", "none_of": ["tea"]}, "bc"),
    ],
)
def test_what_passes(rule, wanted):
    """Each rule on each type of column; an item without a value passes `none_of` only."""
    assert passed(**rule) == wanted


def project_of(tmp_path, tree: dict):
    """A project whose catalogue is `TABLE`, in two files of another order than the model's."""
    for number, rows in enumerate(([3, 1], [0, 2])):
        path = tmp_path / "items.parquet" / f"part-{number}.parquet"
        storage.write_table(str(path), TABLE.take(rows))
    return parse_project(
        project_tree({"shop": scenario_tree(CLICK)}, root=str(tmp_path), recommend=tree)
    )


def test_items_are_found_by_their_ids(tmp_path):
    """Rules of all lines hold; an item that the file no longer has is not allowed."""
    rules = [{"column": "in_stock", "equals": True}, {"column": "price", "at_least": 1}]
    tree = {"filters": {"shop": rules}, "at_most_per": {"shop": {"category": 2}}}
    project = project_of(tmp_path, tree)
    ids = np.array(["gone", "a", "b", "c", "d"], object)
    allowed, (cap,) = listed_items(project, "shop", ids)
    assert allowed.tolist() == [False, False, False, False, True]
    assert cap.most == 2
    gone, tea, cups, none, again = cap.codes.tolist()
    assert (gone, none, again) == (-1, -1, tea)
    assert tea != cups


def test_without_rules_no_file_is_read():
    """A scenario without rules allows all of its items, wherever its catalogue is."""
    project = parse_project(project_tree({"shop": scenario_tree(CLICK)}))
    allowed, caps = listed_items(project, "shop", np.array(["a", "b"], object))
    assert allowed.all()
    assert caps == []


NAMES = ", ".join(TABLE.column_names)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            {"column": "stock", "equals": True},
            f"0.column: found no column 'stock' in the catalogue; allowed: {NAMES}",
        ),
        (
            {"column": "in_stock", "equals": "yes"},
            "0.equals: found 'yes' for column 'in_stock' with type bool; allowed: true or false",
        ),
        (
            {"column": "price", "one_of": [1, True]},
            "0.one_of: found true for column 'price' with type float; allowed: a number",
        ),
        (
            {"column": "category", "none_of": [3]},
            "0.none_of: found 3 for column 'category' with type string; allowed: text",
        ),
        (
            {"column": "category", "at_least": 3},
            "0.at_least: found 3.0 for column 'category' with type string; allowed: a column of "
            "numbers",
        ),
        (
            {"column": "tags", "equals": "x"},
            "0.equals: found 'x' for column 'tags' with type list<element: string>; allowed: a "
            "column of text, numbers or booleans",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(tmp_path, rule, line):
    """The field, the value, the column and its type, or the columns that there are."""
    project = project_of(tmp_path, {"filters": {"shop": [rule]}})
    with pytest.raises(ProjectError) as error:
        listed_items(project, "shop", np.array(["a"], object))
    assert error.value.problems == [f"recommend.filters.shop.{line}"]


def test_caps_of_wrong_columns_are_one_line_each(tmp_path):
    """A cap names a column that is there and has single values."""
    project = project_of(tmp_path, {"at_most_per": {"shop": {"author": 1, "tags": 1}}})
    with pytest.raises(ProjectError) as error:
        listed_items(project, "shop", np.array(["a"], object))
    missing, nested = error.value.problems
    assert missing == (
        "recommend.at_most_per.shop: found no column 'author' in the catalogue; allowed: " + NAMES
    )
    assert nested.startswith("recommend.at_most_per.shop: found column 'tags' with type list<")


def test_a_catalogue_that_is_gone_is_one_line(tmp_path):
    """The field of the path is named."""
    rules = {"filters": {"shop": [{"column": "price", "at_least": 1}]}}
    tree = project_tree({"shop": scenario_tree(CLICK)}, root=str(tmp_path), recommend=rules)
    with pytest.raises(ProjectError, match=r"^scenarios\.shop\.items\.path: found nothing at "):
        listed_items(parse_project(tree), "shop", np.array(["a"], object))


@pytest.mark.parametrize(
    ("recommend", "line"),
    [
        ({"filters": {"shoe": []}}, "filters: found ['shoe']; allowed: ['shop']"),
        ({"at_most_per": {"shoe": {}}}, "at_most_per: found ['shoe']; allowed: ['shop']"),
        (
            {"filters": {"shop": [{"column": "a"}]}},
            "filters.shop.0: found none; allowed: one of equals, one_of, none_of, or at_least and "
            "at_most",
        ),
        (
            {"filters": {"shop": [{"column": "a", "equals": 1, "at_most": 2}]}},
            "filters.shop.0: found ['at_most', 'equals']; allowed: one of equals, one_of, none_of, "
            "or at_least and at_most",
        ),
        (
            {"filters": {"shop": [{"column": "a", "at_least": 3, "at_most": 2}]}},
            "filters.shop.0.at_least: found 3; allowed: at most at_most, 2",
        ),
        (
            {"filters": {"shop": [{"column": "a", "one_of": []}]}},
            "filters.shop.0.one_of: found []; allowed: at least one value",
        ),
        (
            {"filters": {"shop": [{"column": "a", "equals": ["x"]}]}},
            'filters.shop.0.equals: found ["x"]; allowed: text, a number, true or false',
        ),
        (
            {"filters": {"shop": [{"colum": "a", "column": "a", "equals": 1}]}},
            "filters.shop.0.colum: found an unknown key; allowed: at_least, at_most, column, "
            "equals, none_of, one_of",
        ),
        (
            {"explore": {"way": "thompson"}},
            "explore.way: found 'thompson'; allowed: input should be 'none', 'epsilon' or "
            "'softmax'",
        ),
        (
            {"at_most_per": {"shop": {"a": 0}}},
            "at_most_per.shop.a: found 0; allowed: input should be greater than 0",
        ),
    ],
)
def test_mistakes_in_the_project_file_are_one_line(recommend, line):
    """Unknown scenarios and ways, and rules that say nothing or too much."""
    with pytest.raises(ProjectError) as error:
        parse_project(project_tree({"shop": scenario_tree(CLICK)}, recommend=recommend))
    assert error.value.problems == [f"recommend.{line}"]


def test_a_part_of_a_project_has_its_own_rules():
    """The project of some scenarios keeps their rules, that of one by itself has none."""
    rules = {"shop": [{"column": "a", "equals": 1}], "news": [{"column": "b", "equals": 2}]}
    caps = {"shop": {"a": 1}, "news": {"b": 1}}
    scenarios = {name: scenario_tree(CLICK) for name in ("shop", "news")}
    recommend = {"filters": rules, "at_most_per": caps, "diversity": 0.5}
    project = parse_project(project_tree(scenarios, recommend=recommend))
    part = project.only(["news"]).recommend
    assert set(part.filters) == set(part.at_most_per) == {"news"}
    assert part.diversity == 0.5
    assert project.single("news").recommend.filters == {}
    assert parse_project(project.dump()) == project
