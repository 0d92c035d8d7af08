"""How the bundled teacher, ViT Pico/8, was made: Tiny ImageNet at 32 pixels, on two CPU cores.

    python -m remem_jax.main --config=configs/pretrain.py --workdir=runs/pretrain \
        --config.data.path=tiny_imagenet64.npz --config.probe.dir=~/tensorflow_datasets

The .npz holds arrays as docs/own_data.md describes them. The result is `pico_8.npz` in the run's
folder, in AugReg names, and `pretrain.json` with its accuracies. configs/settings.py has all
settings; those of the network and of its training are in `pretraining` there.
"""

from ml_collections import ConfigDict

from configs import settings


def get_config() -> ConfigDict:
    """Returns the settings of the bundled teacher."""
    config = settings.pretraining()

    config.data.name = "arrays"
    config.data.path = "tiny_imagenet64.npz"
    config.data.image_size = 32  # Two cores train at this size in an hour.
    config.data.stored_size = 64  # The size of Tiny ImageNet; crops are taken from it.
    config.data.crop_area = (0.25, 1.0)  # Milder than AugReg's 0.05: few epochs, small images.
    config.data.validation = 0.01  # 1,000 of 100,000 images.
    config.data.corrupt_limit = 0  # Arrays hold no files that could be damaged.
    config.data.resident_gib = 4.0  # All of Tiny ImageNet fits.

    config.compute_dtype = "float32"  # The type in which the bundled teacher was made.
    config.log_every = 100
    return config
