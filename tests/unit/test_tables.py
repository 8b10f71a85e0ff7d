"""Tables of results: bold and rows say what the figures say."""

from benchmarks.tables import alone, headline, source

FIGURES = {
    "a.x.auc": 0.70, "a.x.alone.auc": 0.71, "a.y.auc": 0.80, "a.y.alone.auc": 0.79,
    "b.z.rmse": 0.9, "b.z.alone.rmse": 1.0, "b.t.auc": 0.60001, "b.t.alone.auc": 0.60002,
}  # fmt: skip
TABLE = [
    {
        "task": task,
        "joint": f"**{joint}**",
        "lightgbm": other,
        "joint less best of ours": "+0.01 [+0.00, +0.02] lightgbm",
        "alone": by_itself,
        "joint less alone": "0",
    }
    for task, joint, other, by_itself in (
        ("a.x", "0.7000 (0.6)", "0.6900 (0.7)", "0.7100 (0.6)"),
        ("a.y", "0.8000 (0.6)", "0.7000 (0.7)", "0.7900 (0.6)"),
        ("b.z", "0.9000", "1.1000", "1.0000"),
        ("b.t", "0.6000", "0.5000", "0.6000"),
    )
]
RESULT = {"figures": FIGURES, "table": TABLE}


def test_bold_is_the_winner_of_this_table():
    """Bold among all models is not bold beside a better or an equal one alone; RMSE is turned."""
    cells = [(row["joint"], row["alone"]) for row in alone(RESULT)]
    assert cells == [
        ("0.7000 (0.6)", "**0.7100 (0.6)**"),
        ("**0.8000 (0.6)**", "0.7900 (0.6)"),
        ("**0.9000**", "1.0000"),
        ("0.6000", "0.6000"),
    ]


def test_headline_has_the_first_task_of_each_scenario():
    """One row a scenario of real4, in their order, with the difference to LightGBM."""
    own = {
        "joint": 0.7, "trees": 0.69, "lightgbm_here": 0.71, "reference": 0.68,
        "less_trees_low": 0.005, "less_trees_high": 0.015,
    }  # fmt: skip
    figures = {f"{task}.{key}": value for task in ("a.x", "b.z") for key, value in own.items()}
    table = [{"data": "real4", "task": task} for task in ("a.x", "a.y", "b.z")]
    rows = headline({"figures": figures, "table": table})
    assert [row["first task"] for row in rows] == ["a.x", "b.z"]
    assert rows[0]["joint"] == "0.7000"
    assert rows[0]["LightGBM"] == "0.6900"
    assert rows[0]["joint less LightGBM [95 % interval]"] == "+0.0100 [+0.0050, +0.0150]"


def test_source_names_command_commit_and_date():
    """A table says how, where and when it came about."""
    facts = {"command": "python -m x", "date": "2026-01-02", "commit": "abc", "cores": 2}
    line = source({**facts, "processor": "P"})
    assert all(str(value) in line for value in facts.values())
