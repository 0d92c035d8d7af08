"""One record per data set of the paper's Table 5, with what TFDS calls it.

Sources: the paper's Table 5; tensorflow-datasets 4.9.10. Where the paper's sizes leave a choice
open, the record's `note` says what is assumed.
"""

from typing import NamedTuple

TOP1 = "top1"
MEAN_PER_CLASS = "mean_per_class"


class Record(NamedTuple):
    """A data set.

    Attributes:
        tfds: Name in TFDS, major version pinned.
        train: TFDS split to train on; the validation split is held out of it.
        test: TFDS split that the paper evaluates on.
        classes: Number of classes.
        examples: Images of the official `train` and `test`.
        metric: TOP1 or MEAN_PER_CLASS.
        flip: Whether mirrored images keep their class.
        note: What is assumed, for the reader.
    """

    tfds: str
    train: str
    test: str
    classes: int
    examples: tuple[int, int]
    metric: str = TOP1
    flip: bool = True
    note: str = ""


# Counts may differ by a few images between TFDS versions and file systems.
COUNT_TOLERANCE = 3

RECORDS = {
    "food101": Record("food101:2.*.*", "train", "validation", 101, (75750, 25250)),
    "cifar100": Record("cifar100:3.*.*", "train", "test", 100, (50000, 10000)),
    "sun397": Record(
        "sun397/standard-part1-120k:4.*.*",
        "train",
        "test",
        397,
        (19850, 19850),
        note="Kornblith's first partition",
    ),
    "cars196": Record("cars196:2.*.*", "train", "test", 196, (8144, 8041)),
    "caltech101": Record(
        "caltech101:3.*.*",
        "train",
        "test",
        102,
        (3060, 6084),
        MEAN_PER_CLASS,
        note="the background class counts as a class",
    ),
    "flowers102": Record(
        "oxford_flowers102:2.*.*", "train+validation", "test", 102, (2040, 6149), MEAN_PER_CLASS
    ),
    "pets": Record("oxford_iiit_pet:4.*.*", "train", "test", 37, (3680, 3669)),
    "dtd": Record(
        "dtd:3.*.*",
        "train",
        "test",
        47,
        (1880, 1880),
        note="first fold; evaluation on test, since validation is of the same size",
    ),
    "svhn": Record("svhn_cropped:3.*.*", "train", "test", 10, (73257, 26032), flip=False),
    "sun397_tfds": Record(
        "sun397/tfds:4.*.*", "train", "validation", 397, (76128, 10875), MEAN_PER_CLASS
    ),
    "imagenet_lt": Record("imagenet_lt:1.*.*", "train", "validation", 1000, (115846, 20000)),
    "inat2017": Record(
        "i_naturalist2017:0.1.0", "train", "validation", 5089, (579184, 95986), MEAN_PER_CLASS
    ),
    "pcam": Record("patch_camelyon:2.*.*", "train", "test", 2, (262144, 32768)),
    "retinopathy": Record(
        "diabetic_retinopathy_detection/btgraham-300:3.*.*",
        "train",
        "validation",
        5,
        (35126, 10906),
        note="VTAB's configuration of the images",
    ),
    "eurosat": Record("eurosat/rgb:2.*.*", "train[:80%]", "train[80%:]", 10, (21600, 5400)),
    "resisc45": Record("resisc45:3.*.*", "train[:80%]", "train[80%:]", 45, (25200, 6300)),
}
