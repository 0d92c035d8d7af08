"""Int8 by ONNX Runtime's static quantisation."""

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
    """Batches of images, once through, as ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray, batch: int) -> None:
        whole = len(images) // batch * batch or len(images)
        self._batches: Iterator[np.ndarray] = iter(
            images[start : start + batch] for start in range(0, whole, batch)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        batch = next(self._batches, None)
        return None if batch is None else {graph.INPUT: batch}


def quantised(made: onnx.ModelProto, images: np.ndarray, *, batch: int) -> onnx.ModelProto:
    """The same network in int8: weights by channel, maps by the range that they have on images.

    Nodes are in QDQ form: pairs of QuantizeLinear and DequantizeLinear around the operations, which
    runtimes fuse. Weights have 7 bits, since 8 overflow the 16-bit sums of CPUs without VNNI.

    Args:
        made: A float32 graph.
        images: For the ranges, as the graph takes them; of training.
        batch: How many at once.

    Raises:
        SettingError: If there are not enough images for a batch.
    """
    fixed = made.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    require(
        len(images) >= max(fixed, 1),
        f"There are {len(images)} images to calibrate with, and a batch has {max(fixed, 1)}: raise "
        "--calibration-images, or lower --batch.",
    )
    with tempfile.TemporaryDirectory() as folder:
        before, prepared, after = (
            pathlib.Path(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx")
        )
        onnx.save(made, before)
        shape_inference.quant_pre_process(
            str(before), str(prepared), skip_symbolic_shape=True, verbose=0
        )
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # It advises on the root logger.
        try:
            quantization.quantize_static(
                str(prepared),
                str(after),
                _Reader(images, batch),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(level)
        found = onnx.load(after)
    del found.metadata_props[:]
    return found
