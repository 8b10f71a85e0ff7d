"""The kinds of labels, and the scale on which each is fitted.

    binary      0 or 1                      log loss
    regression  any number                  squared error
    count       whole numbers >= 0          Poisson deviance, with a logarithm as link
    duration    numbers >= 0                squared error of log(1 + y): a log-normal law
    multiclass  number of a class, from 0   log loss of a softmax over the classes

A duration is fitted as a number on its logarithmic scale, and told in its own units: what is
predicted of it is about the median, not the mean. A multiclass task has a probability for each
class, and one number, the expected gain; trees and blends leave it to the network.
"""

import numpy as np

LARGEST_LOG = 80.0  # of a count or a duration: its exponential is finite in 32 bits
LEAST_COUNT = 1e-6  # of a predicted count, whose logarithm is finite

# What trees minimise, on the scale of the fit; squared error for the others.
OBJECTIVES = {"binary": "binary", "count": "poisson"}


def fitted_scale(kind: str, values: np.ndarray) -> np.ndarray:
    """Returns labels [N] as they are fitted: log(1 + y) of a duration."""
    return np.log1p(np.maximum(values, 0)) if kind == "duration" else values


def own_units(kind: str, fitted: np.ndarray) -> np.ndarray:
    """Returns predictions [N] in the units of the label, from those on the scale of the fit."""
    if kind != "duration":
        return fitted
    return np.expm1(np.clip(fitted, 0, LARGEST_LOG))


def logarithmic(kind: str, values: np.ndarray) -> np.ndarray:
    """Returns labels [N] on the scale of their link: log(1 + y) of counts and durations."""
    return np.log1p(np.maximum(values, 0)) if kind in ("count", "duration") else values
