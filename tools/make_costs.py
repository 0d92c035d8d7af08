"""Writes remem_jax/weights/costs.py: parameters and operations of all networks, by pixels.

    python -m tools.make_costs

Counting takes a minute, so that `remem models` reads the result. A test counts some of them again.
The networks of recommended teachers follow from timm's shapes, which needs torch and timm.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import models
from remem_jax.models import vit
from remem_jax.train import flops
from remem_jax.weights import (
    augreg,
    catalog,
    costs,
    student_catalog,
    teacher_catalog,
    timm_architectures,
    timm_names,
)
from remem_jax.weights.costs import Cost

FILE = pathlib.Path(costs.__file__)
_PIXELS = 224
_CLASSES = 1000
_MARK = "# Written by tools/make_costs.py.\n"


def pixels() -> dict[str, tuple[int, ...]]:
    """Returns the sizes of images to count, by student, variant of a ViT or recommended network.

    These are 224 pixels and what the published weights were trained with.
    """
    of_students = {
        name: {_PIXELS, *(weights.train_pixels for weights in student_catalog.of_student(name))}
        for name in models.STUDENTS
    }
    of_teachers = {variant: {_PIXELS} for variant in vit.VARIANTS}
    for published in catalog.PUBLISHED.values():
        of_teachers[published.variant].add(costs.pixels_of(published))
    for teacher in teacher_catalog.PUBLISHED.values():
        of_teachers[teacher.architecture] = {_PIXELS, teacher.pixels}
    return {name: tuple(sorted(sizes)) for name, sizes in (of_students | of_teachers).items()}


def cost(name: str, side: int) -> Cost:
    """Counts the parameters and operations of a network with a head of 1,000 classes.

    Args:
        name: A student, a variant of a ViT, or timm's name of a ViT.
        side: Side of the image, in pixels.
    """
    if name in models.STUDENTS:
        model: Any = models.make(name, classes=_CLASSES)
    elif name in vit.VARIANTS:
        model = models.make("vit", classes=_CLASSES, variant=name)
    else:
        model = _of_timm(name)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    # On CPUs, depthwise convolutions are sums, which do not count.
    operations = flops.count(model.apply, variables, image, platform="cuda")
    return Cost(parameters, round(operations / 1e9, 3))


def _of_timm(architecture: str) -> vit.VisionTransformer:
    """Makes our network of a ViT of timm, from the names and shapes of its arrays."""
    from tests.oracles import peers  # Imports torch and timm, which only this needs.

    with peers.torch().device("meta"):  # Without memory for the arrays.
        peer = peers.timm().create_model(architecture, num_classes=_CLASSES)
    zero = np.zeros((), np.int8)
    stored = {
        name: np.broadcast_to(zero, tuple(array.shape)) for name, array in peer.state_dict().items()
    }
    facts = timm_architectures.facts(architecture)
    arrays = timm_names.from_timm(stored, heads=facts.heads, pool_heads=facts.pool_heads)
    described = augreg.describe(arrays, form="timm", source=architecture, facts=facts)
    return described.make(classes=_CLASSES)


def _lines() -> Iterator[str]:
    for name, sides in pixels().items():
        counted = {side: cost(name, side) for side in sides}
        cells = [
            f"{side}: Cost({each.parameters:_}, {each.gflops})" for side, each in counted.items()
        ]
        yield f'    "{name}": {{{", ".join(cells)}}},\n'


if __name__ == "__main__":
    head = FILE.read_text(encoding="utf-8").partition(_MARK)[0]
    table = f"COSTS: Mapping[str, Mapping[int, Cost]] = {{\n{''.join(_lines())}}}\n"
    FILE.write_text(head + _MARK + table, encoding="utf-8")
