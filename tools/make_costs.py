"""Writes remem_jax/weights/costs.py: parameters and operations of all networks, by pixels.

    python -m tools.make_costs

Counting takes a minute, so that `remem models` reads the result. A test counts some of them again.
"""

import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from remem_jax import models
from remem_jax.models import vit
from remem_jax.train import flops
from remem_jax.weights import catalog, costs, student_catalog
from remem_jax.weights.costs import Cost

FILE = pathlib.Path(costs.__file__)
_PIXELS = 224
_CLASSES = 1000
_MARK = "# Written by tools/make_costs.py.\n"


def pixels() -> dict[str, tuple[int, ...]]:
    """Returns the sizes of images to count, by student or variant of a ViT.

    These are 224 pixels and what the published weights were trained with.
    """
    of_students = {
        name: {_PIXELS, *(weights.train_pixels for weights in student_catalog.of_student(name))}
        for name in models.STUDENTS
    }
    of_teachers = {variant: {_PIXELS} for variant in vit.VARIANTS}
    for published in catalog.PUBLISHED.values():
        of_teachers[published.variant].add(costs.pixels_of(published))
    return {name: tuple(sorted(sizes)) for name, sizes in (of_students | of_teachers).items()}


def cost(name: str, side: int) -> Cost:
    """Counts the parameters and operations of a network with a head of 1,000 classes.

    Args:
        name: A student, or a variant of a ViT.
        side: Side of the image, in pixels.
    """
    is_student = name in models.STUDENTS
    options = {} if is_student else {"variant": name}
    model = models.make(name if is_student else "vit", classes=_CLASSES, **options)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    # On CPUs, depthwise convolutions are sums, which do not count.
    operations = flops.count(model.apply, variables, image, platform="cuda")
    return Cost(parameters, round(operations / 1e9, 3))


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
