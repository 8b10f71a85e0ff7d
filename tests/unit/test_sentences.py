"""Numbers in sentences: the checker finds what results do not bear out, and nothing else."""

import copy

import pytest

from benchmarks.sentences import agrees, numbers_of, problems, value_of

RESULT = {
    "figures": {
        "seconds": 276.4, "ahead": 7, "a.low": 0.1, "b.low": -0.2, "b.high": 0.3, "a.high": 0.2,
        "b.auc": 0.61, "no text.b.auc": 0.6,
    },
    "seeds": 3, "runs": [{"rows": "2,507"}, {}], "importance": {"training.lr": 0.77},
}  # fmt: skip
PAGE = """
# Title

It is ahead on 7 tasks of `real4`, and took 4.6 minutes
for 3 seeds.

<!-- numbers real4: 7 = ahead; 4.6 = seconds / 60;
  3 = seeds; b.auc > no text.b.auc -->

<!-- table -->
| 1 | 2 |
<!-- end -->

Nothing here.
"""


def checked(text, result=RESULT):
    return problems(text, lambda name: {"real4": result}[name])


def test_a_true_page_has_no_problems():
    """Bound numbers that agree, and generated tables, are no problem."""
    assert checked(PAGE) == []


@pytest.mark.parametrize(
    ("key", "value"), [("ahead", 8), ("seconds", 280.0), ("no text.b.auc", 0.62)]
)
def test_a_changed_result_is_found(key, value):
    """A number, a converted number and a comparison fail once the result says otherwise."""
    result = copy.deepcopy(RESULT)
    result["figures"][key] = value
    assert len(checked(PAGE, result)) == 1


@pytest.mark.parametrize(
    "text",
    [
        PAGE.replace("Nothing here", "On 5 of them"),
        PAGE.replace("on 7 tasks", "on 7 of 15 tasks"),
        PAGE.replace("7 = ahead; ", ""),
        PAGE.replace("on 7 tasks", "on many tasks"),
        PAGE.replace("# Title", "# Title of 2"),
    ],
    ids=["no comment", "one more", "binding gone", "number gone", "heading"],
)
def test_a_number_and_its_binding_come_together(text):
    """A number without a binding fails, and so does a binding without a number."""
    assert any("found numbers" in line for line in checked(text))


def test_unknown_names_are_problems():
    """A figure that is not there, and an item that is no sentence of the language, are told."""
    assert len(checked("<!-- numbers real4: gone > 1; nonsense -->")) == 2


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("ahead - 1 * 2", 12),
        ("b.auc - no text.b.auc", 0.01),
        ("importance.training.lr * 100", 77),
        ("runs", 2),
        ("runs.0.rows", 2507),
        ("count(*.low > 0)", 1),
        ("count(*.low < *.high)", 2),
        ("count(*.low < 0 of a c) + count(*.low > 0 without b*)", 1),
        ("max(*.low)", 0.1),
        ("min(*.low) + 1", 0.8),
    ],
)
def test_expressions(expression, value):
    """Keys, operators from left to right, counts with names, the largest and the smallest."""
    assert value_of(expression, RESULT) == pytest.approx(value)


def test_agreement_is_at_the_precision_shown():
    """A number agrees up to half of its last digit."""
    assert agrees("4.6", 4.649)
    assert not agrees("4.6", 4.66)
    assert agrees("129,612", 129_612.05)
    assert not agrees("0", 0.6)


def test_what_is_no_number():
    """Code, targets of links, arXiv ids, list numbers and names with digits are not read."""
    text = "1. `x 3` of fp32, recall@20, B0-B4, [1905.03375](https://arxiv.org/abs/1905.03375): 2x"
    assert numbers_of(text) == ["2"]
