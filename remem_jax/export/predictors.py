"""Students and their exports, all of them opened as one thing: images in, logits out."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from remem_jax import mesh, models
from remem_jax.checks import SettingError, require
from remem_jax.export import description, destinations, plain, runs
from remem_jax.export.description import Description
from remem_jax.records import Apply, Variables
from remem_jax.storage import checkpoints

AT_ONCE = 32  # Images of a batch, where any number may be.


class Predictor(NamedTuple):
    """A student, ready to look at images.

    Attributes:
        logits: Of a batch of the size and the type that it takes.
        described: Its classes, its image size, what it takes.
        source: Where it came from.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    described: Description
    source: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return self.described.classes

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.described.image_size

    def predict(self, images: np.ndarray, *, at_once: int = 0) -> np.ndarray:
        """Logits, float32, of any number of images.

        Args:
            images: (batch, side, side, 3), uint8, or float in [-1, 1].
            at_once: Images of a batch, to which the last one is filled up; 0 is `AT_ONCE`, or all
                of fewer. An export of a fixed batch has that one.

        Raises:
            SettingError: If the images are of another size, or float where the export takes uint8.
        """
        side = self.image_size
        require(
            images.ndim == 4 and images.shape[1:] == (side, side, 3),
            f"{self.source} takes images of {side} x {side} pixels in RGB, got {images.shape}.",
        )
        given = self._taken(images)
        at_once = self.described.form.batch or at_once or min(AT_ONCE, len(given))
        found = []
        for start in range(0, len(given), at_once):
            part = given[start : start + at_once]
            padding = [(0, at_once - len(part)), (0, 0), (0, 0), (0, 0)]
            found.append(np.asarray(self.logits(np.pad(part, padding)))[: len(part)])
        shape = (0, len(self.classes))
        return np.concatenate(found or [np.zeros(shape)]).astype(np.float32)

    def _taken(self, images: np.ndarray) -> np.ndarray:
        """Images as `logits` takes them."""
        if self.described.form.input == "uint8":
            require(
                images.dtype == np.uint8,
                f"{self.source} takes uint8 images (0 to 255), got {images.dtype}.",
            )
            return images
        return to_model_range(images) if images.dtype == np.uint8 else images.astype(np.float32)


def to_model_range(images: np.ndarray) -> np.ndarray:
    """`augment.to_model_range` on the host."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def of_student(student: runs.Student) -> Predictor:
    """The student itself, by JAX."""
    apply = models.evaluation_apply(student.model)
    return Predictor(_jitted(apply, student.variables), student.described, student.source)


def _jitted(apply: Apply, variables: Variables) -> Callable[[np.ndarray], np.ndarray]:
    placed, compiled = jax.device_put(variables), jax.jit(apply)
    return lambda images: np.asarray(compiled(placed, images))


def open_any(path: pathlib.Path, *, method: str = "", seed: int | None = None) -> Predictor:
    """A run's student, or an export, whichever the path is of.

    Args:
        path: A run's folder, or a file or tree that `export` or a run wrote.
        method: See `runs.open_student`; of a run alone.
        seed: The same.

    Raises:
        SettingError: If it is neither, or is damaged.
    """
    suffixes = {suffix: name for name, suffix in description.SUFFIXES.items()}
    if path.suffix in suffixes:
        require(not method and seed is None, f"{path} is one student: leave out --method, --seed.")
        return open_export(path, suffixes[path.suffix])
    return of_student(runs.open_student(path, method=method, seed=seed))


def open_export(path: pathlib.Path, form: str, texts: Any = None) -> Predictor:
    """What `export` wrote.

    Args:
        path: The file or the tree.
        form: Its format.
        texts: Metadata of what has them beside it, a StableHLO or a tree; None reads them there.

    Raises:
        SettingError: If it is not there, damaged, or ONNX Runtime is not installed.
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
    """ONNX Runtime.

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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors alone.
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
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
        raise SettingError(f"{path} is no StableHLO of this JAX: {error}.") from error
    call = jax.jit(exported.call)
    return Predictor(lambda batch: np.asarray(call(batch)), described, os.fspath(path))


def _open_tree(path: pathlib.Path, described: Description) -> Predictor:
    mesh.require_devices()
    model, form = runs.make_model(described), described.form

    def first() -> Variables:
        return models.init(model, jax.random.key(0), described.image_size)

    like = jax.eval_shape(first)
    if form.fold:
        like = plain.folded_shapes(model, like)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, form.precision), like)
    loaded = checkpoints.load_tree(path, like)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), loaded)
    apply = plain.make_apply(model)
    return Predictor(_jitted(apply, variables), described, os.fspath(path))
