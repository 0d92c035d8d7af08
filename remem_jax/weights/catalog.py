"""The catalogue of published pretrained weights: names, and paths on this machine.

Source: gs://vit_models, the bucket of github.com/google-research/vision_transformer.
"""

import difflib
import importlib.resources
import math
import os
import pathlib
import re
import types
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from remem_jax.checks import SettingError, local_path, one_of
from remem_jax.storage import files
from remem_jax.weights import hub, teacher_catalog

BUCKET = "https://storage.googleapis.com/vit_models/"
INDEX = "augreg/index.csv"  # One row for each fine-tuned checkpoint of AugReg: 51,509.

# Names that are no longer bundled, with their replacements.
_RETIRED = {"bundled:Pico/8": "bundled:Ti/16"}
_I21K, _I1K, _BOTH = "ImageNet-21k", "ImageNet-1k", "ImageNet-21k, then ImageNet-1k"
_SUBTREE = re.compile(r"(.+?\.npz):(.+)", re.DOTALL)
_STEM = re.compile(r"(\w+?_\d+)-(i1k|i21k\w*)-[\w.-]+")
# MiB of a file with a head of 1000 classes, and of one with 21,843.
_MEBIBYTES = {
    "Ti/16": (21.8, 37.2),
    "S/32": (87.3, 117.9),
    "S/16": (84.1, 114.7),
    "B/32": (336.6, 397.7),
    "B/16": (330.2, 391.4),
    "B/8": (330.3, 391.4),
    "L/16": (1160.9, 1242.4),
    "R+Ti/16": (24.2, 39.5),
    "R26+S/32": (139.0, 169.6),
    "R50+L/32": (1255.0, 1336.5),
}
# The best by final_val, as listed in the README of vision_transformer, each with the learning rate
# of its fine-tuning at 384 pixels; that of B/8 is not listed.
_AUGREG = {
    "Ti/16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "S/32": ("aug_none-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "S/16": ("aug_light1-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "B/32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "B/16": ("aug_medium1-wd_0.1-do_0.0-sd_0.0", "0.03"),
    "B/8": ("aug_medium2-wd_0.1-do_0.0-sd_0.0", ""),
    "L/16": ("aug_strong1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "R+Ti/16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "0.03"),
    "R26+S/32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01"),
    "R50+L/32": ("aug_medium1-wd_0.1-do_0.1-sd_0.1", "0.01"),
}
_AUGREG_I1K = {
    "Ti/16": ("aug_light0-wd_0.1-do_0.0-sd_0.0", "a choice seen in public code"),
    "S/16": ("aug_medium2-wd_0.1-do_0.0-sd_0.0", "timm's choice"),
    "B/32": ("aug_medium2-wd_0.1-do_0.1-sd_0.1", "timm's choice"),
    "B/16": ("aug_strong2-wd_0.1-do_0.1-sd_0.1", "timm's choice"),
}
# The other collections: folder, end of the file's name, pretraining, note, and MiB by variant.
_VIT: dict[str, tuple[str, str, str, str, dict[str, float | None]]] = {
    "i21k": (
        "imagenet21k",
        "",
        _I21K,
        "the head is zeros; pre_logits is dropped",
        {
            "B/16": 393.7,
            "B/32": 400.0,
            "B/8": 393.7,
            "L/16": 1246.4,
            "L/32": 1254.8,
            "H/14": 2519.2,
            "R50+B/16": 439.9,
            "R50+L/32": None,
        },
    ),
    "i21k-i1k": ("imagenet21k+imagenet2012", "-224", _BOTH, "", {"B/16": 330.3}),
    "i21k-i1k-384": (
        "imagenet21k+imagenet2012",
        "",
        _BOTH,
        "at 384 pixels",
        {
            "B/16": 331.4,
            "B/32": 336.9,
            "B/8": 334.8,
            "L/16": 1162.4,
            "L/32": 1169.7,
            "R50+B/16": 377.6,
        },
    ),
    "sam": (
        "sam",
        "",
        _I1K,
        "trained with SAM (Chen et al. 2021): its minima are flat before ReMem's own SAM",
        {"S/16": 252.6, "B/32": 336.6, "B/16": 330.3, "L/32": 1169.3, "L/16": 1160.9},
    ),
    "gsam": (
        "gsam",
        "",
        _I1K,
        "trained with GSAM; others found these files to classify badly: do not rely on them",
        dict.fromkeys(("S/32", "S/16", "B/32", "B/16")),
    ),
}


class Published(NamedTuple):
    """A checkpoint of the bucket.

    Attributes:
        name: Its name in a config, such as "augreg:B/16".
        variant: One of `vit.VARIANTS`.
        path: Path in the bucket.
        mebibytes: Size in MiB; None if unknown.
        pretraining: Data sets that it was trained on.
        note: A remark for users; may be "".
    """

    name: str
    variant: str
    path: str
    mebibytes: float | None
    pretraining: str
    note: str = ""


class Bundled(NamedTuple):
    """A checkpoint that is part of this package.

    Attributes:
        file: Name of its file in `weights/bundled`, where README.md has its licence.
        source: Name of the published checkpoint that it was made from.
    """

    file: str
    source: str


class Pick(NamedTuple):
    """The best checkpoint of AugReg's sweep: its name, and its accuracy on validation data."""

    name: str
    accuracy: float


def _plain(name: str) -> str:
    """Returns the name of a variant in file names: R50_L_32 for "R50+L/32"."""
    return name.replace("+", "_").replace("/", "_")


def _original(variant: str) -> str:
    """Returns a variant's name in the collections before AugReg: R50+ViT-L_32 for "R50+L/32"."""
    stem, plus, size = variant.rpartition("+")
    return f"{stem}{plus}ViT-{size.replace('/', '_')}"


def _listed() -> dict[str, Published]:
    published = []
    for variant, (recipe, learning_rate) in _AUGREG.items():
        stem = f"{_plain(variant)}-i21k-300ep-lr_0.001-{recipe}"
        small, large = _MEBIBYTES[variant]
        published.append(
            Published(f"augreg:{variant}", variant, f"augreg/{stem}.npz", large, _I21K)
        )
        if learning_rate:
            path = f"augreg/{stem}--imagenet2012-steps_20k-lr_{learning_rate}-res_384.npz"
            name = f"augreg-i1k-384:{variant}"
            published.append(Published(name, variant, path, small, _BOTH, "at 384 pixels"))
    for variant, (recipe, note) in _AUGREG_I1K.items():
        path = f"augreg/{_plain(variant)}-i1k-300ep-lr_0.001-{recipe}.npz"
        small, _ = _MEBIBYTES[variant]
        published.append(Published(f"augreg-i1k:{variant}", variant, path, small, _I1K, note))
    for collection, (folder, end, pretraining, note, sizes) in _VIT.items():
        for variant, mebibytes in sizes.items():
            name, path = f"{collection}:{variant}", f"{folder}/{_original(variant)}{end}.npz"
            published.append(Published(name, variant, path, mebibytes, pretraining, note))
    return {each.name: each for each in sorted(published, key=lambda each: each.name.split(":")[0])}


BUNDLED: Mapping[str, Bundled] = types.MappingProxyType(
    {
        "bundled:Ti/16": Bundled(
            "ti_16.npz",
            "augreg:Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-"
            "steps_20k-lr_0.03-res_224",
        )
    }
)
ADVICE = (
    f"such as augreg:Ti/16, the path of a file, {', '.join(BUNDLED)}, or {teacher_catalog.EXAMPLE}"
)
PUBLISHED: Mapping[str, Published] = types.MappingProxyType(_listed())
# The paper gives the source of only one of the three: footnote 8, Chen et al. 2021, is at
# "ImageNet-21k with strong augmentations", but the only ViTs that they published were trained on
# ImageNet-1k with SAM. We take it as the source for ImageNet-1k; augreg-i1k:B/16 is an alternative.
TABLE_4: Mapping[str, str] = types.MappingProxyType(
    {
        "ImageNet-1k": "sam:B/16",
        "ImageNet-21K": "i21k:B/16",
        "ImageNet-21k (augreg)": "augreg:B/16",
    }
)


def is_name(init: str) -> bool:
    """Returns whether `init` has the form of a name in the catalogue, as opposed to a path."""
    return not init.startswith(hub.PREFIXES) and re.match(r"[\w-]+:(?!//)", init) is not None


def has(init: str) -> bool:
    """Returns whether `init` is one of `BUNDLED` or a name for `find`."""
    return init in BUNDLED or init in PUBLISHED or init.startswith("augreg:")


def find(init: str) -> Published:
    """Returns the published checkpoint of a name.

    Args:
        init: One of `PUBLISHED`; "augreg:" and the name of any file of AugReg's sweep, such as
            "augreg:B_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"; or one of `BUNDLED`,
            for the checkpoint that it was made from.

    Raises:
        SettingError: If the name is unknown; the message lists similar names.
    """
    if init in BUNDLED:
        return find(BUNDLED[init].source)
    if init in _RETIRED:
        raise SettingError(
            f"{init} is no longer bundled: set config.teacher.init to {_RETIRED[init]}."
        )
    if init in PUBLISHED:
        return PUBLISHED[init]
    collection, _, stem = init.removesuffix(".npz").partition(":")
    match = _STEM.fullmatch(stem)
    variants = {_plain(variant): variant for variant in _MEBIBYTES}
    if collection == "augreg" and match and match[1] in variants:
        return _of_sweep(stem, variants[match[1]], match[2])
    known = [*BUNDLED, *PUBLISHED]
    close = [name for name in known if name.startswith(f"{collection}:")]
    close = close or difflib.get_close_matches(init, known) or known
    raise SettingError(
        f"There are no published weights {init!r}; known: {', '.join(close)}, and augreg: with "
        "the name of any file of AugReg. Set config.teacher.init."
    )


def split_path(init: str) -> tuple[pathlib.Path, str]:
    """Splits "two_towers.npz:params/img" into the file and the prefix in it; "" without one."""
    match = _SUBTREE.fullmatch(init)
    file, subtree = match.groups() if match else (init, "")
    return local_path("config.teacher.init", file), subtree.strip("/")


def locate(init: str, *, mirror: str = "") -> pathlib.Path:
    """Returns the path of the weights that a config names, whether or not they exist yet.

    Args:
        init: "bundled:..."; a name for `find`; or the path of a file, which is returned unchanged,
            including the ":sub/tree" that `split_path` removes.
        mirror: See `in_mirror`.

    Raises:
        SettingError: If it is an unknown name.
    """
    if init in BUNDLED:
        return (
            pathlib.Path(str(importlib.resources.files("remem_jax")))
            / "weights/bundled"
            / BUNDLED[init].file
        )
    if not is_name(init):
        return local_path("config.teacher.init", init)
    return in_mirror(find(init).path, mirror)


def in_mirror(path: str, mirror: str = "") -> pathlib.Path:
    """Returns the path of a file of the bucket on this machine, whether or not it exists yet.

    Args:
        path: Path in the bucket.
        mirror: Replacement of `BUCKET`: a URL, or a folder, from which files are not copied. ""
            takes the environment variable REMEM_MIRROR.
    """
    folder = mirror_folder(mirror)
    return files.cache() / "weights" / path if folder is None else folder / path


def mirror_folder(mirror: str = "") -> pathlib.Path | None:
    """Returns the mirror if it is a folder."""
    location = _mirror(mirror)
    if location.startswith("file://"):
        return pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(location).path))
    if location.startswith(("http://", "https://")):
        return None
    return local_path("config.teacher.mirror" if mirror else "REMEM_MIRROR", location)


def url(path: str, mirror: str = "") -> str:
    """Returns the URL of a file of the bucket, for a mirror that is not a folder."""
    whole = urllib.parse.urlsplit(_mirror(mirror))  # A token may follow the folder.
    return whole._replace(path=f"{whole.path.rstrip('/')}/{urllib.parse.quote(path)}").geturl()


def pick(
    rows: Iterable[Mapping[str, str]],
    variant: str,
    pretraining: str,
    *,
    adapted: str = "",
    resolution: int = 224,
) -> Pick:
    """Returns the best checkpoint of a variant in AugReg's index; the last of equally good ones.

    Pretrained checkpoints are ranked by final_val, as the authors do. Fine-tuned ones with this
    pretraining are ranked by adapt_final_val. Accuracies on test data are not used.

    Args:
        rows: Rows of index.csv, by column; consumed once.
        variant: A variant such as "B/16".
        pretraining: Value of the column ds: "i1k", "i21k" or "i21k_30".
        adapted: Data set of the fine-tuning, a value of the column adapt_ds; "" for pretrained
            checkpoints.
        resolution: Side of the fine-tuning images, in pixels.

    Raises:
        SettingError: If AugReg has no such variant, or its index no such row.
    """
    one_of("The variant", variant, _MEBIBYTES)
    score, file = ("adapt_final_val", "adapt_filename") if adapted else ("final_val", "filename")
    best, name = -math.inf, ""
    for row in rows:
        if row["filename"].split("-")[0] != _plain(variant) or row["ds"] != pretraining:
            continue
        differs = row["adapt_ds"] != adapted or float(row["adapt_resolution"]) != resolution
        if adapted and differs:
            continue
        accuracy = float(row[score] or "nan")
        if accuracy >= best:  # Never true for NaN.
            best, name = accuracy, row[file]
    if not name:
        tuned = f", fine-tuned on {adapted} at {resolution} pixels" if adapted else ""
        raise SettingError(f"AugReg's index has no {variant} pretrained on {pretraining}{tuned}.")
    return Pick(f"augreg:{name.removesuffix('.npz')}", best)


def _mirror(mirror: str) -> str:
    return mirror or os.environ.get("REMEM_MIRROR") or BUCKET


def _of_sweep(stem: str, variant: str, pretraining: str) -> Published:
    """Returns a file of AugReg's sweep; sizes after fine-tuning on other data are unknown."""
    small, large = _MEBIBYTES[variant]
    data = _I1K if pretraining == "i1k" else _I21K
    mebibytes: float | None = small if pretraining == "i1k" else large
    _, fine_tuned, adapted = stem.partition("--")
    if fine_tuned:
        dataset = adapted.split("-")[0]
        data = f"{data}, then {_I1K if dataset == 'imagenet2012' else dataset}"
        mebibytes = small if dataset == "imagenet2012" else None
    return Published(f"augreg:{stem}", variant, f"augreg/{stem}.npz", mebibytes, data)
