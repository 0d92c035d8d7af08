"""Lists the formats, inputs and precisions of exports; command lines can import it quickly."""

from typing import NamedTuple

from remem_jax.checks import at_least, one_of, require

FORMATS = ("onnx", "stablehlo", "safetensors", "saved-tree")  # Formats of students.
TEACHER_FORMATS = {"augreg": ".npz", "big_vision": ".npz", "timm": ".safetensors"}
GRAPHS = ("onnx", "stablehlo")  # Contain the computation; the others contain only parameters.
FOLDERS = ("saved-tree",)  # Formats that are folders; the others are files.
INPUTS = ("float", "uint8")
PRECISIONS = ("float32", "float16", "int8")
SUFFIXES = {
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
    "safetensors": ".safetensors",
    "saved-tree": ".tree",
}
SPLITS = ("validation", "test", "train")
PREDICTION_FORMATS = ("csv", "json")
BATCH_SIZE = 32  # Batch size for models that accept any.


class Form(NamedTuple):
    """How a student is exported.

    Attributes:
        format: One of `FORMATS`.
        input: "float", images in [-1, 1]; or "uint8", 0 to 255, scaled inside the graph.
        batch: Batch size; 0 is any.
        fold: Whether BatchNorm layers are folded into convolutions.
        precision: Precision of weights and computation, one of `PRECISIONS`.
    """

    format: str = "onnx"
    input: str = "float"
    batch: int = 0
    fold: bool = False
    precision: str = "float32"


def check(form: Form) -> None:
    """Raises `SettingError` for a form that does not exist."""
    one_of("--format", form.format, FORMATS)
    one_of("--input", form.input, INPUTS)
    one_of("--precision", form.precision, PRECISIONS)
    at_least("--batch", form.batch, 0)
    is_graph = form.format in GRAPHS
    require(
        is_graph or (form.input == "float" and not form.batch),
        f"--format={form.format} holds parameters and no computation: leave out --input and "
        f"--batch, or choose {' or '.join(GRAPHS)}.",
    )
    require(
        form.format != "safetensors" or not form.fold,
        "--format=safetensors is for timm's networks, which have BatchNorm layers: leave out "
        "--fold, or choose another format.",
    )
    require(
        form.precision != "int8" or form.format == "onnx",
        f"ONNX Runtime quantises only ONNX: --precision=int8 needs --format=onnx, not "
        f"{form.format}.",
    )
