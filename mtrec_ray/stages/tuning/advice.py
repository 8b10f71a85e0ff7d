"""What a search is worth, and what to do: lines that a person can act on.

The best of many trials looks better than it is on the rows that it was chosen by. So the gain of
the chosen values over the project's own is told three times: of the search, of whole runs on valid,
and of whole runs on test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mtrec_ray.project.project import Project
from mtrec_ray.search.affinity import advice_of, affinities
from mtrec_ray.stages.tuning.outcome import Outcome, values_of
from mtrec_ray.stages.tuning.runner import score_of

CONFIRM = "search.confirm_seeds: 3 tells whether it holds, by whole runs"


def advice_lines(
    project: Project,
    outcome: Outcome,
    confirmed: Mapping[str, Any] | None,
    of_people: Sequence[str],
) -> list[str]:
    """Returns what the search is worth, which values to take, and who helps whom."""
    return [
        *worth_lines(outcome, confirmed),
        *choice_lines(project, outcome, confirmed),
        *advice_of(affinities(outcome.trials)),
        *of_people,
    ]


def worth_lines(outcome: Outcome, confirmed: Mapping[str, Any] | None) -> list[str]:
    """Returns the gain over the project's own values, and which values brought it."""
    own = outcome.trial("own")
    if own is None or outcome.chosen.name == own.name:
        return ["no trial was better than the project's own values: keep them"]
    searched = score_of(own) - score_of(outcome.chosen)
    line = f"{outcome.chosen.name} has a lower joint score than the project's own values: by "
    line += f"{searched:.4f} in the search, by whose rows it was chosen"
    worth = (confirmed or {}).get("worth", {})
    if "all" not in worth:
        return [f"{line}; {CONFIRM}"]
    told = " and ".join(f"{gain_text(worth['all'][s])} on {s}" for s in ("valid", "test"))
    lines = [f"{line}; in whole runs by {told}"]
    if "weights" in worth:
        lines.append(
            f"of the gain on test the loss weights brought {gain_text(worth['weights']['test'])}, "
            f"the other values {gain_text(worth['other_values']['test'])}"
        )
    return lines


def choice_lines(
    project: Project, outcome: Outcome, confirmed: Mapping[str, Any] | None
) -> list[str]:
    """Returns whether to take the chosen values, and which these are."""
    own = outcome.trial("own")
    if own is None or outcome.chosen.name == own.name:
        return []
    values = values_of(project, outcome.chosen)
    told = ", ".join(f"{field} {value_text(value)}" for field, value in values.items())
    worth = (confirmed or {}).get("worth", {})
    if "all" not in worth:
        return [f"its values: {told}"]
    gain = worth["all"]["test"]
    if gain["mean"] <= 0:
        return [f"keep the project's own values: on test those of {outcome.chosen.name} are worse"]
    sure = "" if gain["low"] > 0 else ", though chance could have made the gain"
    parts = [f"take the values of {outcome.chosen.name} (chosen.yaml){sure}: {told}"]
    weights = worth.get("weights", {}).get("test")
    if weights and weights["mean"] <= 0 < worth["other_values"]["test"]["mean"]:
        parts.append("its loss weights bring nothing on test: the project's own do as well")
    return parts


def gain_text(gain: Mapping[str, float]) -> str:
    """Returns `+0.0123 [+0.0080, +0.0166]`, a mean over seeds and its 95 % interval."""
    if gain["runs"] < 2:
        return f"{gain['mean']:+.4f} (one seed)"
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def value_text(value: Any) -> str:
    """Returns a value for a person."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
