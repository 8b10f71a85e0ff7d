"""What a user took in other scenarios: found as of any moment, as plain loops find it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.data.catalogue import NO_TIME
from mtrec_ray.data.elsewhere import UNKNOWN_AGE, ElsewhereFacts, Timeline
from mtrec_ray.project.base import ProjectError
from mtrec_ray.project.depends_on import prepared_data_depends_on
from mtrec_ray.project.load import load_project, parse_project
from tests.builders import project_tree, scenario_tree

SIZES = {"shop": 4, "news": 3, "video": 5}  # shop asks
DELAYS = {"news": 0, "video": 2000}
rows_of = st.lists(
    st.tuples(
        st.sampled_from([-(2**63), -7, 0, 3, 2**63 - 1]),  # persons
        st.one_of(st.none(), st.integers(0, 12).map(lambda n: 1000 * n)),  # when, of news and video
        st.integers(4, 11),  # items of news and video
    ),
    max_size=30,
)
asked_of = st.lists(
    st.tuples(st.sampled_from([-(2**63), -7, -6, 0, 2**63 - 1]), st.integers(-1, 15)), max_size=8
)


def timeline_of(rows, *, timed=True, last=3) -> Timeline:
    """Rows (person, time or None, item) as a timeline, and vectors that say nothing."""
    facts = ElsewhereFacts(last, timed, SIZES, DELAYS)
    columns = np.array([(p, known_of(t, i), i) for p, t, i in rows], np.int64).reshape(-1, 3)
    person, known, item = columns[np.lexsort([columns[:, 1], columns[:, 0]])].T
    texts = np.zeros((sum(SIZES.values()), 2), np.float16)
    return Timeline(facts, person, known, item.astype(np.int32), texts)


def known_of(time, item):
    """When a row is known."""
    return NO_TIME if time is None else time + (DELAYS["news"] if item < 7 else DELAYS["video"])


@settings(max_examples=300, deadline=None)
@given(rows_of, asked_of, st.booleans(), st.integers(1, 5))
def test_rows_are_found_as_plain_loops_find_them(rows, asked, timed, last):
    """The last ones strictly before the moment, newest first; without a time all of a person's."""
    timeline = timeline_of(rows, timed=timed, last=last)
    person = np.array([p for p, _ in asked], np.int64)
    moment = np.array([1000 * m for _, m in asked], np.int64)
    found = timeline.taken(person, moment)
    assert found.items.shape == found.ages.shape == (len(asked), last)
    for i, (who, when) in enumerate(asked):
        mine = [(known_of(t, item), t, item) for p, t, item in rows if p == who]
        seen = [r for r in mine if not timed or r[0] < 1000 * when]
        wanted = sorted((r[0] for r in seen), reverse=True)[:last]
        items = [int(item) for item in found.items[i] if item >= 0]
        assert found.items[i].tolist() == items + [-1] * (last - len(items))
        taken = [(known_of(t, item), item) for _, t, item in seen]
        assert len(items) == len(wanted)
        for item, known, age in zip(items, wanted, found.ages[i], strict=False):
            assert (known, item) in taken
            times = [t for k, t, other in seen if (k, other) == (known, item)]
            ages = {UNKNOWN_AGE if t is None or not timed
                    else int(np.log2(1 + (1000 * when - t) / 1000)) for t in times}  # fmt: skip
            assert age in ages
        assert not found.ages[i, len(items) :].any()


def test_items_are_numbered_over_all_catalogues():
    """Each scenario's items follow those of the one before."""
    facts = timeline_of([]).facts
    assert [facts.base(name) for name in SIZES] == [0, 4, 7]
    assert facts.origins(np.array([0, 3, 4, 6, 7, 11])).tolist() == [0, 0, 1, 1, 2, 2]


def tree_of(**users):
    """A project whose shop asks for what was taken elsewhere, by the users of each scenario."""
    scenarios = {
        name: scenario_tree({"click": {"kind": "binary"}}) | ({"users": own} if own else {})
        for name, own in users.items()
    }
    scenarios["shop"]["history"] = {"elsewhere": 20}
    return project_tree(scenarios)


@pytest.mark.parametrize(
    ("users", "found"),
    [
        ({"shop": None, "news": None}, "and users of its own"),
        ({"shop": None, "news": "people"}, "and users of its own"),
        ({"shop": "people"}, "and the users 'people' of its own"),
        ({"shop": "people", "news": "others"}, "and the users 'people' of its own"),
    ],
)
def test_people_who_are_nowhere_else_are_one_line(tmp_path, users, found):
    """A scenario without a name of its users, and one that is alone in it."""
    import yaml

    path = tmp_path / "project.yaml"
    path.write_text(yaml.safe_dump(tree_of(**users)))
    with pytest.raises(ProjectError) as error:
        load_project(path)
    assert error.value.problems == [
        f"scenarios.shop.history.elsewhere: found 20, {found}; allowed: 0, or `users` with a name "
        "that another scenario has, too"
    ]
    load_project(path, ["scenarios.shop.history.elsewhere=0"])


@pytest.mark.parametrize("last", [None, 7])
def test_scenarios_of_the_same_people_see_as_many_items_elsewhere_as_here(last):
    """Where nothing is said, and only among scenarios that share their users; 0 stays 0."""
    tree = tree_of(shop="people", news="people", books="others", video=None, music="people")
    scenarios = tree["scenarios"]
    scenarios["shop"].pop("history")
    if last:
        scenarios["news"]["history"] = scenarios["video"]["history"] = {"last": last}
    scenarios["music"]["history"] = {"elsewhere": 0}
    project = parse_project(tree)
    found = {name: s.history.elsewhere for name, s in project.scenarios.items()}
    assert found == {"shop": 20, "news": last or 20, "books": None, "video": None, "music": 0}
    again = parse_project(project.dump())
    assert {name: s.history.elsewhere for name, s in again.scenarios.items()} == found
    assert project.only(["news"]).scenarios["news"].history.elsewhere == (last or 20)


@pytest.mark.parametrize("value", [-1, 513, "all"])
def test_a_number_out_of_range_is_one_line(value):
    """From 0 to 512 items."""
    tree = tree_of(shop="people", news="people")
    tree["scenarios"]["shop"]["history"]["elsewhere"] = value
    with pytest.raises(ProjectError, match=r"^scenarios.shop.history.elsewhere: ") as error:
        parse_project(tree)
    assert len(error.value.problems) == 1


def test_a_project_that_does_not_ask_depends_on_what_it_did_before():
    """Data and models that were made before there was the field stay theirs."""
    tree = tree_of(shop="people", news="people")
    asks = prepared_data_depends_on(parse_project(tree))
    assert asks["scenarios"]["shop"]["history"]["elsewhere"] == 20
    assert "pooling" in asks["model"]["encoder"]
    tree["scenarios"]["news"]["users"] = "others"
    del tree["scenarios"]["shop"]["history"]
    fields = prepared_data_depends_on(parse_project(tree))
    assert "elsewhere" not in fields["scenarios"]["shop"]["history"]
    assert "pooling" not in fields["model"]["encoder"]
