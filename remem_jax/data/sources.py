"""Sources of images: random access to examples that are not decoded yet."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from remem_jax.data import registry

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
UNLABELLED = "unlabelled"
NO_LABEL = -1  # Class index of an image without a label.


class Example(NamedTuple):
    """One image and its class.

    Attributes:
        image: An encoded file, or uint8 pixels (height, width, 3).
        label: Index of the class, or `NO_LABEL`.
    """

    image: bytes | np.ndarray
    label: int


class Split(NamedTuple):
    """Examples of one split, read lazily by any thread or process.

    Attributes:
        read: Maps an index to an example, or raises `decoding.CorruptImageError`. Picklable.
        name: Maps an index to a name of the image for messages. Picklable.
        examples: Number of examples.
        labels: int32, one per example; None if labels are only known by reading the examples.
        key: Changes when the stored data do, and is computed without reading them. "" if the
            examples are in memory, so that they are not cached.
        groups: Name of the group of each example, text; "" is none. Examples of one group must not
            be divided between splits. None if there are no groups.
    """

    read: Callable[[int], Example]
    name: Callable[[int], str]
    examples: int
    labels: np.ndarray | None
    key: str
    groups: np.ndarray | None = None


class Subset(NamedTuple):
    """The examples of a split that a run uses, all of which can be decoded.

    Attributes:
        split: The split.
        rows: Indices of the examples, int64.
        labels: Labels of these examples, int32.
    """

    split: Split
    rows: np.ndarray
    labels: np.ndarray

    def image(self, i: int) -> bytes | np.ndarray:
        """Reads the image at an index of the subset; see `Example.image` and `Split.read`."""
        return self.split.read(int(self.rows[i])).image

    def name(self, i: int) -> str:
        """Returns the name of the image at an index of the subset; see `Split.name`."""
        return self.split.name(int(self.rows[i]))


class Unlabelled(NamedTuple):
    """Images without labels, before they are decoded.

    Attributes:
        split: The images; their labels are `NO_LABEL`.
        largest_share: Largest share of them in a batch; above 0, below 1.
        skipped_files: See `Source`.
    """

    split: Split
    largest_share: float
    skipped_files: Mapping[str, int]

    def share(self, images: int, labelled: int) -> float:
        """Returns the share of unlabelled images in a batch: that in all images, within limits.

        Args:
            images: Number of unlabelled images.
            labelled: Number of training images with labels.
        """
        return min(images / (images + labelled), self.largest_share)


class Source(NamedTuple):
    """A data set before it is decoded.

    Attributes:
        title: Name for reports and messages.
        splits: "train", and "validation" and "test" if the source has them; `data.load` holds out
            of train what is missing.
        classes: Names of the classes, in the order of the labels.
        metric: `registry.TOP1` or `registry.MEAN_PER_CLASS`.
        flip: Whether a mirrored image keeps its class.
        official: Whether the counts are those of the official data set; None if there is none.
        skipped_files: Number of skipped files and folders by kind: a suffix, or a phrase.
        empty_classes: Class folders without an image.
        warnings: Warnings, a sentence each.
        published: Whether its splits are used as they are, however few images a class has.
        unlabelled: Images without labels, for students with a teacher; None if there are none.
    """

    title: str
    splits: dict[str, Split]
    classes: tuple[str, ...]
    metric: str
    flip: bool
    official: bool | None = None
    skipped_files: Mapping[str, int] = types.MappingProxyType({})
    empty_classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    published: bool = False
    unlabelled: Unlabelled | None = None


class Pixels(NamedTuple):
    """Reads a split whose images are an array in memory; see `Split.read`."""

    images: np.ndarray
    labels: np.ndarray

    def __call__(self, i: int) -> Example:
        return Example(self.images[i], int(self.labels[i]))


class Numbered(NamedTuple):
    """Names examples by their number; see `Split.name`."""

    noun: str

    def __call__(self, i: int) -> str:
        return f"{self.noun} {i}"


def in_memory(
    images: np.ndarray, labels: np.ndarray, noun: str, groups: np.ndarray | None = None
) -> Split:
    """Builds a split of uint8 images (example, height, width, 3)."""
    labels = labels.astype(np.int32)
    return Split(Pixels(images, labels), Numbered(noun), len(images), labels, "", groups)


class _Either(NamedTuple):
    """Calls one of two functions of an index, the second for indices from `first_examples`."""

    first: Callable[[int], Any]
    second: Callable[[int], Any]
    first_examples: int

    def __call__(self, i: int) -> Any:
        later = i - self.first_examples
        return self.first(i) if later < 0 else self.second(later)


def joined(first: Subset, second: Subset) -> Subset:
    """Returns the examples of two subsets, one after the other; it is not cached."""
    examples = first.split.examples
    split = Split(
        _Either(first.split.read, second.split.read, examples),
        _Either(first.split.name, second.split.name, examples),
        examples + second.split.examples,
        labels=None,
        key="",
    )
    return Subset(
        split,
        np.concatenate([first.rows, examples + second.rows]),
        np.concatenate([first.labels, second.labels]),
    )


def digits() -> Source:
    """Opens scikit-learn's 1,797 grey digits of 8 x 8 pixels; a fifth, stratified, is test."""
    from sklearn import datasets as sklearn_datasets  # The import takes a second.
    from sklearn import model_selection

    bunch = sklearn_datasets.load_digits()
    images = np.repeat(np.round(bunch.images * (255 / 16))[..., None], 3, axis=-1)
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0
    )
    splits = {
        name: in_memory(images[chosen].astype(np.uint8), bunch.target[chosen], "digit")
        for name, chosen in ((TRAIN, train), (TEST, test))
    }
    classes = tuple(str(name) for name in bunch.target_names)
    return Source("scikit-learn's digits", splits, classes, registry.TOP1, flip=False)
