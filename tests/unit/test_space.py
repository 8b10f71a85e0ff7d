"""What a search may try: a mistake is one line, a point changes what it says and no more."""

import math
import re
from typing import Any

import numpy as np
import pytest

from mtrec_ray.project.depends_on import differences
from mtrec_ray.project.load import parse_project, with_overrides
from mtrec_ray.project.project import Project
from mtrec_ray.search.problems import space_problems
from mtrec_ray.search.space import references, space_of
from mtrec_ray.stages.tuning.population import moved
from mtrec_ray.stages.tuning.searcher import drawn
from tests.builders import two_scenario_project


def searching(fields: dict[str, Any] | None = None, **tree) -> Project:
    """The project of two scenarios with a search of some fields, and other sections changed."""
    own = two_scenario_project().dump()
    sections = {name: own[name] | given for name, given in tree.items()}
    search = own["search"] | sections.get("search", {}) | {"fields": fields}
    return parse_project(own | sections | {"search": search})


@pytest.mark.parametrize(
    ("field", "text", "line"),
    [
        ("training.lrr", {"uniform": [0, 1]}, r"no such field \(lrr\); allowed: accumulation, "),
        (
            "scenarios.shopp.weight",
            {"uniform": [0, 1]},
            r"no such field \(shopp\); allowed: shop, vid",
        ),
        ("training.lr.x", {"uniform": [0, 1]}, r"no such field \(x\); allowed: no deeper field"),
        ("model.encoder", [1, 2], r"a section; allowed: one of compile, "),
        (
            "training.lr",
            {"uniform": [-1, 1]},
            r"found -1\.0; allowed: input should be greater than 0",
        ),
        ("model.width", [16, 30], r"found 30; allowed: a multiple of attention_heads"),
        ("model.sharing", ["mmoe", "moe"], r"found 'moe'; allowed: input should be 'bottom'"),
        ("model.experts", {"randint": [2, 8]}, r"without effect \(model\.sharing is bottom\)"),
        ("model.encoder.max_tokens", [8, 16], r"that prepared data depends on"),
        ("scenarios.shop.history.last", [2, 3], r"that prepared data depends on"),
        ("scenarios.shop.weight", {"uniform": [0, 1]}, r"beside scenario_weights: true"),
        ("training.epochs", [1, 2], r"all trials share \(search\.epochs sets it"),
        ("training.teacher.share", {"uniform": [0, 1]}, r"all trials share \(the teacher"),
        ("run.num_workers", [1, 2], r"all trials share \(resources"),
        ("evaluation.precision", ["fp32"], r"all trials share \(the score"),
    ],
)
def test_a_field_that_cannot_be_searched(field, text, line):
    """One line: the field, what is wrong with it, what is allowed."""
    (found,) = space_problems(searching({field: text}))
    assert found.startswith(f"search.{field}: found ")

    assert re.search(line, found), found


def test_a_range_for_a_frozen_encoder():
    """Its learning rate has no effect, unless what is trainable is searched, too."""
    frozen = {"model": two_scenario_project().dump()["model"]}
    frozen["model"]["encoder"]["trainable"] = "none"
    rate = {"training.lr_encoder": {"loguniform": [1e-6, 1e-4]}}
    (found,) = space_problems(searching(rate, **frozen))
    assert found == (
        "search.training.lr_encoder: found a range for a field without effect "
        "(model.encoder.trainable is none); allowed: none"
    )
    both = rate | {"model.encoder.trainable": ["none", "top_k"]}
    assert space_problems(searching(both, **frozen)) == []


def test_all_mistakes_at_once():
    """Every wrong field has its line."""
    fields = {"training.lrr": {"uniform": [0, 1]}, "model.width": [30]}
    project = searching(fields, search={"grace": 99})
    assert [line.split(":")[0] for line in space_problems(project)] == [
        "search.training.lrr", "search.model.width", "search.grace"
    ]  # fmt: skip


def test_a_search_of_nothing():
    """Neither weights nor fields: refused."""
    (line,) = space_problems(searching({}, search={"scenario_weights": False}))
    assert line.startswith("search: found nothing to search; allowed: ")


def test_default_fields_are_around_the_own_values():
    """Both learning rates, a fifth to five times theirs; only that of the heads when frozen."""
    project = searching()
    space = space_of(project)
    rate = project.training.lr
    assert space.ranges["training.lr"].ends[0] == pytest.approx(rate / 5)
    assert space.ranges["training.lr"].ends[1] == pytest.approx(rate * 5)
    frozen = with_overrides(project, {"model.encoder.trainable": "none"})
    assert set(space_of(frozen).ranges) == {"training.lr"}
    assert set(space.ranges) >= {"training.lr"}


def test_a_point_changes_what_it_names_and_no_more():
    """Overrides of a point are the weights and fields searched, the rest of the project stays."""
    project = searching({"training.lr": {"loguniform": [1e-4, 1e-2]}, "model.dropout": [0.0, 0.5]})
    space = space_of(project)
    point = {"lambda.shop": 0.5, "lambda.video": 0.25, "training.lr": 3e-3, "model.dropout": "0.5"}
    assert set(space.distributions()) == set(point)
    other = with_overrides(project, space.overrides(point))
    weights = [other.scenarios[n].weight for n in ("shop", "video")]
    assert weights[1] / weights[0] == pytest.approx(math.log(0.25) / math.log(0.5), rel=1e-4)
    assert sum(weights) == pytest.approx(2, rel=1e-5)
    changed = [d.split(" = ")[0] for d in differences(project.dump(), other.dump())]
    assert set(changed) <= {
        "scenarios.shop.weight", "scenarios.video.weight", "training.lr", "model.dropout"
    }  # fmt: skip


def test_own_values_are_a_point():
    """The project's own values are a point of the space, the nearest one where they are outside."""
    project = searching({"training.lr": {"uniform": [5, 6]}, "model.dropout": [0.0, 0.5]})
    space = space_of(project)
    point = space.point_of(project)
    for name, found in space.distributions().items():
        assert found._contains(found.to_internal_repr(point[name]))
    assert point["training.lr"] == 5


def test_own_values_among_options():
    """The same number, or the nearest; `1` is `1.0`, and no text."""
    project = with_overrides(
        searching({"training.clip_norm": [5, 1], "training.batch_size": [8, 99]}),
        {"training.clip_norm": 1.0, "training.batch_size": 96},
    )
    point = space_of(project).point_of(project)
    assert point["training.clip_norm"] == "1"
    assert point["training.batch_size"] == "99"


@pytest.mark.parametrize(
    ("field", "text", "found"),
    [
        ("model.width", {"randint": [16, 64]}, "17"),
        ("model.width", {"uniform": [16, 64]}, "31.27"),
        ("training.batch_size", {"loguniform": [32, 512]}, "184.78"),
    ],
)
def test_ranges_hold_only_what_a_field_may_be(field, text, found):
    """Whole numbers for a field of whole numbers, and each number that the range holds."""
    (line,) = space_problems(searching({field: text}))
    assert line.startswith(f"search.{field}: found {found}")


def test_references_begin_a_search():
    """Own values change nothing; uniform weights only where they are others; one-hot on demand."""
    own = two_scenario_project()
    weights = {n: s.weight for n, s in own.scenarios.items()}
    skewed = with_overrides(
        searching(), {"scenarios.shop.weight": 3.0, "scenarios.video.weight": 1}
    )
    assert references(skewed) == {
        "own": {}, "uniform": {"scenarios.shop.weight": 1.0, "scenarios.video.weight": 1.0}
    }  # fmt: skip
    even = with_overrides(skewed, {"scenarios.shop.weight": 1.0})
    assert references(even) == {"own": {}}
    worst = searching(search={"choose": "worst_case"})
    assert references(worst)["only_video"] == {
        "scenarios.shop.weight": 0.0, "scenarios.video.weight": 1.0,
        "training.patience": worst.training.epochs,
    }  # fmt: skip
    assert set(weights) == {"shop", "video"}


def test_a_grid_has_all_combinations():
    """The simplex in steps, times choices, times both ends and the middle of a range."""
    fields = {"training.lr": {"loguniform": [1e-4, 1e-2]}, "model.dropout": {"grid": [0.0, 0.5]}}
    space = space_of(searching(fields))
    points = list(space.grid(4))
    assert len(points) == 5 * 3 * 2
    assert {round(p["training.lr"], 9) for p in points} == {1e-4, 1e-3, 1e-2}
    assert len({repr(space.overrides(p)) for p in points}) == len(points)


@pytest.mark.parametrize(
    ("fields", "search", "line"),
    [
        ({}, {"num_workers": 2}, r"search\.num_workers: found 2 with scheduler: pbt; allowed: 0"),
        ({}, {"algorithm": "grid"}, r"search\.algorithm: found grid with scheduler: pbt"),
        ({}, {"grace": 99}, r"search\.grace: found 99; allowed: at most \d+ epochs"),
        (
            {"model.sharing": ["mmoe", "ple"]},
            {},
            r"search\.model\.sharing: .* weights, training",
        ),
    ],
)
def test_what_a_population_cannot_search(fields, search, line):
    """Trials go on from each other: in one process each, of the same model."""
    asked = {"scheduler": "pbt", "num_workers": 0} | search
    (found,) = space_problems(searching(fields, search=asked))
    assert re.search(line, found), found


def test_a_population_moves_inside_the_ranges():
    """Moved points stay in their ranges, most of them near, some far; weights have a mean of 1."""
    fields = {"training.lr": {"loguniform": [1e-4, 1e-2]}, "training.clip_norm": [1, 5]}
    space = space_of(searching(fields))
    point, rng = drawn(space, 1, 0)[0], np.random.default_rng(0)
    found = [moved(space, point, rng) for _ in range(300)]
    rates = np.array([p["training.lr"] for p in found])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert np.median(abs(np.log(rates / point["training.lr"]))) < 0.2 * np.log(100)
    assert {p["training.clip_norm"] for p in found} == {"1", "5"}
    for other in found[:20]:
        changed = space.overrides(other)
        weights = [v for k, v in changed.items() if k.endswith(".weight")]
        assert sum(weights) == pytest.approx(len(weights), rel=1e-4)
        with_overrides(searching(fields), changed)
