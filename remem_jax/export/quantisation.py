"""Quantises a graph to int8 with ONNX Runtime: statically, or a ViT's products dynamically."""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from remem_jax.checks import require
from remem_jax.export import graph

_AXES = {"Conv": 0, "MatMul": 1, "Gemm": 1}  # The axis of a kernel's output channels.


class _Reader(quantization.CalibrationDataReader):
    """Yields batches of images to ONNX Runtime."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        whole = len(images) // batch * batch or len(images)
        self._batches: Iterator[np.ndarray] = iter(
            images[start : start + batch] for start in range(0, whole, batch)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        batch = next(self._batches, None)
        return None if batch is None else {graph.INPUT: batch}


def quantised(model: onnx.ModelProto, images: np.ndarray, *, batch: int) -> onnx.ModelProto:
    """Quantises a graph.

    Of a convolutional network, weights are quantised per channel and activations by their range
    on calibration images. A graph with LayerNorms is quantised by `_of_vit`, which needs no images.

    The graph is in QDQ form: pairs of QuantizeLinear and DequantizeLinear around the operations,
    which runtimes fuse. Weights have 7 bits, because 8 bits overflow the 16-bit sums of CPUs
    without VNNI.

    Args:
        model: A float32 graph.
        images: Training images for the ranges, in the type and range that the graph takes.
        batch: Batch size for calibration.

    Raises:
        SettingError: If there are fewer images than a batch of the graph.
    """
    least = max(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value, 1)
    require(
        len(images) >= least,
        f"There are {len(images)} calibration images, fewer than a batch of {least}: raise "
        "--calibration-images, or lower --batch.",
    )
    if any(node.op_type == "LayerNormalization" for node in model.graph.node):
        return _of_vit(model)
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantised_path = (
            pathlib.Path(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx")
        )
        onnx.save(model, original)
        shape_inference.quant_pre_process(
            str(original), str(prepared), skip_symbolic_shape=True, verbose=0
        )
        with _without_advice():
            quantization.quantize_static(
                str(prepared),
                str(quantised_path),
                _Reader(images, batch),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        quantised_graph = onnx.load(quantised_path)
    del quantised_graph.metadata_props[:]
    return quantised_graph


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the advice that ONNX Runtime logs."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def _of_vit(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantises a ViT: its weights per channel, and the inputs of most products dynamically.

    The other products, whose inputs have outliers or that are few, are computed in float32 with
    weights that are stored as int8: those after a GELU, the embedding and the head.
    """
    weights = {array.name for array in model.graph.initializer}
    kinds = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and kinds.get(node.input[0]) in ("LayerNormalization", "Reshape")
    ]
    with tempfile.TemporaryDirectory() as folder:
        original, path = pathlib.Path(folder, "float.onnx"), pathlib.Path(folder, "int8.onnx")
        onnx.save(model, original)
        with _without_advice():
            quantization.quantize_dynamic(
                str(original),
                str(path),
                nodes_to_quantize=products,
                per_channel=True,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
            )
        quantised_graph = onnx.load(path)
    _store_weights_as_int8(quantised_graph.graph)
    del quantised_graph.metadata_props[:]
    return quantised_graph


def _store_weights_as_int8(content: onnx.GraphProto) -> None:
    """Stores the kernels that are float32 as int8, with a scale for each output channel."""
    arrays = {array.name: array for array in content.initializer}
    for node in list(content.node):
        if node.op_type not in _AXES or node.input[1] not in arrays:
            continue
        stored = arrays[node.input[1]]
        kernel, axis = numpy_helper.to_array(stored), _AXES[node.op_type]
        if kernel.dtype != np.float32:
            continue
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        scale = np.maximum(np.abs(kernel).max(axis=others), 1e-12) / np.float32(127)
        shape = [-1 if i == axis else 1 for i in range(kernel.ndim)]
        whole = np.round(kernel / scale.reshape(shape)).astype(np.int8)
        names = [f"{stored.name}_{part}" for part in ("int8", "scale", "float")]
        content.initializer.remove(stored)
        content.initializer.extend(
            numpy_helper.from_array(array, name)
            for array, name in zip((whole, scale), names[:2], strict=True)
        )
        dequantise = helper.make_node("DequantizeLinear", names[:2], names[2:], axis=axis)
        content.node.insert(list(content.node).index(node), dequantise)
        node.input[1] = names[2]
