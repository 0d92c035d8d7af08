"""Loads the checkpoints and images of an analysis."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from remem_jax.checks import require
from remem_jax.models import vit
from remem_jax.records import Batch, Variables
from remem_jax.settings import analysis
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.remem import finetune, teacher_training

_UNCHANGED = "remem"  # The method that changes no setting of `config.teacher`.


class Checkpoint(NamedTuple):
    """A checkpoint to analyse.

    Attributes:
        name: Name in `config.models`.
        title: Title in the report.
        model: The ViT.
        variables: Its variables, on the devices.
        init: Name or path of the checkpoint.
        digest: Hash of the file.
    """

    name: str
    title: str
    model: vit.VisionTransformer
    variables: Variables
    init: str
    digest: str

    def block(self, layer: int) -> int:
        """Returns the index of a block, where negative numbers count from the last one.

        Raises:
            SettingError: If there is no such block, or it has no MLP.
        """
        count = self.model.size.depth - self.model.pruned_mlp
        require(
            -count <= layer < count,
            f"{self.title} has {count} blocks with an MLP, from 0, or from -1 for the last; got "
            f"{layer}: change the layers of the analysis.",
        )
        return layer % count


def load(run: context.Run) -> list[Checkpoint]:
    """Loads the models of `config.models`, in their order.

    Raises:
        SettingError: If a checkpoint does not exist, or does not fit.
    """
    return [_load(run, name, config) for name, config in analysis.of_models(run.config)]


def _load(run: context.Run, name: str, config: ConfigDict) -> Checkpoint:
    run = run._replace(config=config)
    pretrained = finetune.read_pretrained(run)
    start = teacher_training.start(run, pretrained, _UNCHANGED)
    return Checkpoint(
        name,
        config.models[name].title,
        start.model,
        run.place(start.teacher(start.trainable)),
        config.teacher.init,
        pretrained.digest,
    )


def batches(run: context.Run, batch_size: int, *, examples: int, skip: int = 0) -> Iterator[Batch]:
    """Iterates over the images of `config.images.splits`, split by split.

    Args:
        run: The run.
        batch_size: Batch size.
        examples: Largest number of images; 0 for all. Further images of the last batch are masked.
        skip: Number of batches to skip at the beginning.

    Raises:
        StoppedError: If a stop is requested.
    """
    remaining = min(examples or count(run), count(run))
    for split in run.config.images.splits:
        for batch in run.loader.evaluation(split, batch_size):
            if remaining <= 0:
                return
            within_limit = np.cumsum(np.asarray(batch.mask)) <= remaining
            remaining -= int(np.sum(batch.mask))
            if skip > 0:
                skip -= 1
                continue
            if run.stopping():
                raise loop.StoppedError("stopped between two batches")
            yield batch._replace(mask=batch.mask & within_limit)


def count(run: context.Run) -> int:
    """Returns the number of images of `config.images`."""
    total = sum(len(run.dataset.splits[split].rows) for split in run.config.images.splits)
    return min(total, run.config.images.examples or total)


class Image(NamedTuple):
    """An image after the evaluation transform.

    Attributes:
        pixels: Values in [0, 1].
        title: Name of its class.
    """

    pixels: Float[np.ndarray, "side side 3"]
    title: str


def images(run: context.Run, indices: set[int]) -> dict[int, Image]:
    """Returns single images of `batches` by their index."""
    transform = jax.jit(lambda stored: run.loader.evaluation_transform(jax.random.key(0), stored))
    by_index, offset = {}, 0
    for batch in batches(run, run.config.images.batch_size, examples=0):
        rows = np.flatnonzero(batch.mask)
        positions = [position for position in range(len(rows)) if offset + position in indices]
        if positions:
            pixels = _unit(transform(batch.image))
            for position in positions:
                title = run.dataset.classes[int(batch.label[rows[position]])]
                by_index[offset + position] = Image(pixels[rows[position]], title)
        offset += len(rows)
    return by_index


def _unit(images: Float[Array, "batch side side 3"]) -> Float[np.ndarray, "batch side side 3"]:
    return np.clip((np.asarray(images, np.float32) + 1) / 2, 0, 1)


def require_one_process(name: str) -> None:
    """Raises if the run has several processes, which the analysis does not support."""
    require(
        jax.process_count() == 1,
        f"The analysis {name!r} runs in one process, with any number of devices; start it alone.",
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the record of a checkpoint in results.json."""
    return {
        "name": checkpoint.name,
        "title": checkpoint.title,
        "init": checkpoint.init,
        "init_digest": checkpoint.digest,
        "depth": checkpoint.model.size.depth,
        "features": checkpoint.model.size.features,
        "neurons": checkpoint.model.size.hidden,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(checkpoint.variables)),
    }
