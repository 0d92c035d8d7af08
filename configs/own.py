r"""Your own images to a small model, in a given time: the run of `remem distil`.

    remem distil my_images --hours=1 --out=runs/mine
    python -m remem_jax.main --config=configs/own.py:my_images --workdir=runs/mine \
        --config.budget.hours=1

Both are the same run. Settings that are empty, 0 or -1 here are planned from the images, the device
and the hours, by the rules of docs/distil.md; any of them can be set.
"""

import pathlib

from ml_collections import ConfigDict

from configs import settings

LISTS = (".csv", ".tsv", ".json", ".jsonl")


def get_config(images: str = "") -> ConfigDict:
    """Returns the settings of a run on a folder of images, a list (.csv, .json) or an .npz."""
    config = settings.distil()
    kinds = {".npz": "arrays", **dict.fromkeys(LISTS, "list")}
    config.data.name = kinds.get(pathlib.Path(images).suffix.lower(), "folder")
    config.data.path = images
    return config
