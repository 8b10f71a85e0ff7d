"""A model card: what a run was trained on, how good it is, and what its exported files are."""

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mtrec_ray.data.prepared import PreparedScenario
from mtrec_ray.evaluation.metrics import MAIN_METRIC
from mtrec_ray.project.project import Project
from mtrec_ray.project.split import SPLITS, Split
from mtrec_ray.report.tables import markdown_table, number

OF_ENCODER = ("huggingface", "onnx", "onnx-int8", "openvino-int8")
NO_EVALUATION = "There is no evaluation of these models yet: run `evaluate`, then `export` again."

Facts = Mapping[str, PreparedScenario]
Row = dict[str, object]


def card_page(
    project: Project,
    facts: Facts,
    models: Mapping[str, str],
    parts: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> str:
    """Returns the model card in Markdown.

    `models` says which kind of model each scenario has, `evaluation` is one of these models, and
    `parts` are the exported parts by their place.
    """
    pages = Environment(
        loader=PackageLoader("mtrec_ray.report", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    names = list(facts)
    formats = {
        place.rsplit("/", 1)[-1] for place, record in parts.items() if "absent" not in record
    }
    return pages.get_template("card.md").render(
        run=project.run.name,
        generated=project.sample_world is not None,
        scenarios=names,
        formats=formats,
        read_texts=[f"`{kind}`" for kind in OF_ENCODER if kind in formats],
        encoder=project.model.encoder,
        data=markdown_table([data_row(n, facts[n], project) for n in names]),
        splits=[f"{n}: {split_text(project.scenarios[n].split)}" for n in names],
        training=markdown_table(training_rows(project, models)),
        metrics=markdown_table(metric_rows(evaluation, facts) if evaluation else []),
        slices=markdown_table(slice_rows(evaluation, facts) if evaluation else []),
        no_metrics=NO_EVALUATION,
        files=markdown_table([file_row(p, r) for p, r in parts.items() if "absent" not in r]),
        absent=[f"`{p}`: {r['absent']}" for p, r in parts.items() if "absent" in r],
    )


def data_row(name: str, facts: PreparedScenario, project: Project) -> Row:
    """Returns what a scenario's data is."""
    rows = {f"rows of {split}": f"{facts.num_rows(split):,}" for split in SPLITS}
    tasks = ", ".join(f"{task} ({kind})" for task, kind in facts.kinds.items())
    negatives = project.scenarios[name].negatives
    drawn = "in the log" if negatives is None or negatives.source == "log" else negatives.source
    return {
        "scenario": name, "tasks": tasks, "items": f"{facts.num_items:,}", **rows,
        "negatives": drawn,
    }  # fmt: skip


def split_text(split: Split) -> str:
    """Returns how rows are split, in words."""
    if split.time is not None:
        return f"by time, valid from {split.time[0]}, test from {split.time[1]}"
    if split.fractions is not None:
        shares = ", ".join(f"{share:g}" for share in split.fractions)
        return f"by fractions of each user's rows, {shares}"
    return f"by the column {split.column}"


def training_rows(project: Project, models: Mapping[str, str]) -> list[Row]:
    """Returns what decides how a model was trained, and which one each scenario has."""
    encoder, training = project.model.encoder, project.training
    told = {
        "encoder": f"`{encoder.source}`, what learned: {encoder.trainable}",
        "shared layers": project.model.sharing,
        "epochs, at most": training.epochs,
        "rows of a step": training.batch_size,
        "learning rates": f"{training.lr:g}, of the encoder {training.lr_encoder:g}",
        "weights of scenarios": ", ".join(
            f"{n} {s.weight:g}" for n, s in project.scenarios.items()
        ),
        "seed": training.seed,
        "models": ", ".join(f"{name} {kind}" for name, kind in models.items()),
    }
    return [{"what": key, "value": value} for key, value in told.items()]


def metric_rows(evaluation: Mapping[str, Any], facts: Facts) -> list[Row]:
    """Returns the main metric of each task, with its interval."""
    found: list[Row] = []
    for name, task, metric in main_metrics(facts):
        values = evaluation["metrics"][name].get(task, {})
        if metric in values:
            intervals = evaluation["details"][name]["intervals"]
            low, high = intervals.get(task, {}).get(metric, (None, None))
            own = {
                "value": number(metric, values[metric]),
                "95 %": f"{number(metric, low)} to {number(metric, high)}",
                "network": number(metric, values.get(f"network_{metric}", values[metric])),
                "rows": number("rows", values.get("rows")),
            }
            found.append({"scenario": name, "task": task, "metric": metric, **own})
    return found


def slice_rows(evaluation: Mapping[str, Any], facts: Facts) -> list[Row]:
    """Returns the main metric of each task for warm rows, new users and new items."""
    found: list[Row] = []
    for name, task, metric in main_metrics(facts):
        for part, values in evaluation["details"][name]["slices"].get(task, {}).items():
            own = {
                "value": number(metric, values.get(metric)),
                "rows": number("rows", values.get("rows")),
            }
            found.append({"scenario": name, "task": task, "slice": part, "metric": metric, **own})
    return found


def main_metrics(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yields the scenario, the name and the main metric of each task."""
    for name, own in facts.items():
        for task, kind in own.kinds.items():
            yield name, task, MAIN_METRIC[kind]


def file_row(place: str, record: Mapping[str, Any]) -> Row:
    """Returns what a part of an export is."""
    size, near = sum(f["bytes"] for f in record["files"].values()), record["parity"]
    return {
        "folder": f"`{place}`",
        "files": ", ".join(f"`{name}`" for name in record["files"]),
        "MB": f"{size / 1e6:,.1f}",
        "compared": near["rows"],
        "largest difference": f"{near['largest_difference']:.2g}",
        "smallest cosine": f"{near['smallest_cosine']:.6f}",
    }
