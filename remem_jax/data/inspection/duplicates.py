"""Finds exact and near duplicates among images.

A near duplicate is the same picture, encoded, resized, brightened, or cropped by a pixel or two:
thumbnails are alike, and so are perceptual hashes. Mirrored and rotated copies, and copies in other
colours, are different pictures.
"""

import concurrent.futures
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from remem_jax.data.images import decoding
from remem_jax.data.inspection import thumbnails
from remem_jax.data.inspection.thumbnails import Pairs, Thumbnails

if TYPE_CHECKING:
    import imagehash

FILES, PIXELS, NEAR = "the same file", "the same pixels", "nearly the same picture"
KINDS = (FILES, PIXELS, NEAR)
# Largest number of bits, of 64, by which the perceptual hashes of near duplicates differ. At 10,
# most pairs of photographs are different pictures; docs/own_data.md has the numbers.
MOST_BITS = 8

_HASHED = 64  # Smallest side at which an image may be decoded for its hash, which has 32 pixels.
_MOST = 8  # Pairs of an image with earlier ones; others are linked through these.

# Reads an image by its index, encoded or as pixels, or raises `decoding.CorruptImageError`.
Read = Callable[[int], bytes | np.ndarray]


class Group(NamedTuple):
    """Images that are duplicates of each other.

    Attributes:
        kind: One of `KINDS`: what all of them share at least.
        members: Their indices, in increasing order.
    """

    kind: str
    members: tuple[int, ...]


def groups(
    files: Sequence[Hashable],
    pixels: Sequence[Hashable],
    images: Thumbnails,
    read: Read,
    *,
    threads: int,
) -> list[Group]:
    """Finds all groups of duplicates in a collection of images.

    Near duplicates are linked: a group may have two images that are near duplicates of a third, but
    not of each other.

    Args:
        files: Digest of each image as it is stored.
        pixels: Digest of each image's pixels.
        images: Thumbnail of each image.
        read: Reads an image.
        threads: Number of threads.

    Returns:
        Groups of at least two images, in the order of their first ones.
    """
    by_file, by_pixels = _numbered(files), _numbered(pixels)
    # One image stands for all with the same pixels.
    distinct, of_distinct = np.unique(by_pixels, return_index=True)
    pairs = thumbnails.alike_within(images[of_distinct], most=_MOST, threads=threads)
    rows = np.unique(np.concatenate(pairs))
    hashed = hashes(rows, lambda i: read(int(of_distinct[i])), threads=threads)
    near = are_close(pairs, hashed, hashed)
    component = by_pixels
    if near.any():
        from scipy import sparse  # Takes long to import, and a run may never need it.

        linked = sparse.coo_array(
            (np.ones(near.sum(), bool), (pairs.first[near], pairs.second[near])),
            (len(distinct), len(distinct)),
        )
        component = sparse.csgraph.connected_components(linked, directed=False)[1][by_pixels]
    order = np.argsort(component, kind="stable")
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    found = []
    for members in np.split(order, starts[1:]):
        if len(members) > 1:
            kind = FILES if _is_one(by_file[members]) else NEAR
            kind = PIXELS if kind == NEAR and _is_one(by_pixels[members]) else kind
            found.append(Group(kind, tuple(members.tolist())))
    return sorted(found, key=lambda group: group.members)


def hashes(
    rows: Int[np.ndarray, " row"], read: Read, *, threads: int
) -> dict[int, "imagehash.ImageHash"]:
    """Returns the perceptual hashes of some images; without those that cannot be read.

    Args:
        rows: Indices of the images.
        read: Reads an image.
        threads: Number of threads that read.
    """
    if not len(rows):
        return {}
    import imagehash  # Imports SciPy.

    def of_row(row: int) -> imagehash.ImageHash | None:
        try:
            image = read(row)
            if isinstance(image, bytes):
                image = decoding.decode(image, at_least=(_HASHED, _HASHED))
        except decoding.CorruptImageError:  # It was removed or changed meanwhile.
            return None
        return imagehash.phash(Image.fromarray(image))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = zip(rows.tolist(), pool.map(of_row, rows.tolist()), strict=True)
        return {row: each for row, each in found if each is not None}


def are_close(
    pairs: Pairs,
    first: Mapping[int, "imagehash.ImageHash"],
    second: Mapping[int, "imagehash.ImageHash"],
) -> Bool[np.ndarray, " pair"]:
    """Returns whether the hashes of each pair differ in at most `MOST_BITS`.

    Args:
        pairs: The pairs.
        first: Hash of each first image, by its index.
        second: Hash of each second image.
    """
    return np.asarray(
        [
            i in first and j in second and first[i] - second[j] <= MOST_BITS
            for i, j in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
        ],
        bool,
    )


def _numbered(keys: Sequence[Hashable]) -> Int[np.ndarray, " image"]:
    """Returns a number from 0 for each key, the same for equal keys."""
    numbers: dict[Hashable, int] = {}
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _is_one(numbers: Int[np.ndarray, " image"]) -> bool:
    return bool(np.all(numbers == numbers[0]))
