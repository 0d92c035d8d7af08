"""Fixtures: two ViTs with random weights, and the digits at 16 pixels."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import pytest
from ml_collections import ConfigDict

from configs import analysis
from remem_jax import mesh, models
from remem_jax.models import vit
from remem_jax.storage import logs
from remem_jax.train import compiling
from remem_jax.weights import augreg
from remem_jax.workflow import context, precision

SIZE = vit.Size(patch=8, features=16, depth=3, heads=2, mlp=24)
SIDE = 16  # Height and width of the images, in pixels.


class Shared(NamedTuple):
    """Data and checkpoints shared by the runs of these tests.

    Attributes:
        checkpoints: Two files with different weights.
        run: Makes a run in a folder, with the given config or with `tiny_config`.
    """

    checkpoints: list[pathlib.Path]
    run: Callable[..., context.Run]


def save_vit(path: pathlib.Path, size: vit.Size, seed: int) -> pathlib.Path:
    """Saves a ViT with random weights."""
    model = models.make("vit", variant=size, classes=3)
    augreg.save(path, models.init(model, jax.random.key(seed), SIDE)["params"])
    return path


def tiny_config(checkpoints: list[pathlib.Path]) -> ConfigDict:
    """Returns the config of an analysis that takes seconds."""
    config = analysis.get_config(f"digits,init={'|'.join(map(str, checkpoints))}")
    config.data.image_size = SIDE
    config.data.validation = 0.2
    config.save_every = 1
    config.information.steps, config.information.evaluations = 3, 3
    config.information.seeds = (0, 1)
    config.information.info_nce.hidden, config.information.info_nce.embedding = 8, 4
    config.expertness.clusters = 3
    config.expertness.seeds, config.expertness.null_seeds = (0, 1), (0, 1)
    config.criticality.batch_size = 64
    config.criticality.neurons, config.criticality.images = 2, 3
    config.criticality.visualization.steps = 2
    config.criticality.visualization.jitter = 1
    return config


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Data and checkpoints, read once; with JAX's standard dtype promotion, which Optax needs."""
    folder = tmp_path_factory.mktemp("shared")
    checkpoints = [save_vit(folder / f"{name}.npz", SIZE, i) for i, name in enumerate("ab")]
    fresh = tiny_config(checkpoints)
    device = mesh.make_mesh(jax.devices()[:1])
    dataset, loader = context.load_data(fresh, fresh.data, device)

    with logs.RunLog(folder) as log, jax.numpy_dtype_promotion("standard"):

        def run(workdir: pathlib.Path, config: Any = None, **changes: Any) -> context.Run:
            config = precision.resolved(
                tiny_config(checkpoints) if config is None else config, device
            )
            made = context.Run(
                config, workdir, dataset, loader, log, lambda: False, compiling.Counter(), device
            )
            return made._replace(**changes)

        yield Shared(checkpoints, run)
