"""Classifies images of Tiny ImageNet with the real EfficientNet-Lite0, here and in timm.

    python -m tests.weights.tiny_imagenet --images=300

Both print top-1 among ImageNet's 1,000 classes and among the 200 of Tiny ImageNet. The images are
enlarged from 64 to 224 pixels. The weights and the images are beside the repository (`shared`).
"""

import argparse
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from remem_jax import models
from remem_jax.weights import initial_students, students
from tests.oracles import peers

STUDENT = "efficientnet_lite0"
SHARED = pathlib.Path(__file__).parents[3] / "shared"
WEIGHTS = "weights/tf_efficientnet_lite0.in1k.safetensors"
IMAGES = "data/tiny_imagenet64/val.zip"
_SIDE, _BATCH = 224, 50


class Sample(NamedTuple):
    """Images of Tiny ImageNet.

    Attributes:
        pixels: uint8 images of 224 pixels.
        labels: Their classes among ImageNet's 1,000.
        classes: The 200 classes of Tiny ImageNet.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: np.ndarray

    def top1(self, logits: np.ndarray) -> tuple[float, float]:
        """Returns the accuracies among 1,000 classes and among 200."""
        among_all = logits.argmax(1) == self.labels
        among_its_own = self.classes[logits[:, self.classes].argmax(1)] == self.labels
        return float(among_all.mean()), float(among_its_own.mean())


def sample(shared: pathlib.Path, images: int) -> Sample:
    """Draws images at random, always the same."""
    sys.path.insert(0, str(shared / "data"))
    try:
        import load_sheets  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    pixels, labels, names = load_sheets.load(shared / IMAGES)
    chosen = np.random.default_rng(0).choice(len(pixels), images, replace=False)
    folder = pathlib.Path(peers.timm().__file__).parent
    synsets = (folder / "data/_info/imagenet_synsets.txt").read_text().split()
    classes = np.array([synsets.index(name.split()[0]) for name in names])
    large = [
        Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        for image in pixels[chosen]
    ]
    return Sample(
        np.stack([np.asarray(image) for image in large]), classes[labels[chosen]], classes
    )


def ours(shared: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
    """Returns our logits, of images in [-1, 1]."""
    path = str(shared / WEIGHTS)
    initial = initial_students.read(
        path, student=STUDENT, stem="imagenet", image_size=_SIDE, mean=(), std=()
    )
    model: Any = models.make(STUDENT, classes=1000, normalisation=initial.normalisation)
    apply, variables = jax.jit(model.apply), students.load(path, model)
    images = pixels.astype(np.float32) / np.float32(127.5) - 1
    return np.concatenate([apply(variables, batch) for batch in _batches(images)])


def of_timm(shared: pathlib.Path, pixels: np.ndarray) -> np.ndarray:
    """Returns timm's logits, of images normalised as Google trained the network."""
    torch = peers.torch()
    model = peers.timm().create_model(f"tf_{STUDENT}", checkpoint_path=str(shared / WEIGHTS))
    model.eval()
    images = ((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return np.concatenate([model(torch.tensor(batch)).numpy() for batch in _batches(images)])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return np.split(images, range(_BATCH, len(images), _BATCH))


def main() -> None:
    """Prints both accuracies of both networks, and the largest difference of a logit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    drawn = sample(SHARED, parser.parse_args().images)
    logits = {"remem_jax": ours(SHARED, drawn.pixels), "timm": of_timm(SHARED, drawn.pixels)}
    for name, values in logits.items():
        of_1000, of_200 = drawn.top1(values)
        sys.stdout.write(f"{name}: {of_1000:.1%} of 1,000 classes, {of_200:.1%} among 200\n")
    difference = np.abs(logits["remem_jax"] - logits["timm"]).max()
    sys.stdout.write(f"largest difference of a logit: {difference:.1e}\n")


if __name__ == "__main__":
    main()
