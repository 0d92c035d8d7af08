"""The worst mistakes are the most confident wrong predictions, with a picture of each."""

import base64
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from remem_jax.data import sources
from remem_jax.workflow.remem import mistakes


def test_the_worst_mistakes_are_wrong_and_most_confident_first(rng: np.random.Generator) -> None:
    labels, predicted = rng.integers(0, 3, (2, 200))
    confidences = rng.random(200).astype(np.float32)
    slow = sorted(
        (i for i in range(200) if predicted[i] != labels[i]),
        key=lambda i: -confidences[i],
    )

    found = mistakes.worst(predicted, confidences, labels)

    assert [entry["image"] for entry in found] == slow[: mistakes.MOST]
    for entry in found:
        i = entry["image"]
        assert (entry["label"], entry["predicted"]) == (labels[i], predicted[i])
        assert entry["confidence"] == pytest.approx(confidences[i])


@pytest.mark.parametrize(
    ("shape", "size"), [((300, 600), (96, 48)), ((8, 9), (90, 80)), ((60, 50), (50, 60))]
)
def test_a_thumbnail_keeps_the_aspect_ratio(shape: tuple[int, int], size: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), (200, 30, 40), np.uint8)

    content = mistakes.jpeg(pixels)

    image = Image.open(io.BytesIO(content))
    assert (image.format, image.size) == ("JPEG", size)
    np.testing.assert_allclose(np.asarray(image)[0, 0], (200, 30, 40), atol=3)


def test_thumbnails_are_small(rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)

    assert len(mistakes.jpeg(noise)) < 12_000


def _subset(folder: pathlib.Path, *names: str) -> sources.Subset:
    """Returns files in reverse order."""

    def read(i: int) -> sources.Example:
        return sources.Example((folder / names[i]).read_bytes(), 0)

    labels = np.zeros(len(names), np.int32)
    split = sources.Split(read, lambda i: names[i], len(names), labels, "")
    return sources.Subset(split, np.arange(len(names))[::-1], labels)


def test_pictures_are_from_the_files_and_missing_files_have_none(tmp_path: pathlib.Path) -> None:
    entry = {"label": 0, "predicted": 1, "confidence": 0.5}
    tested = {"mistakes": [{"image": i, **entry} for i in (1, 0)]}
    (tmp_path / "selected").mkdir()
    (tmp_path / "selected" / "remem.json").write_text(json.dumps(tested), encoding="utf-8")
    Image.new("RGB", (200, 100), "blue").save(tmp_path / "one.png")

    mistakes.write(tmp_path, "remem", _subset(tmp_path, "one.png", "gone.png"))

    path = tmp_path / "selected" / "remem_mistakes.json"
    first, second = json.loads(path.read_text(encoding="utf-8"))
    assert (first["file"], second["file"], second["thumbnail"]) == ("one.png", "gone.png", "")
    picture = Image.open(io.BytesIO(base64.b64decode(first["thumbnail"])))
    assert picture.size == (96, 48)


def test_a_student_that_an_earlier_version_tested_has_no_mistakes(tmp_path: pathlib.Path) -> None:
    mistakes.write(tmp_path, "remem", _subset(tmp_path, "one.png"))

    assert not (tmp_path / "selected").exists()
