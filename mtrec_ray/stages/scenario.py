"""One scenario's model: its project, where it starts from, and how it is used."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from mtrec_ray.config import parse_project
from mtrec_ray.data import storage
from mtrec_ray.data.prepare import refuse
from mtrec_ray.data.shards import Prepared, PreparedScenario, load_prepared, read_rows
from mtrec_ray.data.tokens import TINY, load_tokenizer
from mtrec_ray.learning import checkpoint
from mtrec_ray.learning.adapt import (
    ENCODER,
    Start,
    base_fingerprint,
    begin,
    read_base,
    read_delta,
    save_delta,
)
from mtrec_ray.learning.loop import build_model
from mtrec_ray.learning.validate import score_rows
from mtrec_ray.learning.vectors import ItemVectors
from mtrec_ray.model.encoder import TextEncoder, load_backbone
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.schema import Encoder, Project, Tuned
from mtrec_ray.stages.join import open_joined, restricted
from mtrec_ray.stages.marks import find_finished
from mtrec_ray.stages.prepare import open_prepared
from mtrec_ray.stages.train import BEST, joint_made_with
from mtrec_ray.stages.vectors import (
    Served,
    ensure_vectors,
    joint_model,
    load_served,
    load_with_vectors,
    local_copy,
)

SCENARIOS, ENCODER_FOLDER, DELTA_FOLDER = "scenarios", "encoder", "delta"
DECISION, ZERO_SHOT = "decision.json", "zero-shot"
BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Ground:
    """What scenarios are fine-tuned on.

    Attributes:
        project: of the joint model; `prepared`: its data.
        run_folder: of the run; `joint`: folder of the joint model's weights.
        fingerprint: of these weights.
        joined: data of the scenarios that joined later.
    """

    project: Project
    prepared: Prepared
    run_folder: str
    joint: str
    fingerprint: str
    joined: dict[str, Prepared] = field(default_factory=dict)

    def data(self, name: str) -> Prepared:
        """The prepared data that holds a scenario."""
        return self.joined.get(name, self.prepared)

    def is_new(self, name: str) -> bool:
        """Whether the joint model does not have the scenario."""
        return name not in self.prepared.scenarios

    @property
    def facts(self) -> dict[str, PreparedScenario]:
        """All scenarios, those that joined after the others."""
        more = {n: p.scenarios[n] for n, p in self.joined.items()}
        return self.prepared.scenarios | more

    def folder(self, name: str) -> str:
        """Where a scenario's model lies."""
        return storage.join(self.run_folder, SCENARIOS, name)

    @property
    def encoder(self) -> str:
        """The source of the joint model's encoder."""
        options = self.project.model.encoder
        if options.trainable == "none":
            return options.source
        return storage.join(self.run_folder, "joint", ENCODER_FOLDER)


def open_ground(project: Project, storage_path: str) -> Ground:
    """The finished joint model of a run.

    Raises:
        ValueError: there is none, or it was made with other values than the project has.
    """
    run_folder = storage.join(storage_path, project.run.name)
    stored = load_prepared(storage.join(run_folder, "prepared")).scenarios
    new = [n for n in project.scenarios if n not in stored]
    if new:
        whole, project = project, restricted(project, [n for n in project.scenarios if n in stored])
    else:
        whole = project
    prepared = open_prepared(project, storage_path)
    joint = storage.join(run_folder, "joint")
    made_with = joint_made_with(project, prepared)
    if not find_finished(joint, made_with, job="train", run=project.run.name):
        raise ValueError(f"joint model: found none in {joint}; run the train job first")
    best = storage.join(joint, BEST)
    opened = {n: open_joined(whole, run_folder, n) for n in new}
    joined = {n: p for n, p in opened.items() if p is not None}
    return Ground(project, prepared, run_folder, best, base_fingerprint(best), joined)


def check_names(names: Sequence[str], project: Project) -> list[str]:
    """The named scenarios, by default all.

    Raises:
        ProjectError: one that the project does not have.
    """
    unknown = [n for n in names if n not in project.scenarios]
    refuse([f"--scenario: found {n!r}; allowed: {', '.join(project.scenarios)}" for n in unknown])
    return list(dict.fromkeys(names)) or list(project.scenarios)


def with_data(names: Sequence[str], ground: Ground) -> list[str]:
    """The scenarios themselves.

    Raises:
        ProjectError: one that is new and has not been prepared.
    """
    missing = [n for n in names if n not in ground.facts]
    refuse(
        [
            f"scenarios.{n}: found no prepared data of it, and the joint model does not have it; "
            f"allowed: {', '.join(ground.facts)}, or first finetune --scenario {n}"
            for n in missing
        ]
    )
    return list(names)


def encoder_layers(project: Project, tuned: Tuned) -> int:
    """Top layers of the encoder that adapt to a scenario."""
    encoder = project.model.encoder
    if tuned.mode != "lora":
        return 0
    if tuned.lora.layers is not None:
        return tuned.lora.layers
    learned = {"none": 0, "top_k": encoder.top_k}
    return learned.get(encoder.trainable, encoder.lora.layers)


def encoder_options(ground: Ground, tuned: Tuned) -> dict[str, Any]:
    """The encoder of a scenario's model: as jointly trained, or that one, frozen or adapted."""
    options = ground.project.model.encoder.model_dump(mode="json")
    if tuned.mode == "full":
        return options
    layers, lora = encoder_layers(ground.project, tuned), tuned.lora
    own = {"rank": lora.rank, "alpha": lora.alpha, "layers": layers or 1, "targets": lora.targets}
    trainable = "lora" if layers else "none"
    gather = options["gather"] if layers else None
    return options | {
        "source": ground.encoder, "trainable": trainable, "lora": own, "gather": gather
    }  # fmt: skip


def single(project: Project, name: str) -> dict[str, Any]:
    """The project of one scenario, as a tree."""
    tree = project.dump()
    tree["scenarios"] = {name: tree["scenarios"][name] | {"weight": 1.0}}
    tree["evaluation"]["weights"] = {}
    tree["run"]["num_workers"] = tree["finetune"]["num_workers"]
    for section in ("finetune", "recommend", "search"):
        tree.pop(section, None)
    return tree


def scenario_project(ground: Ground, name: str, tuned: Tuned, project: Project) -> Project:
    """The project of a scenario's fine-tuning."""
    tree = single(project, name)
    tree["model"]["encoder"] = encoder_options(ground, tuned)
    decay = {"weight_decay": 0.0, "id_weight_decay": 0.0} if tuned.l2_sp else {}
    fields = ("lr", "lr_encoder", "epochs", "patience", "rows_per_epoch")
    own = {k: getattr(tuned, k) for k in fields}
    own["batch_size"] = tuned.batch_size or project.training.batch_size
    tree["training"] |= own | decay
    return parse_project(tree)


def start_of(ground: Ground, name: str, tuned: Tuned) -> Start:
    """Where a scenario's model starts."""
    lora = tuned.lora
    return Start(
        base=ground.joint,
        name=name,
        mode=tuned.mode,
        rank=lora.rank,
        alpha=lora.alpha,
        shared=lora.shared,
        is_new=ground.is_new(name),
        l2_sp=tuned.l2_sp,
    )


# --- the joint encoder -----------------------------------------------------------------------


def export_encoder(ground: Ground) -> None:
    """Write the encoder that joint training left as a plain one of Hugging Face, if it learned."""
    folder = ground.encoder
    options = ground.project.model.encoder
    if options.trainable == "none" or storage.exists(storage.join(folder, "config.json")):
        return
    state, _ = read_base(ground.joint)
    with tempfile.TemporaryDirectory() as local:
        plain_encoder(options, state).save_pretrained(local)
        if options.source != TINY:
            load_tokenizer(options.source).save_pretrained(local)
        fs, inner = storage.filesystem(folder)
        fs.create_dir(inner, recursive=True)
        names = sorted(p.name for p in Path(local).iterdir())
        for name in sorted(names, key=lambda n: n == "config.json"):  # it says that all is there
            storage.write_bytes(storage.join(folder, name), (Path(local) / name).read_bytes())


def plain_encoder(options: Encoder, state: dict[str, torch.Tensor]) -> Any:
    """The pretrained model with the weights of a joint model, its low-rank maps merged."""
    backbone: Any = load_backbone(options, with_pooler=True)
    pooler = getattr(backbone, "pooler", None)
    if pooler is not None:
        backbone.pooler = None
    encoder = TextEncoder(options.model_copy(update={"compile": False}), backbone)
    prefix = ENCODER + "."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    encoder.load_state_dict(own)
    adapted: Any = encoder.adapted
    plain = backbone if adapted is None else adapted.merge_and_unload()
    if pooler is not None:  # it is not used; without it a plain model would be told incomplete
        plain.pooler = pooler
    return plain


# --- a model for use -------------------------------------------------------------------------


def item_rows(prepared: Prepared, name: str) -> tuple[int, int]:
    """Where a scenario's items lie among those of all."""
    start = 0
    for other, facts in prepared.scenarios.items():
        if other == name:
            return start, start + facts.num_items
        start += facts.num_items
    raise KeyError(name)


def tuned_model(ground: Ground, name: str, project: Project) -> Served:
    """A scenario's fine-tuned model for use: the joint weights and its delta.

    Raises:
        ValueError: there is no delta, or it belongs to another base.
    """
    return tuned_in(ground, name, project, storage.join(ground.folder(name), DELTA_FOLDER))


def tuned_in(ground: Ground, name: str, project: Project, delta: str) -> Served:
    """A scenario's fine-tuned model for use, whose delta lies in a folder.

    Raises:
        ValueError: there is no delta, or it belongs to another base.
    """
    facts = read_delta(delta, ground.fingerprint, name)
    tuned = Tuned.model_validate(facts["tuned"])
    own = scenario_project(ground, name, tuned, project)
    frozen = (own.model.encoder.trainable, project.model.encoder.trainable) == ("none", "none")
    vectors, rows = delta, None
    if frozen and not ground.is_new(name):
        vectors, rows = ground.joint, item_rows(ground.prepared, name)
    tree, data = json.dumps(own.dump()), ground.data(name).folder
    return Served(tree, data, ground.joint, vectors, start_of(ground, name, tuned), delta, rows)


def zero_shot_model(ground: Ground, name: str, project: Project) -> Served:
    """The general head of the joint model for a scenario that it does not have.

    Raises:
        ValueError: joint training did not maintain one.
    """
    if not ground.project.model.general:
        raise ValueError(
            f"scenario {name}: found model.general: false, so that nothing scores it before it "
            "is fine-tuned; allowed: finetune with enough rows, or train with model.general"
        )
    tuned = project.finetune.of(name).model_copy(update={"mode": "head"})
    own = scenario_project(ground, name, tuned, project)
    folder = storage.join(ground.folder(name), "general")
    start = start_of(ground, name, tuned)
    tree, data = json.dumps(own.dump()), ground.data(name).folder
    return Served(tree, data, ground.joint, folder, start, general=True)


def base_model(ground: Ground) -> Served:
    """The joint model for use."""
    return joint_model(ground.project, ground.prepared.folder, ground.joint)


def load_scenario_model(ground: Ground, name: str) -> tuple[Recommender, ItemVectors]:
    """The model of a scenario for use and its item vectors' place: the base and one delta."""
    return load_served(tuned_model(ground, name, ground.project))


def store_delta(
    project: Project,
    prepared: Prepared,
    start: Start,
    best: str,
    folder: str,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write what fine-tuning changed, from the weights of its best epoch; in a Ray task."""
    model, _ = build_model(project, prepared, torch.device("cpu"), "fp32")
    wrapper = begin(model, start)
    with local_copy(best) as local:
        checkpoint.load_model(local, model)
    return save_delta(model, wrapper, start, folder, **facts)


# --- scores of rows --------------------------------------------------------------------------

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def score_rows_of(served: Served, name: str, split: str) -> Rows:
    """Persons i64[N], labels f32[N, T] and predictions f32[N, T] of a split, by Ray tasks."""
    facts, run = served.open_prepared().scenarios[name], served.parsed.run
    shards = facts.shards[split]
    vectors = ray.put(ensure_vectors(served))
    task = ray.remote(num_cpus=run.cpus_per_worker, num_gpus=1 if run.use_gpu else 0)(score_shards)
    size = min(run.most_workers, len(shards))
    cuts = [(len(shards) * i // size, len(shards) * (i + 1) // size) for i in range(size)]
    parts = [
        task.remote(served, vectors, name, [(s.path, s.rows) for s in shards[a:b]]) for a, b in cuts
    ]
    found: list[Rows] = ray.get(parts)
    users, labels, scores = (np.concatenate(x) for x in zip(*found, strict=True))
    return users, labels, scores


def score_shards(
    served: Served, vectors: np.ndarray, name: str, shards: Sequence[tuple[str, int]]
) -> Rows:
    """Persons, labels and predictions of some shards, in a Ray task."""
    model, found = load_with_vectors(served, vectors)
    parts = [
        (arrays["person"], arrays["labels"], scores)
        for path, rows in shards
        for arrays, scores in score_rows(
            model, found, name,
            read_rows([storage.join(served.prepared, path)], BATCH_ROWS, 0, rows),
        )
    ]  # fmt: skip
    users, labels, scores = (np.concatenate(x) for x in zip(*parts, strict=True))
    return users, labels, scores


def model_before(ground: Ground, name: str, project: Project) -> Served:
    """What scores a scenario before fine-tuning: the joint model, of a new one its general head."""
    if ground.is_new(name) and ground.project.model.general:
        return zero_shot_model(ground, name, project)
    return base_model(ground)


def chosen_model(ground: Ground, name: str, project: Project) -> Served:
    """The model of a scenario that fine-tuning chose; without a decision the joint one.

    Raises:
        ValueError: the chosen model belongs to other joint weights.
    """
    path = storage.join(ground.folder(name), DECISION)
    default = ZERO_SHOT if ground.is_new(name) else "joint"
    chosen = storage.read_json(path)["chosen"] if storage.exists(path) else default
    if chosen == "finetuned":
        return for_use(tuned_model(ground, name, project), project)
    if chosen == ZERO_SHOT:
        return for_use(zero_shot_model(ground, name, project), project)
    return joint_for_use(ground, project)


def joint_for_use(ground: Ground, project: Project) -> Served:
    """The joint model with the options of use of `project`."""
    return for_use(base_model(ground), project)


def for_use(served: Served, project: Project) -> Served:
    """A model with the workers, the precision and the blends of a project."""
    tree, use = json.loads(served.project), project.dump()
    tree["run"] = use["run"]
    tree["evaluation"]["precision"] = use["evaluation"]["precision"]
    by = {n: w for n, w in use["recommend"]["by"].items() if n in tree["scenarios"]}
    tree["recommend"] = use["recommend"] | {"by": by}
    return replace(served, project=json.dumps(tree))
