"""What an analysis looks at: checkpoints as they are, and images of a data set."""

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
from remem_jax.workflow.remem import finetune

_AS_IT_IS = "remem"  # The method that changes nothing of `config.teacher`.


class Subject(NamedTuple):
    """A checkpoint that is looked at.

    Attributes:
        name: In `config.models`.
        title: In the report.
        model: The ViT.
        variables: Of it, on the devices.
        init: Where it is from.
        digest: Hash of that file.
    """

    name: str
    title: str
    model: vit.VisionTransformer
    variables: Variables
    init: str
    digest: str

    def block(self, layer: int) -> int:
        """A block from 0, where below 0 it is counted from the top.

        Raises:
            SettingError: If there is no such block with an MLP.
        """
        count = self.model.size.depth - self.model.pruned_mlp
        require(
            -count <= layer < count,
            f"{self.title} has {count} blocks with an MLP, from 0, or from -1 down from the top; "
            f"there is no block {layer}: change the layers of the analysis.",
        )
        return layer % count


def load(run: context.Run) -> list[Subject]:
    """The models of `config.models`, in their order.

    Raises:
        SettingError: If a checkpoint is not there, or does not fit.
    """
    return [_load(run, name, own) for name, own in analysis.of_models(run.config)]


def _load(run: context.Run, name: str, config: ConfigDict) -> Subject:
    own = run._replace(config=config)
    pretrained = finetune.read_pretrained(own)
    first = finetune.start(own, pretrained, _AS_IT_IS)
    return Subject(
        name,
        config.models[name].title,
        first.model,
        run.place(first.teacher(first.trainable)),
        config.teacher.init,
        pretrained.digest,
    )


def batches(run: context.Run, batch_size: int, *, examples: int, skip: int = 0) -> Iterator[Batch]:
    """The images of `config.images.splits`, split by split, for as long as the run goes on.

    Args:
        run: The run.
        batch_size: Of each batch.
        examples: How many of them at most; 0 is all. Those past the last are masked.
        skip: Batches that are left out at the beginning.

    Raises:
        StoppedError: If the run is asked to stop.
    """
    left = min(examples or count(run), count(run))
    for split in run.config.images.splits:
        for batch in run.loader.evaluation(split, batch_size):
            if left <= 0:
                return
            counted = np.cumsum(np.asarray(batch.mask)) <= left
            left -= int(np.sum(batch.mask))
            if skip > 0:
                skip -= 1
                continue
            if run.stopping():
                raise loop.StoppedError("stopped between two batches")
            yield batch._replace(mask=batch.mask & counted)


def count(run: context.Run) -> int:
    """How many images `config.images` is of."""
    of_splits = sum(len(run.dataset.splits[split].rows) for split in run.config.images.splits)
    return min(of_splits, run.config.images.examples or of_splits)


class Image(NamedTuple):
    """An image as the models see it.

    Attributes:
        pixels: In [0, 1].
        title: Of its class.
    """

    pixels: Float[np.ndarray, "side side 3"]
    title: str


def images(run: context.Run, places: set[int]) -> dict[int, Image]:
    """Single images of `batches`, by their places among all."""
    transform = jax.jit(lambda stored: run.loader.evaluation_transform(jax.random.key(0), stored))
    found, first = {}, 0
    for batch in batches(run, run.config.images.batch_size, examples=0):
        rows = np.flatnonzero(batch.mask)
        wanted = [number for number in range(len(rows)) if first + number in places]
        if wanted:
            seen = _unit(transform(batch.image))
            for number in wanted:
                title = run.dataset.classes[int(batch.label[rows[number]])]
                found[first + number] = Image(seen[rows[number]], title)
        first += len(rows)
    return found


def _unit(images: Float[Array, "batch side side 3"]) -> Float[np.ndarray, "batch side side 3"]:
    return np.clip((np.asarray(images, np.float32) + 1) / 2, 0, 1)


def require_one_process(name: str) -> None:
    """Raises where several processes make one run, which the analysis does not know."""
    require(
        jax.process_count() == 1,
        f"The analysis {name!r} runs in one process, with any number of devices; start it alone.",
    )


def describe(subject: Subject) -> dict[str, Any]:
    """What the results say of it."""
    return {
        "name": subject.name,
        "title": subject.title,
        "init": subject.init,
        "init_digest": subject.digest,
        "depth": subject.model.size.depth,
        "features": subject.model.size.features,
        "neurons": subject.model.size.hidden,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.variables)),
    }
