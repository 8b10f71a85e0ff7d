"""Which fields prepared data and a joint model depend on, and how two configurations differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtrec_ray.project.base import shorten
from mtrec_ray.project.project import Project
from mtrec_ray.project.task import SHAPES
from mtrec_ray.project.users import Users

# Plain JSON values by field: what a stage is made from.
Fields = Mapping[str, Any]

# Fields of a task that its loss depends on, and prepared data does not.
OF_LOSS = ("weight", *SHAPES)

FORMAT = 6  # of prepared data; another one cannot be read


def prepared_data_depends_on(project: Project) -> Fields:
    """Returns the fields of the project that prepared data depends on."""
    weights = {n: {"weight": True, "tasks": {"__all__": set(OF_LOSS)}} for n in project.scenarios}
    for name, scenario in project.scenarios.items():
        if not scenario.events.several:  # data that was prepared before there were any stays valid
            weights[name] |= {"events": {"lists", "separators"}}
    tables = {"users": {n: fields_of_users(u) for n, u in project.users.items()}}
    encoder = {"source", "max_tokens"}
    read = [users.text is not None for users in project.users.values()]
    read += [bool(scenario.history.elsewhere) for scenario in project.scenarios.values()]
    if any(read):
        encoder |= {"pooling"}
    return {
        "format": FORMAT,
        **(tables if project.users else {}),
        **project.model_dump(
            mode="json",
            by_alias=True,
            include={"data_seed": True, "sample_world": True, "scenarios": True},
            exclude={"scenarios": weights},
        ),
        "model": {"encoder": project.model.encoder.model_dump(include=encoder)},
    }


def fields_of_users(users: Users) -> Fields:
    """Returns the fields of a table of users, without those of times where it has none.

    Data that was prepared before there were any stays valid.
    """
    unused = set() if users.time else {"time", "time_unit"}
    return users.model_dump(mode="json", exclude=unused)


def joint_model_depends_on(project: Project, prepared: str) -> Fields:
    """Returns what the joint model depends on: the prepared data's fingerprint, and fields."""
    return {
        "prepared": prepared,
        **project.model_dump(
            mode="json",
            by_alias=True,
            include={
                "scenarios": {"__all__": {"weight": True, "tasks": {"__all__": set(OF_LOSS)}}},
                "model": True,
                "training": True,
                "evaluation": {"weights", "valid_rows"},
            },
            exclude={"training": {"max_skipped"}},
        ),
    }


def task_weights(project: Project, name: str) -> Fields:
    """Returns weights and shapes of the losses of a scenario's tasks, by their names."""
    tasks = project.scenarios[name].tasks
    own = {n: t.model_dump(mode="json", include=set(OF_LOSS)) for n, t in tasks.items()}
    return {"scenarios": {name: {"tasks": own}}}


def differences(before: object, now: object, field: str = "") -> Iterator[str]:
    """Yields `field = value (now value)` for each leaf that differs between two trees."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            inner = f"{field}.{key}" if field else str(key)
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{field} = {shorten(before)} (now {shorten(now)})"


def fingerprint(*parts: object) -> str:
    """Returns 16 hex digits of the SHA-256 of plain values; equal for equal configuration."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
