"""How much teachers' features say of the image: settings of the measurement, for all configs.

Standing of each number: [text] stands in the paper, [source] in the work that it cites, [choice]
is ours, because the paper's value is lost.
"""

from ml_collections import ConfigDict


def make(**changes: object) -> ConfigDict:
    """Returns the settings, switched off: with `seeds`, every teacher of a run is measured."""
    config = ConfigDict()
    config.seeds = ()  # Of the decoders, such as (0, 1, 2); each is trained once for each.
    config.steps = 2000  # [choice]
    config.batch_size = 64  # [choice]
    config.learning_rate = 1e-3  # [choice]
    config.betas = (0.9, 0.999)  # [choice]
    config.weight_decay = 1e-4  # [text]
    config.epsilon = 1e-8  # [text]
    config.align_corners = True  # How maps are resized; as InfoPro [source].
    config.evaluations = 10  # On validation, on the way.
    config.rematerialise = "auto"  # What decoders compute again, as remem.py's teachers.
    config.pictures = 4  # Images of validation whose reconstructions are kept.

    config.info_nce = ConfigDict()  # A second estimate beside it, by a critic [choice].
    config.info_nce.measured = True  # False leaves it out.
    config.info_nce.grid = 2  # Side of the grid to which tokens are averaged.
    config.info_nce.blocks = 8  # Side of the grid of blocks that stand for an image.
    config.info_nce.noise = 2.0  # In deviations of a feature; see analysis/info_nce.py.
    config.info_nce.hidden = 256  # Width of the hidden layer of a critic.
    config.info_nce.embedding = 64  # Width of what features and images are embedded in.
    config.update(changes)
    return config
