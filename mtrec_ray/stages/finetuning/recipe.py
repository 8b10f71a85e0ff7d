"""One scenario's training: its project, where it starts from, and what is stored of it."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from mtrec_ray.data import storage
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.tokens import TINY, load_tokenizer
from mtrec_ray.model.encoder import TextEncoder, load_backbone
from mtrec_ray.project.load import with_overrides
from mtrec_ray.project.model import Encoder
from mtrec_ray.project.project import Project
from mtrec_ray.project.training import FineTuning
from mtrec_ray.stages.finetuning.joint_run import JointRun
from mtrec_ray.stages.trained_model import local_copy
from mtrec_ray.training import checkpoint
from mtrec_ray.training.build import build_model
from mtrec_ray.training.delta import (
    ENCODER,
    FineTuneStart,
    load_joint_weights,
    read_base,
    save_delta,
)

DELTA_FOLDER = "delta"
STEPS_AN_EPOCH = 8  # of a new scenario, at least: with few rows batches are smaller
LEAST_BATCH = 32


def encoder_layers(project: Project, tuned: FineTuning) -> int:
    """Returns how many top layers of the encoder adapt to a scenario."""
    encoder = project.model.encoder
    if tuned.mode != "lora":
        return 0
    if tuned.lora.layers is not None:
        return tuned.lora.layers
    learned = {"none": 0, "top_k": encoder.top_k}
    return learned.get(encoder.trainable, encoder.lora.layers)


def encoder_overrides(joint_run: JointRun, tuned: FineTuning) -> dict[str, Any]:
    """Returns fields of a scenario's encoder: that of the joint model, frozen or adapted."""
    if tuned.mode == "full":
        return {}
    layers, lora = encoder_layers(joint_run.project, tuned), tuned.lora
    return {
        "model.encoder.source": joint_run.encoder,
        "model.encoder.trainable": "lora" if layers else "none",
        "model.encoder.gather": joint_run.project.model.encoder.gather if layers else None,
        "model.encoder.lora.rank": lora.rank,
        "model.encoder.lora.alpha": lora.alpha,
        "model.encoder.lora.layers": layers or 1,
        "model.encoder.lora.targets": lora.targets,
    }


def scenario_project(
    joint_run: JointRun, name: str, tuned: FineTuning, project: Project
) -> Project:
    """Returns the project of a scenario's fine-tuning: the joint model's encoder, `tuned` steps.

    Raises:
        ProjectError: values that the schema does not allow together.
    """
    fields = ("lr", "lr_encoder", "epochs", "patience", "rows_per_epoch")
    overrides = {f"training.{field}": getattr(tuned, field) for field in fields}
    batch_size = project.training.batch_size
    if joint_run.is_new(name):
        overrides["training.lr"] = tuned.lr_new
        rows = tuned.rows_per_epoch or joint_run.data(name).scenarios[name].num_rows("train")
        batch_size = min(batch_size, max(rows // STEPS_AN_EPOCH, LEAST_BATCH))
    overrides["training.weighting.method"] = "fixed"  # of one scenario
    overrides["training.batch_size"] = tuned.batch_size or batch_size
    if tuned.l2_sp:  # it stands in place of weight decay
        overrides |= {"training.weight_decay": 0.0, "training.id_weight_decay": 0.0}
    encoder = joint_run.project.model.encoder
    single = project.single(name)
    model = single.model.model_copy(update={"encoder": encoder})
    single = single.model_copy(update={"model": model})
    return with_overrides(single, overrides | encoder_overrides(joint_run, tuned))


def start_of(joint_run: JointRun, name: str, tuned: FineTuning) -> FineTuneStart:
    """Returns where a scenario's model starts."""
    lora = tuned.lora
    return FineTuneStart(
        base=joint_run.weights,
        name=name,
        mode=tuned.mode,
        rank=lora.rank,
        alpha=lora.alpha,
        shared=lora.shared,
        is_new=joint_run.is_new(name),
        from_general=joint_run.is_new(name) and joint_run.project.model.general,
        l2_sp=tuned.l2_sp,
    )


def export_encoder(joint_run: JointRun) -> None:
    """Write the encoder, if joint training changed it, as a plain Hugging Face model."""
    folder = joint_run.encoder
    options = joint_run.project.model.encoder
    if options.trainable == "none" or storage.exists(storage.join(folder, "config.json")):
        return
    state, _ = read_base(joint_run.weights)
    with tempfile.TemporaryDirectory() as local:
        plain_encoder(options, state).save_pretrained(local)
        if options.source != TINY:
            load_tokenizer(options.source).save_pretrained(local)
        fs, inner = storage.filesystem(folder)
        fs.create_dir(inner, recursive=True)
        names = sorted(p.name for p in Path(local).iterdir())
        for name in sorted(names, key=lambda n: n == "config.json"):  # the last file: all is there
            storage.write_bytes(storage.join(folder, name), (Path(local) / name).read_bytes())


def plain_encoder(options: Encoder, state: dict[str, torch.Tensor]) -> Any:
    """Returns the pretrained model with the weights of a joint model, its low-rank maps merged."""
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
    if pooler is not None:  # unused, but without it loading calls the model incomplete
        plain.pooler = pooler
    return plain


def store_delta(
    project: Project,
    prepared: Prepared,
    start: FineTuneStart,
    best: str,
    folder: str,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write what fine-tuning changed, from the weights of its best epoch; in a Ray task."""
    model, _ = build_model(project, prepared, torch.device("cpu"), "fp32")
    wrapper = load_joint_weights(model, start)
    with local_copy(best) as local:
        checkpoint.load_model(local, model)
    return save_delta(model, wrapper, start, folder, **facts)
