"""ReMem in minutes on two CPU cores, with nothing to download.

The bundled teacher, AugReg's ViT-Ti/16, and a part of EuroSAT, 1,500 satellite images:

    python -m remem_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

It shows every stage of a run, and what a small student gains from its teacher within minutes. Its
numbers say little about ReMem, which the paper trains for thousands of steps. configs/settings.py
has all settings; here are those that differ from the paper's.
"""

from ml_collections import ConfigDict

from configs import settings


def get_config() -> ConfigDict:
    """Returns a ReMem run that takes two cores five minutes."""
    config = settings.run()

    # Images that are part of this package, in their own size.
    config.data.name = "eurosat_part"
    config.data.image_size = 64
    config.data.stored_size = 64
    config.data.crop_area = (0.75, 1.0)  # In so few steps, smaller crops teach less.
    config.data.validation = 0.2  # A tenth of so few images would measure little.
    config.data.resident_gib = 1.0  # Leaves memory to others on a small machine.

    # The teacher that is part of this package. AdamW with layer-wise decay fine-tunes it in fewer
    # steps than the paper's SGD.
    config.teacher.variant = "Ti/16"
    config.teacher.init = "bundled:Ti/16"
    config.teacher.steps = (60,)
    config.teacher.batch_size = 64
    config.teacher.learning_rate = 0.0005
    config.teacher.warmup_steps = 20
    config.teacher.optimizer = "adamw"
    config.teacher.weight_decay = 0.05
    config.teacher.layer_decay = 0.75
    config.teacher.rho = 0.05  # The paper's 0.5 is for networks 15 times as large.
    config.teacher.mlp_weight = 0.9  # The milder of the paper's two, for few steps.

    # A student with a quarter of the teacher's parameters, for two cores: few steps, no grid.
    config.student.model = "mobilenetv3_small_100"
    config.student.steps = 140
    config.student.batch_size = 64
    config.student.learning_rates = (0.01,)
    config.student.temperatures = (4.0,)
    config.student.weights = (0.9,)
    config.student.warmup_steps = 20
    config.student.optimizer = "adamw"
    config.student.weight_decay = 0.05

    # Measured and saved as often as in a long run, for its length.
    config.student.evaluations = 2
    config.information.steps = 200
    config.information.evaluations = 5
    config.log_every = 10
    config.save_every = 40
    return config
