"""Weights of linear maps in int8, for OpenVINO."""

from typing import Any

import numpy as np

from mtrec_ray.data.arrays import Float32s

INT8_LIMIT = 127


def compress_weights(model: Any) -> int:
    """Turns the constant matrices of an OpenVINO model's products to int8; returns how many.

    Each becomes int8 numbers times a scale by output channel, the form in which OpenVINO's CPU
    plugin multiplies in int8.
    """
    number = 0
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        weight = product.input(1).get_source_output().get_node()
        if weight.get_type_name() != "Constant" or len(weight.shape) != 2:
            continue
        replace_product(product, weight.data.astype(np.float32))
        number += 1
    return number


def replace_product(product: Any, weight: Float32s) -> None:
    """Puts a product with an int8 matrix in place of one with the matrix f32[in, out]."""
    from openvino import opset13 as ops

    by_output = weight if product.get_attributes()["transpose_b"] else weight.T
    scale = np.abs(by_output).max(1, keepdims=True) / INT8_LIMIT
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    small = np.ascontiguousarray((by_output / scale).round().astype(np.int8))
    matrix = ops.multiply(ops.convert(ops.constant(small), "f32"), ops.constant(scale))
    transposed = product.get_attributes()["transpose_a"]
    new = ops.matmul(product.input(0).get_source_output(), matrix, transposed, True)
    new.set_friendly_name(product.get_friendly_name())
    for target in product.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))
