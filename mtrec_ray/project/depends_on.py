"""Which fields prepared data and a joint model depend on, and how two configurations differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtrec_ray.project.base import shorten
from mtrec_ray.project.project import Project


def fingerprint(*parts: object) -> str:
    """16 hex digits of the SHA-256 of plain values; equal for equal configuration."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


FORMAT = 3  # of prepared data; another one cannot be read


def prepared_with(project: Project) -> dict[str, Any]:
    """The fields that prepared data depends on, as a tree."""
    tree = project.dump()
    for scenario in tree["scenarios"].values():
        scenario.pop("weight")
        for task in scenario["tasks"].values():
            task.pop("weight")
    encoder = tree["model"]["encoder"]
    return {
        "format": FORMAT,
        "data_seed": tree["data_seed"],
        "sample_world": tree["sample_world"],
        "scenarios": tree["scenarios"],
        "model": {"encoder": {k: encoder[k] for k in ("source", "max_tokens")}},
    }


def trained_with(project: Project) -> dict[str, Any]:
    """The fields that the joint model depends on beside the prepared data, as a tree."""
    weights = {
        name: {
            "weight": scenario.weight,
            "tasks": {n: {"weight": task.weight} for n, task in scenario.tasks.items()},
        }
        for name, scenario in project.scenarios.items()
    }
    tree = project.dump()
    tree["training"].pop("max_skipped")
    score = {key: tree["evaluation"][key] for key in ("weights", "valid_rows")}
    return {
        "scenarios": weights,
        "model": tree["model"],
        "training": tree["training"],
        "evaluation": score,
    }


def differences(before: object, now: object, field: str = "") -> Iterator[str]:
    """`field = value (now value)` for each leaf that differs between two trees."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            inner = f"{field}.{key}" if field else str(key)
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{field} = {shorten(before)} (now {shorten(now)})"


def prepare_fingerprint(project: Project, inputs: str) -> str:
    """Changes with the fields and the input files that prepared data depends on."""
    return fingerprint(prepared_with(project), inputs)
