"""Quantises a graph to int8 with ONNX Runtime's static quantisation."""

import logging
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from remem_jax.checks import require
from remem_jax.export import graph


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
    """Quantises weights per channel and activations by their range on calibration images.

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
    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantised_path = (
            pathlib.Path(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx")
        )
        onnx.save(model, original)
        shape_inference.quant_pre_process(
            str(original), str(prepared), skip_symbolic_shape=True, verbose=0
        )
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime logs advice there.
        try:
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
        finally:
            logging.getLogger().setLevel(level)
        quantised_graph = onnx.load(quantised_path)
    del quantised_graph.metadata_props[:]
    return quantised_graph
