"""What do bf16 and int8 cost in AUC, and bring in speed, when a trained model predicts?

    python -m benchmarks.inference [--quick] [--out FILE] [--root real4] [--storage DIR]
        [--config FILE]

The joint model of `jobs/real4.yaml` (trained first, or found in the storage) encodes all item texts
and scores all rows of valid in fp32, bf16 and int8 (torchao: the encoder's linear maps), in one
process; and with texts that the exported encoder reads: ONNX and ONNX int8 in onnxruntime, int8
weights in OpenVINO. What needs a library that is not installed (extras `int8` and `export`) is told
and left out. Figures: texts/s and rows/s of each, over those of fp32, and the change of every AUC.
"""

import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.common import TOP, write_result
from jobs.common import teller
from mtrec_ray.data import storage as files
from mtrec_ray.evaluation.metrics import flat
from mtrec_ray.model.chunks import chunks
from mtrec_ray.project.load import load_project, parse_project
from mtrec_ray.project.project import Project
from mtrec_ray.report.tables import markdown_table
from mtrec_ray.stages.exporting.encoder import (
    ONNX,
    XML,
    EncoderFiles,
    onnx_reader,
    openvino_reader,
)
from mtrec_ray.stages.trained_model import TrainedModel, joint_model, load_model_for_use
from mtrec_ray.training.item_vectors import ItemVectors
from mtrec_ray.training.validation import validate

PRECISIONS = ("fp32", "bf16", "int8")
EXPORTS = ("onnx", "onnx-int8", "openvino-int8")  # what `export` writes of the encoder
NAMES = {
    "int8": "int8 (torchao)", "onnx": "ONNX", "onnx-int8": "ONNX int8",
    "openvino-int8": "OpenVINO int8",
}  # fmt: skip
WRITES = ("onnx", "onnxscript", "onnxruntime")
NEEDS = {
    "int8": ["torchao"], "onnx": WRITES, "onnx-int8": WRITES, "openvino-int8": (*WRITES, "openvino")
}  # fmt: skip
QUICK = ("training.epochs=1", "training.rows_per_epoch=65536")


def installed() -> list[str]:
    """The precisions and exports whose libraries are there; tells which are left out."""
    found = []
    for kind in (*PRECISIONS, *EXPORTS):
        lacking = [name for name in NEEDS.get(kind, ()) if not importlib.util.find_spec(name)]
        if lacking:
            typer.echo(f"{kind} is left out: found no {', '.join(lacking)}", err=True)
        else:
            found.append(kind)
    return found


def train_here(project: Project, storage: str) -> None:
    """Prepare and train in this process."""
    from mtrec_ray.stages.prepare import run_prepare
    from mtrec_ray.stages.train import run_train

    run_prepare(project, storage, teller())
    run_train(project, storage, teller())


def trained_in(project: Project, storage: str, precision: str) -> TrainedModel:
    """The trained model, for use in a precision on all cores."""
    tree = project.dump()
    tree["evaluation"]["precision"] = precision
    tree["run"]["cpus_per_worker"] = multiprocessing.cpu_count()
    run = files.join(storage, project.run.name)
    prepared, best = files.join(run, "prepared"), files.join(run, "joint", "best")
    return joint_model(parse_project(tree), prepared, best)


def measure(project: Project, storage: str, kind: str) -> dict[str, float]:
    """Speeds and valid metrics in a precision, or with the texts read by an exported encoder."""
    exported = kind in EXPORTS
    trained = trained_in(project, storage, "fp32" if exported else kind)
    prepared = trained.open_prepared()
    model, vectors = load_model_for_use(trained)
    with tempfile.TemporaryDirectory() as folder:
        encode = exported_reader(trained, vectors, kind, Path(folder)) if exported else None
        started = time.monotonic()
        if encode is None:
            vectors.refresh()
        else:
            vectors.cache = encode()
        encoded = time.monotonic()
    metrics = flat(validate(model, vectors, prepared, "valid"))
    scored = time.monotonic()
    rows = sum(f.num_rows("valid") for f in prepared.scenarios.values())
    wanted = {k: v for k, v in metrics.items() if k.endswith(("/auc", "/rmse"))}
    speeds = {
        "texts_per_s": vectors.num_items / (encoded - started),
        "rows_per_s": rows / (scored - encoded),
    }
    return speeds | wanted


def exported_reader(
    trained: TrainedModel, vectors: ItemVectors, kind: str, folder: Path
) -> Callable[[], Tensor]:
    """Export the encoder; returns what reads all items with it, ready to be timed."""
    own = EncoderFiles(trained)
    own.write(kind, folder)
    read = (
        openvino_reader(folder / XML) if kind.startswith("openvino") else onnx_reader(folder / ONNX)
    )
    texts, rows = vectors.texts, np.arange(vectors.num_items)

    def encode() -> Tensor:
        found = torch.zeros(vectors.num_items, vectors.encoder.width)
        for chunk in chunks(texts, rows, vectors.budget):
            tokens = texts.tokens[chunk.index].masked_fill(~chunk.mask, 0).numpy()
            part = read(tokens, chunk.mask.long().numpy())
            found[torch.from_numpy(chunk.places)] = torch.from_numpy(part)
        return found

    return encode


def main(
    quick: Annotated[bool, typer.Option(help="A short training: ends in 5 minutes.")] = False,
    out: Annotated[str | None, typer.Option(help="Where the JSON goes.")] = None,
    root: Annotated[str, typer.Option(help="Folder of the data.")] = "",
    storage: Annotated[str, typer.Option(help="Folder of the run, to go on with it.")] = "",
    config: Annotated[str, typer.Option(help="The project file.")] = str(TOP / "jobs/real4.yaml"),
) -> None:
    """Measure all precisions and exports, and write the result."""
    words = [*(QUICK if quick else ()), *([f"root={root}"] if root else ())]
    project, kinds = load_project(config, words), installed()
    folder = storage or tempfile.mkdtemp()
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        pool.apply(train_here, (project, folder))
        found = {kind: pool.apply(measure, (project, folder, kind)) for kind in kinds}
    figures, table = compared(found)
    Console().print(markdown_table(table), soft_wrap=True)
    write_result("inference", figures, out, table=table, quick=quick)


def compared(
    found: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """The figures of each precision and export beside those of fp32, and a table of them."""
    base, figures, table = found["fp32"], {}, []
    for kind, values in found.items():
        figures |= {f"{kind}.{k.replace('/', '.')}": v for k, v in values.items()}
        change = {k: v - base[k] for k, v in values.items() if k.endswith(("auc", "rmse"))}
        largest = max(change, key=lambda k: abs(change[k]))
        figures[f"{kind}.largest_change"] = abs(change[largest])
        for speed in ("texts_per_s", "rows_per_s"):
            figures[f"{kind}.{speed}_over_fp32"] = values[speed] / base[speed]
        table.append(
            {
                "precision": NAMES.get(kind, kind),
                "texts/s": f"{values['texts_per_s']:,.0f}",
                "over fp32": f"{values['texts_per_s'] / base['texts_per_s']:.2f} x",
                "rows/s": f"{values['rows_per_s']:,.0f}",
                "largest change": f"{change[largest]:+.5f} ({largest})",
            }
        )
    return figures, table


if __name__ == "__main__":
    typer.run(main)
