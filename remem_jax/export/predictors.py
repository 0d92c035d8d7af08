"""Opens students and their exports behind one interface: images in, logits out."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from remem_jax import mesh, models
from remem_jax.checks import SettingError, require
from remem_jax.export import description, destinations, folding, options, runs
from remem_jax.export.description import Description
from remem_jax.records import Apply, Variables
from remem_jax.storage import checkpoints


class Predictor(NamedTuple):
    """A student or an export, ready to classify images.

    Attributes:
        logits: Maps a batch, of the size and type that the model takes, to logits.
        described: Description of the model: classes, image size, input.
        source: File that it was read from.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    described: Description
    source: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.described.classes

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.described.image_size

    def predict(self, images: np.ndarray, *, batch_size: int = 0) -> np.ndarray:
        """Returns the float32 logits of any number of images.

        Args:
            images: Images of shape (batch, side, side, 3), uint8, or float in [-1, 1].
            batch_size: Batch size, to which the last batch is padded; 0 is `options.BATCH_SIZE`,
                or the number of images if that is smaller. An export with a fixed batch size uses
                its own.

        Raises:
            SettingError: If the images have another size, or are float while the export takes
                uint8.
        """
        side = self.image_size
        require(
            images.ndim == 4 and images.shape[1:] == (side, side, 3),
            f"{self.source} takes images of {side} x {side} pixels in RGB, got {images.shape}.",
        )
        converted = self._converted(images)
        batch_size = (
            self.described.form.batch or batch_size or min(options.BATCH_SIZE, len(converted))
        )
        logits = []
        for start in range(0, len(converted), batch_size):
            batch = converted[start : start + batch_size]
            padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            logits.append(np.asarray(self.logits(np.pad(batch, padding)))[: len(batch)])
        shape = (0, len(self.classes))
        return np.concatenate(logits or [np.zeros(shape)]).astype(np.float32)

    def _converted(self, images: np.ndarray) -> np.ndarray:
        """Converts images to the type and range that `logits` takes."""
        if self.described.form.input == "uint8":
            require(
                images.dtype == np.uint8,
                f"{self.source} takes uint8 images (0 to 255), got {images.dtype}.",
            )
            return images
        return to_model_range(images) if images.dtype == np.uint8 else images.astype(np.float32)


def to_model_range(images: np.ndarray) -> np.ndarray:
    """Scales uint8 images to [-1, 1] as `augment.to_model_range` does, but on the host."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def of_student(student: runs.Student) -> Predictor:
    """Returns a predictor that runs the student in JAX."""
    apply = models.evaluation_apply(student.model)
    return Predictor(_jitted(apply, student.variables), student.described, student.source)


def _jitted(apply: Apply, variables: Variables) -> Callable[[np.ndarray], np.ndarray]:
    placed, compiled = jax.device_put(variables), jax.jit(apply)
    return lambda images: np.asarray(compiled(placed, images))


def open_any(path: pathlib.Path, *, method: str = "", seed: int | None = None) -> Predictor:
    """Opens the student of a run, or an export.

    Args:
        path: Folder of a run, or a file or tree that `export` or a run wrote.
        method: See `runs.open_student`; only for a run.
        seed: See `runs.open_student`; only for a run.

    Raises:
        SettingError: If it is neither, or is damaged.
    """
    suffixes = {suffix: name for name, suffix in options.SUFFIXES.items()}
    if path.suffix in suffixes:
        require(
            not method and seed is None,
            f"{path} contains a single student: leave out --method and --seed.",
        )
        return open_export(path, suffixes[path.suffix])
    return of_student(runs.open_student(path, method=method, seed=seed))


def open_export(path: pathlib.Path, form: str, texts: Any = None) -> Predictor:
    """Opens an export.

    Args:
        path: The file or the tree.
        form: Its format.
        texts: Metadata of a StableHLO file or a tree; None reads them from the record beside it.

    Raises:
        SettingError: If it is missing or damaged, or ONNX Runtime is not installed.
    """
    require(path.exists(), f"There is no export {path}.")
    if form == "onnx":
        return _open_onnx(path)
    if form == "safetensors":
        return of_student(runs.open_file(path))
    texts = texts or destinations.read_record(path)["metadata"]
    described = description.read(texts, os.fspath(path))
    return (_open_stablehlo if form == "stablehlo" else _open_tree)(path, described)


def runtime() -> Any:
    """Imports ONNX Runtime.

    Raises:
        SettingError: If it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise SettingError(
            "ONNX needs the packages onnx and onnxruntime: pip install '.[export]'."
        ) from None
    return onnxruntime


def _open_onnx(path: pathlib.Path) -> Predictor:
    onnxruntime = runtime()
    options_ = onnxruntime.SessionOptions()
    options_.log_severity_level = 3  # Only errors.
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options_, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SettingError(f"ONNX Runtime cannot open {path}: {reason}") from error
    texts = session.get_modelmeta().custom_metadata_map
    (images,) = session.get_inputs()

    def logits(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {images.name: batch})[0]

    return Predictor(logits, description.read(texts, os.fspath(path)), os.fspath(path))


def _open_stablehlo(path: pathlib.Path, described: Description) -> Predictor:
    mesh.require_devices()
    try:
        exported = jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:
        raise SettingError(f"{path} is not StableHLO that this JAX reads: {error}.") from error
    call = jax.jit(exported.call)
    return Predictor(lambda batch: np.asarray(call(batch)), described, os.fspath(path))


def _open_tree(path: pathlib.Path, described: Description) -> Predictor:
    mesh.require_devices()
    model, form = runs.make_model(described), described.form

    def init() -> Variables:
        return models.init(model, jax.random.key(0), described.image_size)

    shapes = jax.eval_shape(init)
    if form.fold:
        shapes = folding.folded_shapes(model, shapes)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, form.precision), shapes)
    loaded = checkpoints.load_tree(path, shapes)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), loaded)
    apply = folding.make_apply(model)
    return Predictor(_jitted(apply, variables), described, os.fspath(path))
