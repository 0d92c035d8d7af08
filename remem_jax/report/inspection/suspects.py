"""Sentences about labels that a model contradicts; all is plain text, not escaped yet."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from remem_jax.data.inspection.labels import Check, Suspect
from remem_jax.data.sources import TRAIN


class Part(NamedTuple):
    """The suspicious labels of some splits.

    Attributes:
        text: What they are.
        suspects: The images, the most suspicious first.
    """

    text: str
    suspects: list[Suspect]


def parts(check: Check) -> list[Part]:
    """Divides suspicious labels into those that the model was not trained on, and the others."""
    trained = check.images[TRAIN]
    others = sum(check.images.values()) - trained
    by_trained = {
        value: [suspect for suspect in check.suspects if suspect.trained == value]
        for value in (False, True)
    }
    return [
        Part(
            f"{check.model[:1].upper()}{check.model[1:]} contradicts the labels of "
            f"{len(by_trained[False]):,} of {others:,} validation and test images. It was not "
            "trained on them: where it is right, the label is wrong. It is most confident of "
            "these.",
            by_trained[False],
        ),
        Part(
            f"It contradicts the labels of {len(by_trained[True]):,} of {trained:,} training "
            "images, too. It was trained on these labels, and wrong ones that it has learned are "
            "not among them.",
            by_trained[True],
        ),
    ]


def line(suspect: Suspect, classes: Sequence[str]) -> str:
    """Describes a suspicious label."""
    return (
        f"labelled {classes[suspect.label]} ({suspect.of_label:.2f}), predicted "
        f"{classes[suspect.predicted]} ({suspect.of_predicted:.2f})"
    )


def rows(check: Check, classes: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """Yields the header, and a row for each suspicious label."""
    yield ("file", "split", "label", "predicted", "probability of label", "of predicted")
    for suspect in check.suspects:
        yield (
            suspect.name,
            suspect.split,
            classes[suspect.label],
            classes[suspect.predicted],
            f"{suspect.of_label:.6f}",
            f"{suspect.of_predicted:.6f}",
        )
