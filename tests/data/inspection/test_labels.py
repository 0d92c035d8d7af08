"""Which labels a model contradicts, and in which order."""

import numpy as np
import pytest

from remem_jax.data import sources
from remem_jax.data.inspection import labels

PROBABILITIES = {
    "train": np.asarray([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]),
    "test": np.asarray([[0.0, 0.3, 0.7], [0.6, 0.4, 0.0], [0.05, 0.05, 0.9], [0.4, 0.2, 0.4]]),
}
LABELS = {"train": [1, 1], "test": [2, 1, 0, 0]}


@pytest.fixture
def subsets() -> dict[str, sources.Subset]:
    """Splits with these labels, whose rows do not begin at 0."""
    found = {}
    for name, of_split in LABELS.items():
        images = np.zeros((10, 4, 4, 3), np.uint8)
        rows = np.arange(len(of_split)) + 3
        split = sources.in_memory(images, np.zeros(10, np.int32), f"{name} image")
        found[name] = sources.Subset(split, rows, np.asarray(of_split, np.int32))
    return found


def test_margins_are_those_of_a_loop(rng: np.random.Generator) -> None:
    probabilities = rng.dirichlet(np.ones(5), 40)
    given = rng.integers(0, 5, 40)
    expected = [
        row[label] - max(value for klass, value in enumerate(row) if klass != label)
        for row, label in zip(probabilities.tolist(), given.tolist(), strict=True)
    ]

    np.testing.assert_allclose(labels.margins(probabilities, given), expected, rtol=1e-12)


def test_contradicted_labels_are_found_the_most_confident_first(
    subsets: dict[str, sources.Subset],
) -> None:
    found = labels.check("the teacher", subsets, PROBABILITIES)

    assert found.images == {"train": 2, "test": 4}
    assert [(each.name, each.label, each.predicted) for each in found.suspects] == [
        ("test image 5", 0, 2),  # Margin -0.85.
        ("train image 3", 1, 0),  # -0.8.
        ("test image 4", 1, 0),  # -0.2.
    ]
    assert [each.trained for each in found.suspects] == [False, True, False]
    assert (found.suspects[0].of_label, found.suspects[0].of_predicted) == (0.05, 0.9)


def test_a_tie_is_no_contradiction(subsets: dict[str, sources.Subset]) -> None:
    found = labels.check("the teacher", subsets, PROBABILITIES)

    assert "test image 6" not in [each.name for each in found.suspects]
