"""Modules as files of ONNX, and these files ready to run."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn


def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    output: str,
    shapes: Mapping[str, Mapping[int, Any]],
) -> None:
    """Writes a module as one file of ONNX, whose inputs have the names of its arguments.

    `shapes`: by input, which dimensions are of any size.
    """
    examples = {name: twice_at_least(value, shapes[name]) for name, value in inputs.items()}
    with quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (), kwargs=examples, input_names=list(inputs), output_names=[output],
            dynamic_shapes=dict(shapes), dynamo=True, verbose=False,
            custom_translation_table={torch.ops.aten.searchsorted.Tensor: count_below},
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)


def twice_at_least(value: Tensor, sizes: Mapping[int, Any]) -> Tensor:
    """Returns an example whose dimensions of any size are 2 or more: torch takes 1 as fixed."""
    for dimension in sizes:
        if value.shape[dimension] == 1:
            value = value.repeat_interleave(2, dimension)
    return value


def count_below(edges: Any, values: Any, *, right: bool = False, **_: object) -> Any:
    """Returns `torch.searchsorted` of values [F, N] in edges [F, Q] in ONNX, which lacks it.

    The place of a value is the number of edges below it.
    """
    from onnxscript import opset18

    op = cast("Any", opset18)
    compare = op.LessOrEqual if right else op.Less
    is_below = compare(op.Unsqueeze(edges, [1]), op.Unsqueeze(values, [2]))
    return op.ReduceSum(op.Cast(is_below, to=7), [2], keepdims=0)  # 7: int64


def onnx_session(path: Path) -> Any:
    """Returns a file of ONNX, ready to run in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Errors only of a library's logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
