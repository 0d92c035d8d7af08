"""Finds labels that a model contradicts, the most suspicious first.

A label is suspicious if the model's probability of it is far below that of another class (the
margin of Northcutt et al. 2021, Confident Learning, https://arxiv.org/abs/1911.00068). The paper
takes predictions for images that the model was not trained on: a model that was trained on a wrong
label may have learned it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from remem_jax.data.sources import TRAIN, Subset


class Suspect(NamedTuple):
    """An image whose label the model contradicts.

    Attributes:
        split: Its split in the run.
        subset: The images of this split.
        image: Its index in them.
        predicted: Index of the class that the model predicts.
        of_predicted: Probability of this class.
        of_label: Probability of its label.
    """

    split: str
    subset: Subset
    image: int
    predicted: int
    of_predicted: float
    of_label: float

    @property
    def name(self) -> str:
        """Name of the image: the path of a file."""
        return self.subset.name(self.image)

    @property
    def label(self) -> int:
        """Index of its class."""
        return int(self.subset.labels[self.image])

    @property
    def trained(self) -> bool:
        """Whether the model was trained on this label."""
        return self.split == TRAIN


class Check(NamedTuple):
    """The labels of a run's images, as its model sees them.

    Attributes:
        model: The model in words, such as "the teacher (ReMem)".
        images: Number of images of each split.
        suspects: Images whose labels it contradicts, the smallest margin first.
    """

    model: str
    images: dict[str, int]
    suspects: list[Suspect]


def check(
    model: str,
    subsets: Mapping[str, Subset],
    probabilities: Mapping[str, Float[np.ndarray, "_ klass"]],
) -> Check:
    """Compares the labels of all splits with the predictions of a model.

    Args:
        model: The model in words.
        subsets: Images of each split, with their labels.
        probabilities: The model's probabilities for the images of each split.
    """
    suspects = [
        _suspect(split, subset, probabilities[split][i], i)
        for split, subset in subsets.items()
        for i in np.flatnonzero(margins(probabilities[split], subset.labels) < 0).tolist()
    ]
    return Check(
        model,
        {split: len(subset.rows) for split, subset in subsets.items()},
        sorted(suspects, key=lambda suspect: suspect.of_label - suspect.of_predicted),
    )


def margins(
    probabilities: Float[np.ndarray, "image klass"], labels: Int[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Returns the probability of each label minus that of the likeliest other class, -1 to 1."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    return probabilities[rows, labels] - others.max(axis=-1)


def _suspect(split: str, subset: Subset, probabilities: np.ndarray, image: int) -> Suspect:
    predicted = int(probabilities.argmax())
    of_label = float(probabilities[subset.labels[image]])
    return Suspect(split, subset, image, predicted, float(probabilities[predicted]), of_label)
