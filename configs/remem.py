"""ReMem in the paper's setting: ViT-B/16 teacher, ResNet-18 student, 224 pixels.

The first word after the colon is the data set: a name of remem_jax/data/registry.py, "folder",
"list" or "arrays". Options follow after commas, and any setting can be changed on the command line:

    python -m remem_jax.main --config=configs/remem.py:flowers102 --workdir=runs/flowers \
        --config.teacher.init=weights/B_16.npz --config.teacher.rho=0.05
    python -m remem_jax.main --config=configs/remem.py:folder,variant=Ti/16 --workdir=runs/mine \
        --config.data.path=my_images --config.teacher.init=weights/Ti_16.npz

configs/settings.py has all settings, with the paper's values as defaults.
"""

from ml_collections import ConfigDict

from configs import settings

LOSSES = {  # What each value of the option `loss` changes in config.student.
    "kd": {},
    "dist": {
        "losses": ("dist",),
        "learning_rates": (0.5, 0.7, 1.0),  # [text]
        "scratch_learning_rates": (0.05, 0.1, 0.5),  # Of cross-entropy, as with KD. [choice]
        "weights": (1.0,),  # beta and gamma. [text]
        "temperatures": (1.0,),  # As DIST's authors. [source]
    },
    "patient": {"mixup": 0.8, "steps": 200_000},  # [text]
    "features": {"losses": ("features",)},  # Not in the paper; the grid is KD's. [choice]
}
NOT_IN_AUGREG = ("H/14", "L/32", "R50+B/16")  # Published before AugReg, on ImageNet-21k.


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns the paper's settings for a data set.

    Args:
        spec: Name of the data set, then options: "flowers102,variant=S/16,student=resnet18".
            The option loss is "kd", "dist", "patient" (KD with Mixup over ten times the steps),
            or "features".
    """
    dataset, *pairs = spec.split(",")
    options = {"variant": "B/16", "student": "resnet18", "loss": "kd"}
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name not in options:
            raise ValueError(
                f"configs/remem.py has no option {name!r}; known: {', '.join(options)}."
            )
        options[name] = value
    if options["loss"] not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {options['loss']!r}.")

    config = settings.run()
    config.data.name = dataset
    config.teacher.variant = options["variant"]
    collection = "i21k" if options["variant"] in NOT_IN_AUGREG else "augreg"
    config.teacher.init = f"{collection}:{options['variant']}"
    config.student.model = options["student"]
    config.student.update(LOSSES[options["loss"]])
    return config
