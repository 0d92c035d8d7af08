"""Measures the cost of the analyses, compared with one forward pass over the same images.

    python -m tools.benchmark_analysis --images=3060              # random weights, random images
    python -m tools.benchmark_analysis --init=Ti_16.npz --rows=top,expertness

`top` is the criticality of all neurons of the top block; the target is below 3 forward passes.
`middle` is the criticality of a block in the middle, on a few images, with the number of counted
operations for comparison. `expertness` is the pass that sums the energies of all blocks, and,
separately, the clustering of one block. `memory` is the peak memory of a process that analyses half
of the images, and of one that analyses all of them, with the same batch size; it should grow only
by the energies, one float32 for each image and neuron.

Times are wall-clock seconds on the device that JAX finds, without compiling.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import models
from remem_jax.analysis import activations, criticality, expertness
from remem_jax.data.images import augment
from remem_jax.models import vit
from remem_jax.records import Batch, Variables
from remem_jax.train import flops
from remem_jax.weights import augreg

ROWS = ("top", "middle", "expertness", "memory")
CLUSTERS = 102  # Classes of Caltech-101.
MIDDLE_IMAGES = 8


class Bench:
    """A model, and images of random noise.

    Attributes:
        model: The ViT.
        variables: Its variables.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._images, self._size = arguments.images, arguments.size
        self._batch = arguments.batch_size
        if arguments.init:
            self.model, self.variables = augreg.make(arguments.init, image_size=self._size)
        else:
            self.model = vit.make(variant=arguments.variant, classes=2)
            self.variables = models.init(self.model, jax.random.key(0), self._size)
        self.variables: Variables = jax.device_put(self.variables)
        self._pixels = np.random.default_rng(0).integers(
            0, 256, (self._batch, self._size, self._size, 3), np.uint8
        )

    def batches(self, images: int) -> Iterator[Batch]:
        """Yields this many images in batches; the last batch is padded."""
        for first in range(0, images, self._batch):
            mask = jnp.arange(self._batch) < images - first
            yield Batch(jnp.asarray(self._pixels), jnp.zeros(self._batch, jnp.int32), mask)

    def transform(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Scales images to the range of the model, without augmentation."""
        del key
        return augment.to_model_range(image)

    def forward(self, variables: Variables, batch: Batch) -> Any:
        """Applies the model."""
        return self.model.apply(variables, self.transform(jax.random.key(0), batch.image))

    def seconds(self, function: Callable[..., Any], images: int) -> float:
        """Times a jitted function of variables and batch over this many images, after a warm-up."""
        jax.block_until_ready(function(self.variables, next(self.batches(1))))
        started = time.monotonic()
        for batch in self.batches(images):
            jax.device_get(function(self.variables, batch))
        return time.monotonic() - started

    def influence(self, layer: int, chunk: int) -> Any:
        """Returns the jitted criticality function of variables and batch."""
        return jax.jit(
            criticality.make_influence(self.model, self.transform, layer=layer, chunk=chunk)
        )

    def energies(self) -> Any:
        """Returns the jitted expertness function of variables and batch."""
        layers = range(self.model.size.depth)
        capture = activations.make_capture(self.model, layers)

        def reduce(captured: activations.Captured) -> dict[int, jax.Array]:
            return {layer: expertness.energy(captured.hidden[layer]) for layer in layers}

        return jax.jit(activations.make_reduction(capture, self.transform, reduce))


def top(bench: Bench, arguments: argparse.Namespace) -> None:
    """Compares the criticality of the top block with a forward pass."""
    forward = bench.seconds(jax.jit(bench.forward), arguments.images)
    seconds = bench.seconds(
        bench.influence(bench.model.size.depth - 1, arguments.chunk), arguments.images
    )
    print(
        f"top: {arguments.images} images, {bench.model.size.hidden} neurons: forward "
        f"{forward:.1f} s, criticality {seconds:.1f} s, ratio {seconds / forward:.2f} "
        "(target: below 3)"
    )


def middle(bench: Bench, arguments: argparse.Namespace) -> None:
    """Compares the criticality of a middle block with forward passes, by time and by operations."""
    layer = bench.model.size.depth // 2 - 1
    batch = next(bench.batches(1))
    influence = bench.influence(layer, arguments.chunk)
    counted = flops.count(influence, bench.variables, batch) / flops.count(
        bench.forward, bench.variables, batch
    )
    small = argparse.Namespace(**{**vars(arguments), "batch_size": MIDDLE_IMAGES})
    few = Bench(small)
    forward = few.seconds(jax.jit(few.forward), 4 * MIDDLE_IMAGES) / 4
    seconds = few.seconds(few.influence(layer, arguments.chunk), MIDDLE_IMAGES)
    above = bench.model.size.depth - layer - 1
    bound = 1 + bench.model.size.hidden * above / bench.model.size.depth
    print(
        f"middle: block {layer + 1} of {bench.model.size.depth}, {MIDDLE_IMAGES} images: "
        f"{counted:.1f} forward passes per image by operations ({bench.model.size.hidden} neurons "
        f"x {above} blocks above / {bench.model.size.depth} + 1 = {bound:.1f}), "
        f"{seconds / forward:.1f} by time"
    )


def expert(bench: Bench, arguments: argparse.Namespace) -> None:
    """Times the pass over the images, and the clustering of one block."""
    forward = bench.seconds(jax.jit(bench.forward), arguments.images)
    reduction = bench.energies()
    seconds = bench.seconds(reduction, arguments.images)
    rng = np.random.default_rng(0)
    energies = rng.gamma(0.5, size=(arguments.images, bench.model.size.hidden)).astype(np.float32)
    started = time.monotonic()
    expertness.expertness(energies, clusters=min(CLUSTERS, arguments.images), seed=0)
    print(
        f"expertness: {arguments.images} images, {bench.model.size.depth} blocks: forward "
        f"{forward:.1f} s, with energies {seconds:.1f} s, ratio {seconds / forward:.2f}; "
        f"clustering of one block, {CLUSTERS} clusters: {time.monotonic() - started:.1f} s"
    )


def memory(bench: Bench, arguments: argparse.Namespace) -> None:
    """Measures the peak memory of the pass over half of the images, and over all."""
    spawn = multiprocessing.get_context("spawn")
    peaks = []
    for images in (arguments.images // 2, arguments.images):
        with spawn.Pool(1) as pool:
            peaks.append(pool.apply(_peak, (arguments, images)))
    row = 4 * bench.model.size.depth * bench.model.size.hidden / 2**20
    print(
        f"memory: {peaks[0]:.0f} MiB for {arguments.images // 2} images, {peaks[1]:.0f} MiB for "
        f"{arguments.images}; the difference is {peaks[1] - peaks[0]:.0f} MiB, of which energies "
        f"take {(arguments.images - arguments.images // 2) * row:.0f} MiB"
    )


def _peak(arguments: argparse.Namespace, images: int) -> float:
    bench = Bench(arguments)
    activations.rows(bench.energies(), bench.variables, bench.batches(images))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measures the rows named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--variant", default="Ti/16", choices=vit.VARIANTS)
    parser.add_argument("--init", default="", help="checkpoint; random weights if empty")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=16)
    arguments = parser.parse_args()
    rows = {"top": top, "middle": middle, "expertness": expert, "memory": memory}
    wanted = arguments.rows.split(",")
    if unknown := set(wanted) - set(rows):
        parser.error(f"Unknown rows {', '.join(unknown)}; known: {', '.join(rows)}.")
    print(f"{jax.devices()[0].device_kind}, {arguments.size} pixels", flush=True)
    bench = Bench(arguments)
    for name in wanted:
        rows[name](bench, arguments)


if __name__ == "__main__":
    main()
