"""How much each searched field matters for the joint score, as Optuna judges it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

LEAST_TRIALS = 4


def importances(
    values: Sequence[Mapping[str, Any]], scores: Sequence[float], *, seed: int = 0
) -> dict[str, float]:
    """Share of the score's variance that each field explains alone (fANOVA, Hutter et al. 2014).

    `values` by field of each trial, and its score. Empty below four trials with a score, or where
    all scores or all values are equal.
    """
    rows = [(v, s) for v, s in zip(values, scores, strict=True) if math.isfinite(s)]
    fields = [f for f in (rows[0][0] if rows else {}) if len({repr(v[f]) for v, _ in rows}) > 1]
    if len(rows) < LEAST_TRIALS or not fields or len({s for _, s in rows}) < 2:
        return {}
    space = {f: distribution([v[f] for v, _ in rows]) for f in fields}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for found, score in rows:
        params = {f: plain(found[f]) for f in fields}
        study.add_trial(optuna.trial.create_trial(value=score, params=params, distributions=space))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {field: float(share) for field, share in shares.items()}


def plain(value: Any) -> Any:
    """A number as a float, anything else as text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else json.dumps(value)


def distribution(values: Sequence[Any]) -> BaseDistribution:
    """The range that the values span, or the texts that they are."""
    found = [plain(v) for v in values]
    if all(isinstance(v, float) for v in found):
        return FloatDistribution(min(found), max(found))
    return CategoricalDistribution(sorted({str(v) for v in found}))
