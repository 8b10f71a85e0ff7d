"""The export stage: what a run learned as files that other programs read.

    encoder/FORMAT/               the joint model's encoder, where a scenario's model reads with it
    scenarios/NAME/encoder/FORMAT/  that of a scenario whose own encoder was fine-tuned
    scenarios/NAME/vectors/       vectors of all items, and an index of them
    scenarios/NAME/user/          the map from histories to users' vectors
    scenarios/NAME/ranking/       the network that ranks, and what it reads of all items
    README.md, manifest.json      the model card; every file with its SHA-256, and how near it is

Each part is there whole or not at all; a part that is made from the same model is kept.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version as version_of
from typing import Any

from mtrec_ray.data import storage
from mtrec_ray.model.encoder import quantise_problems
from mtrec_ray.progress import Log, begin_stage
from mtrec_ray.project.base import refuse
from mtrec_ray.project.depends_on import Fields
from mtrec_ray.project.project import Project
from mtrec_ray.report.card import card_page
from mtrec_ray.stages.cluster import connect
from mtrec_ray.stages.exporting import encoder
from mtrec_ray.stages.exporting.encoder import EncoderFiles
from mtrec_ray.stages.exporting.parts import UNFINISHED, Part, Record
from mtrec_ray.stages.exporting.scenario import ScenarioFiles
from mtrec_ray.stages.finetuning.chosen_model import (
    chosen_model,
    joint_for_use,
    model_kind,
    version,
)
from mtrec_ray.stages.finetuning.joint_run import JointRun, check_data, check_names, open_joint_run
from mtrec_ray.stages.run_folder import RunFolder, with_search_choice
from mtrec_ray.stages.trained_model import TrainedModel, vectors_path

MANIFEST, CARD = "manifest.json", "README.md"
VERSION = 1  # of the files' layout
OF_SCENARIO = ("vectors", "user", "ranking")
FORMATS = (*OF_SCENARIO, *encoder.FORMATS)
NEEDS = {  # packages of the extra
    "user": ("onnx", "onnxscript", "onnxruntime"),
    "ranking": ("onnx", "onnxscript", "onnxruntime"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino-int8": ("onnx", "onnxscript", "openvino"),
}
TOLD_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Exporting:
    """The parts that can be exported of a joint model and the scenarios' models."""

    joint_run: JointRun
    project: Project

    @cached_property
    def models(self) -> dict[str, TrainedModel]:
        """The chosen model of each scenario."""
        return {n: chosen_model(self.joint_run, n, self.project) for n in self.joint_run.facts}

    @property
    def versions(self) -> dict[str, str]:
        """Which model each scenario has."""
        return {n: version(self.joint_run, n, model) for n, model in self.models.items()}

    @property
    def evaluation(self) -> Record | None:
        """The run's evaluation; None where there is none of these models."""
        found = self.joint_run.run.evaluate.result
        return found if found and found.get("models") == self.versions else None

    @cached_property
    def joint_encoder(self) -> EncoderFiles:
        """The files of the joint model's encoder."""
        return EncoderFiles(joint_for_use(self.joint_run, self.project))

    def parts(self, name: str) -> Iterator[tuple[str, Part]]:
        """Yields all parts of a scenario, and those of the encoder that it reads with, by format.

        Nothing is loaded for them before they are written.
        """
        model = self.models[name]
        made_from: Fields = {"layout": VERSION, "model": version(self.joint_run, name, model)}
        own, place = has_own_encoder(model), f"scenarios/{name}"
        reader = EncoderFiles(model) if own else self.joint_encoder
        yield from encoder_parts(
            reader,
            f"{place}/encoder" if own else "encoder",
            made_from if own else {"layout": VERSION, "model": self.joint_run.fingerprint},
        )
        files = ScenarioFiles(model, name, reader)
        made_from = made_from | {"precision": self.project.evaluation.precision}
        writers = (files.write_vectors, files.write_user, files.write_ranking)
        for kind, write in zip(OF_SCENARIO, writers, strict=True):
            yield kind, Part(f"{place}/{kind}", made_from, write)


def has_own_encoder(model: TrainedModel) -> bool:
    """Returns whether fine-tuning changed the encoder for a scenario."""
    return bool(model.delta) and model.project.model.encoder.trainable != "none"


def encoder_parts(files: EncoderFiles, place: str, made_from: Fields) -> Iterator[tuple[str, Part]]:
    """Yields the parts of an encoder by format."""
    for kind in encoder.FORMATS:
        yield kind, Part(f"{place}/{kind}", made_from, partial(files.write, kind))


def run_export(
    project: Project,
    storage_path: str,
    log: Log,
    names: Sequence[str] = (),
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Export some scenarios in some formats, by default all; returns the export's parts.

    What was exported before of the same models is kept and stays in the manifest; what was exported
    of other models is removed.

    Raises:
        ProjectError: an unknown format or scenario, a package that is missing, no joint model, or a
            model that reads pairs.
    """
    storage.check_writable(storage_path)
    wanted = check_formats(formats)
    run = RunFolder.of(project, storage_path)
    project = with_search_choice(project, run, log)
    if project.model.layout == "pair":
        refuse(["model.layout: found pair; allowed for an export: vectors (no text has a vector)"])
    if project.evaluation.precision == "int8":
        refuse(quantise_problems())
    joint_run = open_joint_run(project, storage_path)
    names = check_data(check_names(names, project), joint_run)
    exporting, folder = Exporting(joint_run, project), run.path("export")
    parts = {n: dict(by_place(exporting.parts(n))) for n in exporting.models}
    kept = keep_current([part for own in parts.values() for _, part in own.values()], folder)
    asked = {p: part for n in names for p, (kind, part) in parts[n].items() if kind in wanted}
    missing = [part for place, part in asked.items() if place not in kept]
    records = kept | write_parts(missing, exporting, folder, log)
    write_manifest(dict(sorted(records.items())), exporting, folder)
    return {"folder": folder, "parts": {place: in_short(records[place]) for place in asked}}


def check_formats(formats: Sequence[str]) -> list[str]:
    """Returns the formats, by default all, whose packages are there.

    Raises:
        ProjectError: one that is not known, or whose package is not installed.
    """
    unknown = [kind for kind in formats if kind not in FORMATS]
    refuse([f"--format: found {kind!r}; allowed: {', '.join(FORMATS)}" for kind in unknown])
    wanted = list(dict.fromkeys(formats)) or list(FORMATS)
    refuse([line for kind in wanted for line in missing_packages(kind)])
    return wanted


def missing_packages(kind: str) -> list[str]:
    """Returns an error line if a format needs a package that is not installed."""
    missing = [name for name in NEEDS.get(kind, ()) if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    free = ", ".join(other for other in FORMATS if other not in NEEDS)
    return [
        f"--format: found {kind}, for which {', '.join(missing)} is not installed; "
        f"allowed: {free}, or pip install 'mtrec-ray[export]'"
    ]


def by_place(parts: Iterator[tuple[str, Part]]) -> Iterator[tuple[str, tuple[str, Part]]]:
    """Yields parts with their formats by the place of each."""
    for kind, part in parts:
        yield part.place, (kind, part)


def keep_current(parts: Sequence[Part], folder: str) -> dict[str, Record]:
    """Returns the records of whole parts by place; removes parts of other models, or unfinished."""
    found = {}
    for part in parts:
        own = storage.join(folder, part.place)
        if record := part.read(folder):
            found[part.place] = record
        else:
            storage.remove_folder(own)
        storage.remove_folder(own + UNFINISHED)
    return found


def write_parts(
    parts: Sequence[Part], exporting: Exporting, folder: str, log: Log
) -> dict[str, Record]:
    """Write parts, one after another; returns their records by place."""
    if not parts:
        begin_stage(log, "export: already done")
        return {}
    begin_stage(log, f"export: {len(parts)} parts")
    if not all(storage.exists(vectors_path(model)) for model in exporting.models.values()):
        connect(exporting.project.run)  # workers encode the items
    found = {}
    for part in parts:
        found[part.place] = part.store(folder)
        log(f"{part.place}: {told_parity(found[part.place])}")
    return found


def in_short(record: Record) -> dict[str, Any]:
    """Returns what a job's last line tells of a part."""
    if "absent" in record:
        return {"absent": record["absent"]}
    return {"bytes": sum(file["bytes"] for file in record["files"].values()), **record["parity"]}


def told_parity(record: Record) -> str:
    """Returns how near a part is to the trained model, in words."""
    short = in_short(record)
    if "absent" in short:
        return f"not exported: {short['absent']}"
    return (
        f"{short['bytes'] / 1e6:,.1f} MB, largest difference {short['largest_difference']:.2g}, "
        f"smallest cosine {short['smallest_cosine']:.6f}"
    )


def write_manifest(records: Mapping[str, Record], exporting: Exporting, folder: str) -> None:
    """Write the model card and the manifest, which comes last."""
    models = {name: model_kind(model) for name, model in exporting.models.items()}
    project, facts = exporting.project, exporting.joint_run.facts
    card = card_page(project, facts, models, records, exporting.evaluation).encode()
    storage.write_bytes(storage.join(folder, CARD), card)
    manifest = {
        "layout": VERSION,
        "run": exporting.project.run.name,
        "joint_model": exporting.joint_run.fingerprint,
        "packages": {n: version_of(n) for n in TOLD_PACKAGES if importlib.util.find_spec(n)},
        "card": {"bytes": len(card), "sha256": hashlib.sha256(card).hexdigest()},
        "parts": dict(records),
    }
    storage.write_json(storage.join(folder, MANIFEST), manifest)
