"""ReMem in minutes on two CPU cores, with nothing to download.

The bundled teacher, ViT Pico/8, on scikit-learn's digits:

    python -m remem_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

It shows every stage of a run; its numbers say little about ReMem, which is for strong teachers
and images that are hard to tell apart. configs/settings.py has all settings; here are those that
differ from the paper's.
"""

from ml_collections import ConfigDict

from configs import settings


def get_config() -> ConfigDict:
    """Returns a ReMem run that takes two cores less than five minutes."""
    config = settings.run()

    # Images that scikit-learn brings along, at the resolution of the bundled teacher.
    config.data.name = "digits"
    config.data.image_size = 32
    config.data.stored_size = 64
    config.data.crop_area = (0.6, 1.0)  # A digit must stay readable.
    config.data.validation = 0.2  # A tenth of so few images would measure little.
    config.data.resident_gib = 1.0  # Leaves memory to others on a small machine.

    # The teacher that is part of this package, fine-tuned for a few seconds.
    config.teacher.variant = "Pico/8"
    config.teacher.init = "bundled:Pico/8"
    config.teacher.steps = (40, 120)
    config.teacher.batch_size = 64
    config.teacher.learning_rate = 0.05
    config.teacher.warmup_steps = 20
    config.teacher.rho = 0.05  # The paper's 0.5 is for networks 45 times as large.

    # Students for two cores: small batches, few steps, a grid of two.
    config.student.steps = 80
    config.student.batch_size = 64
    config.student.learning_rates = (0.05, 0.1)
    config.student.temperatures = (4.0,)
    config.student.weights = (0.5,)
    config.student.warmup_steps = 10

    # Measured and saved as often as in a long run, for its length.
    config.student.evaluations = 4
    config.information.steps = 200
    config.information.evaluations = 5
    config.log_every = 10
    config.save_every = 40
    return config
