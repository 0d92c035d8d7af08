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

LISTS = (".csv", ".jsonl", ".ndjson")  # Suffixes of lists.


def get_config(images: str = "") -> ConfigDict:
    """Returns the settings of a run on a folder of images, a list, an .npz or "tfds:NAME"."""
    config = settings.distil()
    config.methods = ()  # Planned: as many of "alone", "finetune" and "remem" as the time allows.
    config.log_every = 0  # Planned: some seconds.
    config.save_every = 0  # Planned: a minute.
    config.retries = 2  # Nobody watches it to lower a learning rate.

    kinds = {".npz": "arrays", **dict.fromkeys(LISTS, "list")}
    if images.startswith("tfds:"):
        config.data.name = images
    else:
        config.data.name = kinds.get(pathlib.Path(images).suffix.lower(), "folder")
        config.data.path = images
    config.data.image_size = 0  # Planned.
    config.data.stored_size = 0  # Planned.
    config.data.crop_area = (0.5, 1.0)  # Few steps do not need strong crops.
    config.data.validation = 0.0  # Planned.

    config.teacher.variant = ""  # That of the weights.
    config.teacher.init = ""  # Planned.
    config.teacher.steps = ()  # Planned.
    config.teacher.batch_size = 0  # Planned.
    config.teacher.warmup_steps = -1  # Planned.
    config.teacher.position_resize = ""  # Planned: "dinov2", but for .npz files.
    config.teacher.rho = 0.05  # With so few steps, the paper's 0.5 leaves a teacher untrained.
    config.teacher.mlp_weight = 0.9  # The milder of the paper's two, for the same reason.

    config.student.model = ""  # Planned.
    config.student.init = "imagenet"  # From random weights, students need ten times the steps.
    config.student.steps = 0  # Planned.
    config.student.batch_size = 0  # Planned.
    config.student.warmup_steps = -1  # Planned.
    config.student.evaluations = 1  # At the end; others would cost time.
    config.student.optimizer = ""  # Planned: AdamW for pretrained students, else SGD.
    config.student.weight_decay = -1.0  # Planned: 0.05 with AdamW, 0.0001 with SGD.
    config.student.learning_rates = ()  # Planned.
    config.student.temperatures = ()  # Planned.
    config.student.weights = ()  # Planned.
    return config
