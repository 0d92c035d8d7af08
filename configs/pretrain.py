"""How the bundled teacher, ViT Pico/8, was made: Tiny ImageNet at 32 pixels, on two CPU cores.

    python -m remem_jax.main --config=configs/pretrain.py --workdir=runs/pretrain \
        --config.data.path=tiny_imagenet64.npz --config.probe.dir=~/tensorflow_datasets

The .npz holds arrays as docs/own_data.md describes them. The result is `pico_8.npz` in the run's
folder, in AugReg names, and `pretrain.json` with its accuracies.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the settings of the bundled teacher."""
    config = ConfigDict()
    config.workflow = "pretrain"
    config.seed = 0
    config.log_every = 100  # Steps.
    config.save_every = 500
    config.keep_checkpoints = 2  # Of each part, while it is trained; one may be damaged.
    config.fsdp = False  # True divides parameters and momentum among the devices too.
    config.profile = False  # True traces some steps of each part into profile/.
    config.compute_dtype = "float32"  # As the bundled teacher was made; or "bfloat16", "auto".

    config.data = ConfigDict()
    config.data.name = "arrays"
    config.data.path = "tiny_imagenet64.npz"
    config.data.dir = ""
    config.data.image_size = 32  # Pixels; the sources have 64, crops are taken from those.
    config.data.stored_size = 64
    config.data.crop_area = (0.25, 1.0)  # Milder than AugReg's 0.05: few epochs, small images.
    config.data.validation = 0.01
    config.data.corrupt_limit = 0
    config.data.resident_gib = 4.0
    config.data.input = "auto"  # Or "resident", "streamed".
    config.data.cache = ""  # Folder of what is decoded once; empty is REMEM_CACHE's.
    config.data.threads = 0  # That decode; 0 is one for each core.
    config.data.workers = 0  # Processes that share them where images are streamed.

    config.model = ConfigDict()
    config.model.variant = "Pico/8"
    config.model.dropout = 0.0  # Twenty epochs do not overfit 1.9 million parameters.

    config.train = ConfigDict()
    config.train.steps = 13_000  # 21 epochs: what two cores do in about an hour.
    config.train.batch_size = 128
    config.train.learning_rate = 1.5e-3
    config.train.warmup_steps = 500
    config.train.weight_decay = 0.05
    config.train.label_smoothing = 0.1
    config.train.clip_norm = 1.0
    config.train.accumulate = 0  # Parts of a batch, one after another; 0 is as few as fit.
    config.train.rematerialise = "auto"  # Or "nothing", "elementwise", "blocks"; see remem.py.

    config.probe = ConfigDict()  # A linear probe of the features, pretrained against random.
    config.probe.name = "cifar100"
    config.probe.dir = ""
    return config
