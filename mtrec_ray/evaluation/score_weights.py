"""Whether the joint validation score exists at all."""

import numpy as np

from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.shards import read_columns
from mtrec_ray.project.project import Project


def has_labels(prepared: Prepared, name: str, split: str) -> bool:
    """Returns whether a split of a scenario has a labelled row; reads until it finds one."""
    batches = read_columns(prepared.shard_paths(name, split), ("labels",))
    return any(np.isfinite(batch["labels"]).any() for batch in batches)


def score_problems(project: Project, prepared: Prepared) -> list[str]:
    """Returns a line where no scenario that has a weight has a labelled row in valid.

    The joint score would be NaN: training would stop by patience and keep an arbitrary model.
    """
    weights = project.evaluation.weights or dict.fromkeys(prepared.scenarios, 1.0)
    scored = [name for name in prepared.scenarios if weights.get(name, 0.0) > 0]
    if any(has_labels(prepared, name, "valid") for name in scored):
        return []
    return [
        f"evaluation.weights: found weights above 0 for {', '.join(scored)} alone, without a label "
        "in valid; allowed: one above 0 for a scenario with labels there"
    ]
