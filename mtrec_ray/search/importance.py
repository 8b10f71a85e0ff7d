"""How much each searched field matters for the joint score, as Optuna estimates it."""

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
    """Returns the share of the score's variance that each field explains alone (fANOVA, 2014).

    `values` by field of each trial, and its score. Empty below four trials with a score, or where
    all scores or all values are equal.
    """
    rows = [(v, s) for v, s in zip(values, scores, strict=True) if math.isfinite(s)]
    fields = [f for f in (rows[0][0] if rows else {}) if len({repr(v[f]) for v, _ in rows}) > 1]
    if len(rows) < LEAST_TRIALS or not fields or len({s for _, s in rows}) < 2:
        return {}
    space = {f: spanned_distribution([v[f] for v, _ in rows]) for f in fields}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for values_of_trial, score in rows:
        params = {f: as_param(values_of_trial[f], space[f]) for f in fields}
        study.add_trial(optuna.trial.create_trial(value=score, params=params, distributions=space))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {field: float(share) for field, share in shares.items()}


def as_param(value: Any, space: BaseDistribution) -> Any:
    """Returns a value as its distribution holds it: a number, or a JSON text."""
    return json.dumps(value) if isinstance(space, CategoricalDistribution) else float(value)


def spanned_distribution(values: Sequence[Any]) -> BaseDistribution:
    """Returns the range that the values span, or the texts that they are."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return FloatDistribution(float(min(values)), float(max(values)))
    return CategoricalDistribution(sorted({json.dumps(v) for v in values}))
