"""Tables for a person take what JSON keeps of numbers that are not finite."""

from mtrec_ray.report.tables import difference, metrics_table, ranking_table


def test_a_gap_without_an_interval_is_a_dash():
    """A stored gap whose interval is null is shown as none, a whole one with its star."""
    assert difference({"value": 0.1, "low": None, "high": None}) == "-"
    assert difference(None) == "-"
    assert difference({"value": 0.1, "low": 0.05, "high": 0.2}) == "+0.1000 [+0.0500, +0.2000] *"


def test_tables_take_null_for_a_metric():
    """An AUC or a recall that is null has no mark and does not break its table."""
    table = metrics_table(
        "t", {"shop": {"click": {"auc": None, "popularity_auc": 0.5}}}, {"auc": "AUC"}
    )
    assert table.row_count == 1
    found = {m: {"recall": None, "ndcg": 0.5} for m in ("model", "popularity", "neighbours")}
    gap = {"rival": "neighbours", "value": 0.1, "low": None, "high": None}
    gains = {"recall": gap, "ndcg": gap}
    facts = {"task": "click", "k": 10, "users": 3, "items": 5, "gain": gains}
    assert ranking_table("t", {"shop": facts | found}).row_count == 2
