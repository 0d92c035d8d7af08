"""Chooses the images that are held out of train: a share of each class, whole groups at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Groups = Int[np.ndarray, " image"]


def draw(
    labels: Int[np.ndarray, " image"], groups: Groups | None, share: float, *, seed: int
) -> Int[np.ndarray, " held_out"]:
    """Chooses about a share of each class, so that no group is on both sides.

    A class keeps at least one image to train on. If it has images in two groups that can be held
    out, at least one of them is.

    Args:
        labels: Class of each image.
        groups: Number of each image's group; None if each image is a group of its own.
        share: Share of each class; above 0, below 1.
        seed: Seed of the choice.

    Returns:
        Sorted indices of the images.
    """
    if groups is None or len(np.unique(groups)) == len(groups):
        return _images(labels, share, seed=seed)
    return _whole_groups(labels, groups, share, seed=seed)


def _wanted(sizes: Int[np.ndarray, " klass"], share: float) -> Int[np.ndarray, " klass"]:
    """Returns how many images of each class to hold out, given their numbers."""
    return np.minimum(np.maximum(np.round(share * sizes), 1), sizes - 1).astype(np.int64)


def _images(labels: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = _wanted(np.asarray([len(members)]), share)[0]
        chosen.extend(members[:count])
    return np.sort(np.asarray(chosen, np.int64))


class _Sizes(NamedTuple):
    """Numbers of images by class.

    Attributes:
        all: All images.
        wanted: Images to hold out.
        held: Images that are held out; updated.
    """

    all: Int[np.ndarray, " klass"]
    wanted: Int[np.ndarray, " klass"]
    held: Int[np.ndarray, " klass"]


def _whole_groups(labels: np.ndarray, groups: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    classes = np.unique(labels, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    counts = [_counts(classes[images]) for images in members]
    total = np.bincount(classes)
    sizes = _Sizes(total, _wanted(total, share), np.zeros_like(total))
    chosen = _closer(counts, np.random.default_rng(seed).permutation(len(members)), sizes)
    chosen += _smallest(counts, chosen, sizes)
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(members[group] for group in chosen)]))


def _counts(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes of a group's images, and the number of images of each."""
    if len(classes) == 1:  # Most groups, as a rule.
        return classes, np.ones(1, np.int64)
    return np.unique(classes, return_counts=True)


def _closer(
    counts: Sequence[tuple[np.ndarray, np.ndarray]], order: np.ndarray, sizes: _Sizes
) -> list[int]:
    """Chooses each group that brings its classes closer to what is wanted, in this order."""
    chosen = []
    for group in order.tolist():
        present, images = counts[group]
        after = sizes.held[present] + images
        closer = np.abs(sizes.wanted[present] - sizes.held[present]) - np.abs(
            sizes.wanted[present] - after
        )
        if np.all(after < sizes.all[present]) and closer.sum() > 0:
            sizes.held[present] = after
            chosen.append(group)
    return chosen


def _smallest(
    counts: Sequence[tuple[np.ndarray, np.ndarray]], chosen: Sequence[int], sizes: _Sizes
) -> list[int]:
    """Chooses the smallest possible group for each class of which none is chosen yet.

    All groups of such a class are larger than what is wanted.
    """
    by_size = sorted(
        set(range(len(counts))) - set(chosen), key=lambda group: (counts[group][1].sum(), group)
    )
    more: list[int] = []
    for label in np.flatnonzero((sizes.held == 0) & (sizes.wanted > 0)):
        for group in by_size:
            present, images = counts[group]
            after = sizes.held[present] + images
            if label in present and group not in more and np.all(after < sizes.all[present]):
                sizes.held[present] = after
                more.append(group)
                break
    return more
