"""What an export is, and what it says of itself: texts that travel with every file."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import remem_jax
from remem_jax.checks import SettingError, at_least, one_of, require
from remem_jax.data.images import preprocessing
from remem_jax.data.images.preprocessing import Preprocessing

FORMATS = ("onnx", "stablehlo", "safetensors", "saved-tree")
GRAPHS = ("onnx", "stablehlo")  # They hold the computation; the others are parameters alone.
FOLDERS = ("saved-tree",)  # The others are files.
INPUTS = ("float", "uint8")
PRECISIONS = ("float32", "float16", "int8")
SUFFIXES = {
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
    "safetensors": ".safetensors",
    "saved-tree": ".tree",
}
_RANGES = {"float": preprocessing.RANGE, "uint8": "0 to 255"}
_TYPES = {"float": "float32", "uint8": "uint8"}


class Form(NamedTuple):
    """How a student is exported.

    Attributes:
        format: One of `FORMATS`.
        input: "float", images in [-1, 1]; or "uint8", 0 to 255, scaled inside of the graph.
        batch: Images at once; 0 is any number.
        fold: Whether norms are folded into convolutions.
        precision: Of weights and computation, one of `PRECISIONS`.
    """

    format: str = "onnx"
    input: str = "float"
    batch: int = 0
    fold: bool = False
    precision: str = "float32"


class Description(NamedTuple):
    """What there is to know of a student beside its parameters.

    Attributes:
        model: One of `models.STUDENTS`.
        stem: See `models.layers.STEMS`.
        classes: Names of the classes, in the order of the logits.
        image_size: Side of the square images, in pixels.
        form: How it was exported.
        method: Of the run; empty where that is not known.
        seed: The same, of the student.
        stored_size: Side of the squares that images are resized to before they are to
            `image_size`, in pixels; 0 if they are resized once.
        identity: Hash of the run's file that the student was read from, which its exports share;
            empty where that is not known.
        run: Key of the run's identity (`storage.identity`); empty of older runs.
    """

    model: str
    stem: str
    classes: tuple[str, ...]
    image_size: int
    form: Form
    method: str = ""
    seed: str = ""
    stored_size: int = 0
    identity: str = ""
    run: str = ""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes what it sees."""
        return Preprocessing(self.image_size, self.stored_size)


def check(form: Form) -> None:
    """Raises `SettingError` for what no export can be."""
    one_of("--format", form.format, FORMATS)
    one_of("--input", form.input, INPUTS)
    one_of("--precision", form.precision, PRECISIONS)
    at_least("--batch", form.batch, 0)
    is_graph = form.format in GRAPHS
    require(
        is_graph or (form.input == "float" and not form.batch),
        f"--format={form.format} holds parameters and no computation: leave out --input and "
        f"--batch, or take {' or '.join(GRAPHS)}.",
    )
    require(
        form.format != "safetensors" or not form.fold,
        "timm's networks have norms, which --format=safetensors keeps: leave out --fold, or take "
        "another format.",
    )
    require(
        form.precision != "int8" or form.format == "onnx",
        f"ONNX Runtime quantises ONNX alone: --precision=int8 needs --format=onnx, not "
        f"{form.format}.",
    )


def texts(described: Description) -> dict[str, str]:
    """The description as metadata of a file."""
    form = described.form
    return {
        "model": described.model,
        "stem": described.stem,
        "classes": json.dumps(described.classes),
        "image_size": str(described.image_size),
        "image_range": _RANGES[form.input],
        "image_type": _TYPES[form.input],
        "image_layout": "batch, height, width, channel (RGB)",
        "resize": described.preprocessing.text(),
        "stored_size": str(described.stored_size),
        "preprocessing": json.dumps(described.preprocessing.record()),
        "export_format": form.format,
        "batch": str(form.batch) if form.batch else "any",
        "norms": "folded" if form.fold else "kept",
        "precision": form.precision,
        "method": described.method,
        "seed": described.seed,
        "identity": described.identity,
        "run": described.run,
        "producer": f"remem_jax {remem_jax.__version__}",
    }


def read(found: Mapping[str, str], source: str) -> Description:
    """What `texts` wrote, or a run of its selected students; nothing of the form is needed.

    Raises:
        SettingError: If something is missing, or is no such text.
    """
    missing = [name for name in ("model", "classes", "image_size") if not found.get(name)]
    require(
        not missing,
        f"{source} does not say its {', '.join(missing)}: give a student that remem_jax wrote.",
    )
    batch = found.get("batch", "any")
    try:
        form = Form(
            found.get("export_format", "safetensors"),
            "uint8" if found.get("image_type") == "uint8" else "float",
            0 if batch == "any" else int(batch),
            found.get("norms") == "folded",
            found.get("precision", "float32"),
        )
        size, stored = int(found["image_size"]), int(found.get("stored_size", 0))
    except ValueError as error:
        raise SettingError(f"{source} has metadata that cannot be read: {error}.") from error
    return Description(
        found["model"],
        found.get("stem", "imagenet"),
        class_names(found["classes"]),
        size,
        form,
        found.get("method", ""),
        found.get("seed", ""),
        stored,
        found.get("identity", ""),
        found.get("run", ""),
    )


def class_names(text: str) -> tuple[str, ...]:
    """The names of classes in metadata: a list in JSON; of old files, a name a line."""
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(text.split("\n"))
