"""How to obtain the images of a data set, and where to put files that TFDS cannot download.

For every data set, TFDS uses a file in `downloads/manual` instead of downloading it, if it has
TFDS's name and checksum. Repacked copies have another checksum: read them as folders, with
`config.data.name = "folder"`.
"""

import pathlib
import textwrap
from typing import Any, NamedTuple

from remem_jax.data import registry

# TFDS's URL of iNaturalist 2017 refuses connections; this is the authors' newer one.
INAT2017_URL = "https://ml-inat-competition-datasets.s3.amazonaws.com/2017/"

IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
# The lists of ImageNet-LT for its train and validation splits.
LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt")


class Way(NamedTuple):
    """How to obtain a data set.

    Attributes:
        files: Files that TFDS needs in `downloads/manual` if it cannot download them, and
            otherwise uses instead of a download.
        text: Further instructions.
    """

    files: tuple[str, ...]
    text: str = ""


_SUN397 = Way(
    ("SUN397.tar.gz", "Partitions.zip"),
    "The address at Princeton is dead, and so is its mirror. Find the original archive; the "
    "copies as Parquet or as folders have other bytes.",
)

WAYS = {
    "food101": Way(("food-101.tar.gz",)),
    "cifar100": Way(("cifar-100-binary.tar.gz",)),
    "sun397": _SUN397,
    "cars196": Way(
        ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat"),
        "The address at Stanford is dead. The Internet Archive (web.archive.org) has copies of the "
        "pages' files; copies that were packed anew have other bytes.",
    ),
    "caltech101": Way(("caltech-101.zip",)),
    "flowers102": Way(("102flowers.tgz", "imagelabels.mat", "setid.mat")),
    "pets": Way(("images.tar.gz", "annotations.tar.gz")),
    "dtd": Way(("dtd-r1.0.1.tar.gz",)),
    "svhn": Way(("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat")),
    "sun397_tfds": _SUN397,
    "imagenet_lt": Way(
        IMAGENET_TARS,
        "Register at https://image-net.org/download-images for the two archives. The lists of "
        f"ImageNet-LT ({LISTS[0]}, {LISTS[1]}; linked from "
        "https://github.com/zhmiao/OpenLongTailRecognition-OLTR) are downloaded, or taken from the "
        f"same folder. Where TFDS has prepared {registry.IMAGENET} already, the two lists are all "
        "it takes: nothing is written but an index (--lists names their folder).",
    ),
    "inat2017": Way(
        ("train_val_images.tar.gz", "train_val2017.zip", "test2017.tar.gz"),
        "TFDS's own address refuses; the tool takes the authors' later one, "
        f"{INAT2017_URL} (186 GB and 53 GB; TFDS wants the test images too).",
    ),
    "pcam": Way(
        tuple(
            f"camelyonpatch_level_2_split_{split}_{part}.h5.gz"
            for split in ("train", "valid", "test")
            for part in "xy"
        )
    ),
    "retinopathy": Way(
        ("train", "test", "sample", "trainLabels.csv"),
        "Accept the rules of the competition and unpack train.zip, test.zip, sample.zip and "
        "trainLabels.csv.zip of it: train/*.jpeg, test/*.jpeg (53,576 files), sample/*.jpeg. "
        "retinopathy_solution.csv is downloaded, or taken from the same folder.",
    ),
    "eurosat": Way(
        ("EuroSAT.zip",),
        "If the download fails, as its server's certificate often has: the EuroSAT.zip of "
        "torchvision's EuroSAT class is the same file.",
    ),
    "resisc45": Way(
        ("NWPU-RESISC45",),
        "Unpack NWPU-RESISC45.rar from the authors' page: NWPU-RESISC45/<class>/*.jpg, 45 classes "
        "of 700 images.",
    ),
}


def instructions(name: str, manual: pathlib.Path, url_infos: dict[str, Any]) -> str:
    """Returns instructions for obtaining a data set.

    Args:
        name: Name in the registry.
        manual: TFDS's folder for files that it does not download.
        url_infos: TFDS's `builder.url_infos`, for sizes and checksums.
    """
    record, way = registry.RECORDS[name], WAYS[name]
    # For some data sets, TFDS does not give the file names.
    known = {info.filename or url.rpartition("/")[2]: info for url, info in url_infos.items()}
    lines = [
        f"{name} ({record.tfds}): {record.obtained}",
        f"  licence: {record.licence}",
        f"  page: {record.page}",
    ]
    if way.text:
        lines += textwrap.wrap(
            way.text, 98, initial_indent="  ", subsequent_indent="  ", break_long_words=False
        )
    if record.obtained == registry.AUTOMATIC:
        lines.append(f"  TFDS downloads it. Where that fails, put into {manual}:")
    else:
        lines.append(f"  Put into {manual}:")
    for file in way.files:
        lines.append(f"    {file}")
        if file in known:
            size, checksum = int(known[file].size), known[file].checksum
            lines.append(f"      {size:,} bytes, sha256 {checksum}")
    return "\n".join(lines)


def missing(name: str, manual: pathlib.Path) -> tuple[str, ...]:
    """Returns the files that are missing in `manual`; () if TFDS can download the data set."""
    if registry.RECORDS[name].obtained == registry.AUTOMATIC:
        return ()
    return tuple(file for file in WAYS[name].files if not (manual / file).exists())
