"""Groups of images that are held out together: named ones, and near duplicates."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from remem_jax.checks import printable
from remem_jax.data import cache
from remem_jax.data.inspection import duplicates
from remem_jax.data.scan import ScanResult
from remem_jax.data.sources import Split

_LISTED = 5  # Classes that a warning names.


class Groups(NamedTuple):
    """Groups of the images of a split.

    Attributes:
        numbers: Number of each image's group.
        named: Number of groups of several images that the data set names.
        named_images: Number of images in them.
        duplicates: Number of groups of near duplicates.
        duplicate_images: Number of images in them.
        divided: Indices of the classes with so few groups of near duplicates that these are
            divided; otherwise nothing of them could be held out.
    """

    numbers: Int[np.ndarray, " image"]
    named: int = 0
    named_images: int = 0
    duplicates: int = 0
    duplicate_images: int = 0
    divided: tuple[int, ...] = ()


def of_train(
    split: Split,
    scan: ScanResult,
    *,
    parts: int,
    near_duplicates: bool,
    folder: str,
    threads: int,
) -> Groups | None:
    """Returns the groups of the images of train; None if each image is a group of its own.

    Args:
        split: The training split.
        scan: Its scan.
        parts: See `of_images`.
        near_duplicates: Whether near duplicates are groups, too.
        folder: Folder of the cache (`config.data.cache`); "" is that of REMEM_CACHE.
        threads: Number of threads.
    """
    names = None if split.groups is None else split.groups[scan.kept]
    found = _near_duplicates(split, scan, folder, threads) if near_duplicates else ()
    return of_images(scan.labels, names, found, parts=parts)


def of_images(
    labels: Int[np.ndarray, " image"],
    names: np.ndarray | None,
    near_duplicates: Sequence[np.ndarray],
    *,
    parts: int,
) -> Groups | None:
    """Joins groups of images; None if each image is a group of its own.

    Args:
        labels: Class of each image.
        names: Name of each image's group, "" for none; None if there are no named groups.
        near_duplicates: Indices of the members of each group of near duplicates.
        parts: Number of parts that each class is divided into; with fewer groups of near
            duplicates, a class could not be.
    """
    named = np.arange(len(labels)) if names is None else numbered(names)
    merged, used, divided = _merged(named, near_duplicates, labels, parts)
    if len(np.unique(merged)) == len(merged) and not divided:
        return None
    sizes = np.bincount(named)
    return Groups(
        merged,
        int(np.sum(sizes > 1)),
        int(np.sum(sizes[sizes > 1])),
        len(used),
        sum(map(len, used)),
        divided,
    )


def shared(first: Split, second: Split) -> int:
    """Returns the number of named groups that two splits have in common."""
    if first.groups is None or second.groups is None:
        return 0
    return len((set(first.groups) & set(second.groups)) - {""})


def warnings(groups: Groups, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns warnings about groups that had to be divided."""
    if not groups.divided:
        return ()
    listed = ", ".join(printable(classes[i]) for i in groups.divided[:_LISTED])
    more = len(groups.divided) - _LISTED
    others = f" and {more:,} more" if more > 0 else ""
    return (
        f"nearly all images of {listed}{others} are near duplicates of each other, so that "
        "held-out images have near duplicates in train",
    )


def numbered(names: np.ndarray) -> Int[np.ndarray, " image"]:
    """Returns the number of each image's group; an image without a name has one of its own."""
    groups = np.unique(names.astype(str), return_inverse=True)[1]
    alone = names == ""
    return np.where(alone, len(groups) + np.arange(len(groups)), groups)


def _near_duplicates(split: Split, scan: ScanResult, folder: str, threads: int) -> list[np.ndarray]:
    """Returns the members of each group of near duplicates, from the cache if it has them."""

    def find() -> np.ndarray:
        found = duplicates.groups(
            scan.numbers.tolist(),
            scan.numbers.tolist(),
            scan.thumbnails,
            lambda i: split.read(int(scan.kept[i])).image,
            threads=threads,
        )
        number = np.full(len(scan.kept), -1, np.int64)
        for i, group in enumerate(found):
            number[[*group.members]] = i
        return number

    key = f"{split.key} {scan.digest}" if split.key else ""
    number = cache.remembered("duplicates", key, find, folder=cache.folder(folder))
    members = np.flatnonzero(number >= 0)
    order = members[np.argsort(number[members], kind="stable")]
    return [*np.split(order, np.flatnonzero(np.diff(number[order])) + 1)] if len(order) else []


def _merged(
    named: np.ndarray, found: Sequence[np.ndarray], labels: np.ndarray, parts: int
) -> tuple[np.ndarray, Sequence[np.ndarray], tuple[int, ...]]:
    """Joins named groups through near duplicates, except where nothing could be held out then.

    Returns:
        Numbers of the groups; the near duplicates that are kept together; the classes whose near
        duplicates are not.
    """
    used, divided = [*found], set[int]()
    while True:
        merged, too_few = _joined(named, used), set[int]()
        for label in np.unique(np.concatenate([np.zeros(0, int), *(labels[i] for i in used)])):
            of_class = labels == label
            wanted = min(parts, len(np.unique(named[of_class])))
            if len(np.unique(merged[of_class])) < wanted:
                too_few.add(int(label))
        if not too_few:
            return merged, used, tuple(sorted(divided))
        divided |= too_few
        used = [members for members in used if not too_few & set(labels[members].tolist())]


def _joined(named: np.ndarray, found: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the numbers of groups that are connected by near duplicates."""
    if not found:
        return named
    from scipy import sparse  # Takes long to import, and a run may never need it.

    groups = np.unique(named, return_inverse=True)[1]
    first = np.concatenate([np.repeat(groups[members[0]], len(members)) for members in found])
    second = np.concatenate([groups[members] for members in found])
    count = int(groups.max()) + 1
    links = sparse.coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    return sparse.csgraph.connected_components(links, directed=False)[1][groups]


def record(groups: Groups | None) -> Mapping[str, int] | None:
    """Returns the numbers of groups and of images in them, for the results; None without groups."""
    if groups is None:
        return None
    names = ("named", "named_images", "duplicates", "duplicate_images")
    return {name: getattr(groups, name) for name in names}
