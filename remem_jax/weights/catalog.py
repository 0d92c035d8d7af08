"""Where pretrained weights are: in a file, or bundled with the package."""

import importlib.resources
import pathlib

BUNDLED = {"bundled:Pico/8": "pico_8.npz"}
ADVICE = (
    "download one from https://storage.googleapis.com/vit_models/augreg/, or take "
    f"{', '.join(BUNDLED)}"
)


def locate(init: str) -> pathlib.Path:
    """Path of the weights that a config names: "bundled:..." or a file's path."""
    if init in BUNDLED:
        return (
            pathlib.Path(str(importlib.resources.files("remem_jax")))
            / "weights/bundled"
            / BUNDLED[init]
        )
    return pathlib.Path(init).expanduser()
