"""Runs SAM on 1, 2, 4 and 8 devices and prints the results as a line of JSON.

python -m tests.train.sam_devices_child
"""

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from remem_jax import losses, optim, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.mesh import AXIS
from remem_jax.records import Batch
from remem_jax.train import state, steps
from remem_jax.train.division import Division
from tests.oracles import sam_numpy

EXAMPLES, CLASSES, RHO, RATE = 16, 3, 0.7, 0.5
DEVICES = (1, 2, 4, 8)
_OPERATION = re.compile(r" = (.*?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)(?:-start)?\(")


def apply(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
    """Applies the network of the oracle; its embedding is a convolution, as in a ViT."""
    del key
    hidden = jnp.tanh(
        jax.lax.conv_general_dilated(
            images, params["embedding"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    logits = jnp.mean(hidden, axis=(1, 2)) @ params["head"] + params["bias"][None]
    return logits, statistics


def variables(rng: np.random.Generator) -> Any:
    """Draws initial parameters."""
    shapes = {"embedding": (2, 2, 3, 8), "head": (8, CLASSES), "bias": (CLASSES,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def data(rng: np.random.Generator) -> Batch:
    """Draws a batch whose images are already normalised floats."""
    images = rng.normal(size=(EXAMPLES, 4, 4, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    return Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(EXAMPLES, bool))


def oracle(params: Any, batch: Batch, *, group: int) -> sam_numpy.Found:
    """Runs the slow loop on a batch."""
    targets = np.eye(CLASSES)[np.asarray(batch.label)]
    return sam_numpy.sam(
        params, np.asarray(batch.image, np.float64), targets, rho=RHO, group=group or EXAMPLES
    )


def make_step(division: Division, *, rho: float = RHO, **options: Any) -> Any:
    """Makes a jitted step of plain SGD with SAM, and its optimiser."""
    tx = optim.sgd(lambda _: RATE, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=None)
    step = steps.make_supervised_step(
        options.pop("apply", apply),
        tx,
        lambda key, images: images,
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixing=options.pop("mixing", Mixing()),
        ascent=sam.sam(rho) if rho else None,
        division=division,
    )
    assert not options
    return jax.jit(step), tx


def mesh(devices: int) -> jax.sharding.Mesh:
    """Makes a mesh of the first devices."""
    return jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), (AXIS,))


def placed(first: Any, batch: Any, devices: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Replicates the state on every device and divides the batch among them."""
    spec = jax.sharding.PartitionSpec
    return (
        jax.device_put(first, jax.sharding.NamedSharding(devices, spec())),
        jax.device_put(batch, jax.sharding.NamedSharding(devices, spec(AXIS))),
    )


def collectives(compiled: Any) -> dict[str, Any]:
    """Counts numbers exchanged between devices, by operation, and collectives in loops."""
    numbers: dict[str, int] = {}
    in_loops = 0
    for line in compiled.as_text().splitlines():
        if match := _OPERATION.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            size = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
            numbers[match[2]] = numbers.get(match[2], 0) + size
            in_loops += "/while/" in line
    return {"numbers": numbers, "in_loops": in_loops}


def main() -> None:
    """Takes a step on each number of devices, with one ascent and with one per device."""
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    rng = np.random.default_rng(0)
    params, batch = variables(rng), data(rng)
    records = []
    for devices in DEVICES:
        for group in (0, EXAMPLES // devices):
            division = Division(group=group, mesh=mesh(devices))
            step, tx = make_step(division)
            first, shares = placed(state.create({"params": params}, tx), batch, mesh(devices))
            compiled = step.lower(first, shares, {}).compile()
            after, metrics = compiled(first, shares, {})
            records.append(
                {
                    "devices": devices,
                    "group": group,
                    "kernels": {name: np.asarray(v).tolist() for name, v in after.params.items()},
                    "metrics": {name: float(value) for name, value in metrics.items()},
                    **collectives(compiled),
                }
            )
    sys.stdout.write(json.dumps(records) + "\n")


if __name__ == "__main__":
    main()
