"""One record per data set of the paper's Table 5, with its name in TFDS.

Sources: the paper's Table 5; tensorflow-datasets 4.9.10; the authors' pages. If the paper's sizes
are ambiguous, the record's `note` states the assumption. `tfds.obtaining` describes how to obtain
the images of a data set that TFDS cannot download.
"""

from typing import NamedTuple

TOP1 = "top1"
MEAN_PER_CLASS = "mean_per_class"

# How a data set reaches this machine.
AUTOMATIC = "automatic"  # TFDS downloads it.
MANUAL = "manual"  # Its owner requires registration, or TFDS has no URL.
DEAD = "dead address"  # TFDS's URL no longer works.

# `imagenet_lt` is read from a prepared copy of it, if there is one.
IMAGENET = "imagenet2012:5.*.*"

_SEE_PAGE = "see the authors' page"
_NO_OTHER_SPLIT = "the authors have no validation split"
_VALIDATION_IS_TEST = "the paper tests on the authors' validation split"


class Group(NamedTuple):
    """What images that must be held out together have in common.

    Attributes:
        feature: Name of a feature in TFDS.
        pattern: Pattern of the group in its value; see `group_names.by_pattern`.
        noun: What a group is, for readers.
    """

    feature: str
    pattern: str
    noun: str


class Record(NamedTuple):
    """A data set.

    Attributes:
        tfds: Name in TFDS, major version pinned.
        train: TFDS split to train on; without `validation`, images are held out of it.
        test: TFDS split that the paper evaluates on.
        classes: Number of classes.
        examples: Images of the official `train` and `test`.
        licence: The authors' terms, as far as they are certain.
        page: The authors' page.
        metric: TOP1 or MEAN_PER_CLASS; it selects models, and judges them on test.
        flip: Whether mirrored images keep their class.
        obtained: AUTOMATIC, MANUAL or DEAD.
        modules: Modules that TFDS needs to prepare it, besides those that a run needs; TensorFlow
            opens all archives.
        tolerance: Largest difference of correct `train` and `test` from `examples`, in images.
        note: Assumptions, for the reader.
        validation: TFDS split that selects models, if the authors have one that the paper neither
            trains nor tests on.
        validation_examples: Images of the official `validation`.
        selection: Why this split selects, or why it is held out of train, for the reader.
        group: What must be held out together; None if each image is independent, or nothing is
            known.
    """

    tfds: str
    train: str
    test: str
    classes: int
    examples: tuple[int, int]
    licence: str
    page: str
    metric: str = TOP1
    flip: bool = True
    obtained: str = AUTOMATIC
    modules: tuple[str, ...] = ("tensorflow",)
    tolerance: tuple[int, int] = (0, 0)
    note: str = ""
    validation: str = ""
    validation_examples: int = 0
    selection: str = _NO_OTHER_SPLIT
    group: Group | None = None

    def is_official(self, counts: tuple[int, int], validation: int = 0) -> bool:
        """Returns whether these numbers of images are those of the official data set.

        Args:
            counts: Images of `train` and `test`.
            validation: Images of `validation`.
        """
        pairs = zip(counts, self.examples, self.tolerance, strict=True)
        return validation == self.validation_examples and all(
            abs(count - wanted) <= tolerance for count, wanted, tolerance in pairs
        )


RECORDS = {
    "food101": Record(
        "food101:2.*.*",
        "train",
        "validation",
        101,
        (75750, 25250),
        "scientific fair use; the photographs belong to users of Foodspotting",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        selection=_VALIDATION_IS_TEST,
    ),
    "cifar100": Record(
        "cifar100:3.*.*",
        "train",
        "test",
        100,
        (50000, 10000),
        _SEE_PAGE,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "sun397": Record(
        "sun397/standard-part1-120k:4.*.*",
        "train",
        "test",
        397,
        (19850, 19850),
        _SEE_PAGE,
        "https://vision.princeton.edu/projects/2010/SUN/",
        obtained=DEAD,
        modules=("tensorflow", "cv2"),
        tolerance=(2, 2),  # TFDS leaves out two images that do not decode, wherever they are.
        note="Kornblith's protocol: the first of the ten official partitions, images of at most "
        "120,000 pixels",
    ),
    "cars196": Record(
        "cars196:2.*.*",
        "train",
        "test",
        196,
        (8144, 8041),
        _SEE_PAGE,
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        obtained=DEAD,
    ),
    "caltech101": Record(
        "caltech101:3.*.*",
        "train",
        "test",
        102,
        (3060, 6084),
        "CC BY 4.0",
        "https://doi.org/10.22002/D1.20086",
        MEAN_PER_CLASS,
        # TFDS draws 30 files per class, and the background's folder holds one that is no image.
        tolerance=(1, 1),
        note="the background class counts as a class; TFDS draws the 30 training images of a class "
        "in the order in which the file system lists them, so that the split differs between "
        "machines that prepare it",
    ),
    "flowers102": Record(
        "oxford_flowers102:2.*.*",
        "train+validation",
        "test",
        102,
        (2040, 6149),
        _SEE_PAGE,
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        MEAN_PER_CLASS,
        note="2,040 are the official train and validation splits together",
        selection="the paper trains on the authors' validation split, too",
    ),
    "pets": Record(
        "oxford_iiit_pet:4.*.*",
        "train",
        "test",
        37,
        (3680, 3669),
        "CC BY-SA 4.0",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        note="top-1, as the table says, though Kornblith's protocol has the mean per class",
    ),
    "dtd": Record(
        "dtd:3.*.*",
        "train",
        "test",
        47,
        (1880, 1880),
        "for research purposes",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        note="first fold; evaluation on test, since validation is of the same size",
        validation="validation",
        validation_examples=1880,
        selection="the paper neither trains nor tests on it",
    ),
    "svhn": Record(
        "svhn_cropped:3.*.*",
        "train",
        "test",
        10,
        (73257, 26032),
        "non-commercial use",
        "http://ufldl.stanford.edu/housenumbers/",
        flip=False,
        note="without the 531,131 extra images, which TFDS downloads all the same",
        selection="the extra images are no validation split",
    ),
    "sun397_tfds": Record(
        "sun397/tfds:4.*.*",
        "train",
        "validation",
        397,
        (76128, 10875),
        _SEE_PAGE,
        "https://vision.princeton.edu/projects/2010/SUN/",
        MEAN_PER_CLASS,
        obtained=DEAD,
        modules=("tensorflow", "cv2"),
        tolerance=(1, 0),  # TFDS leaves out an image of train that does not decode: 76127.
        note="10,875 are TFDS's validation split; its test split has 21,750",
        selection="the paper tests on TFDS's validation split; TFDS's test split is not used",
    ),
    "imagenet_lt": Record(
        "imagenet_lt:1.*.*",
        "train",
        "validation",
        1000,
        (115846, 20000),
        "ImageNet's terms: non-commercial research and education",
        "https://image-net.org/download",
        obtained=MANUAL,
        metric=MEAN_PER_CLASS,
        note="20,000 are the validation split, drawn from ImageNet's train; ImageNet's 50,000 "
        "validation images are the test split of ImageNet-LT; the mean per class selects, since "
        "the images held out of train have its long tail, and equals the paper's top-1 on test, "
        "which has 20 images of each class",
        selection=_VALIDATION_IS_TEST,
    ),
    "inat2017": Record(
        "i_naturalist2017:0.1.0",
        "train",
        "validation",
        5089,
        (579184, 95986),
        "non-commercial research and education",
        "https://github.com/visipedia/inat_comp/tree/master/2017",
        MEAN_PER_CLASS,
        modules=("tensorflow", "six"),
        selection=f"{_VALIDATION_IS_TEST}; TFDS's test split is unlabelled",
    ),
    "pcam": Record(
        "patch_camelyon:2.*.*",
        "train",
        "test",
        2,
        (262144, 32768),
        "CC0",
        "https://patchcamelyon.grand-challenge.org/",
        modules=("tensorflow", "h5py"),
        validation="validation",
        validation_examples=32768,
        selection="its images are from other slides than those of train and test",
    ),
    "retinopathy": Record(
        "diabetic_retinopathy_detection/btgraham-300:3.*.*",
        "train",
        "validation",
        5,
        (35126, 10906),
        "rules of the Kaggle competition, which you accept to download",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
        obtained=MANUAL,
        modules=("tensorflow", "cv2"),
        note="VTAB's preparation of the images (eyes of 300 pixels radius, less the local mean); "
        "10,906 are TFDS's validation split, the competition's public test images",
        selection="the paper tests on TFDS's validation split, a part of the competition's test",
        group=Group("name", r"^(.+?)(?:_left|_right)?$", "the two eyes of a patient"),
    ),
    "eurosat": Record(
        "eurosat/rgb:2.*.*",
        "train[:80%]",
        "train[80%:]",
        10,
        (21600, 5400),
        "MIT",
        "https://github.com/phelber/eurosat",
        note="there is no official split: the first 80 % in TFDS's order, as in VTAB",
        selection="the authors have no splits",
    ),
    "resisc45": Record(
        "resisc45:3.*.*",
        "train[:80%]",
        "train[80%:]",
        45,
        (25200, 6300),
        _SEE_PAGE,
        "https://gcheng-nwpu.github.io",
        obtained=MANUAL,
        note="there is no official split: the first 80 % in TFDS's order, as in VTAB",
        selection="the authors have no splits",
    ),
}
