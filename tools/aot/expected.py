"""Checks the collectives of a function against those that it needs.

The batch, and all that is computed from it, is sharded among the devices. They then have to
exchange only:

- gradients, as many numbers as there are parameters for each gradient that a step computes: by
  all-reduce, or by reduce-scatter if parameters are sharded (FSDP);
- with FSDP, the parameters that are read, by all-gather;
- small arrays: losses, norms, counts, statistics of a batch.

Any other collective moves images or activations, because XLA found no better sharding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tools.aot.collectives import Collective

SMALL = 2**16  # Largest number of bytes of a small array.
_REDUCING = ("all-reduce", "reduce-scatter")
_SLACK = 0.01  # Relative tolerance of numbers of elements.
_FEW = 2**12  # Losses, norms and error counts, which may be summed together with gradients.
_SUMS = 8  # Maximum sums per channel in forward and backward pass of batch normalisation.
_GATHERS = 2  # Sharded parameters may be gathered again in the backward pass.


class Passing(NamedTuple):
    """What the devices may exchange in a function.

    Attributes:
        trained: Shapes of the parameters that get gradients.
        statistics: Shapes of the batch statistics that are kept.
        read: Shapes of the parameters that are only read.
        passes: Number of gradients for each batch.
        devices: Number of devices.
        fsdp: Whether parameters are sharded among them.
    """

    trained: Any
    statistics: Any
    read: Any
    passes: int
    devices: int
    fsdp: bool


def problems(collectives: Sequence[Collective], passing: Passing) -> list[str]:
    """Returns the problems of the collectives of a function."""
    large = [
        collective
        for collective in collectives
        if any(array.bytes > SMALL for array in collective.arrays)
    ]
    problems = [
        problem for collective in collectives for problem in _check_group(collective, passing)
    ]
    allowed = {*(_REDUCING if passing.trained else ())}
    allowed |= {"all-gather"} if passing.fsdp else set()
    for collective in large:
        if collective.kind not in allowed:
            problems.append(f"{_described(collective)} is not expected")
        elif collective.kind == "all-gather":
            problems.extend(_check_gathered(collective, passing))
    return problems + _check_sums(collectives, passing)


def _check_group(collective: Collective, passing: Passing) -> list[str]:
    """Checks the devices of a collective, and that the number of its runs is known."""
    if collective.times is None:
        return [f"{_described(collective)} is in a loop of unknown length"]
    if passing.devices == 1:
        return [f"{_described(collective)}, but there is one device"]
    if collective.group not in (None, passing.devices):
        return [
            f"{_described(collective)} is among {collective.group} of {passing.devices} devices"
        ]
    return []


def _check_gathered(collective: Collective, passing: Passing) -> list[str]:
    """Checks that only whole parameters are gathered, or those of one block of a stack."""
    shapes = [leaf.shape for leaf in jax.tree.leaves((passing.trained, passing.read))]
    sizes = {int(np.prod(shape)) for shape in shapes}
    sizes |= {int(np.prod(shape[1:])) for shape in shapes if shape}
    return [
        f"{_described(collective)} gathers {array.dtype}{list(array.shape)}, which is no parameter"
        for array in collective.arrays
        if array.bytes > SMALL and array.size not in sizes
    ]


def _check_sums(collectives: Sequence[Collective], passing: Passing) -> list[str]:
    """Checks how many numbers are reduced (the gradients) and gathered (the parameters)."""
    trained, read = _elements(passing.trained), _elements(passing.read)
    problems, gradients = [], passing.passes * trained
    reduced = sum(_numbers(each) for each in collectives if each.kind in _REDUCING)
    most = gradients * (1 + _SLACK) + _SUMS * _elements(passing.statistics) + _FEW
    if trained and passing.devices > 1 and not gradients * (1 - _SLACK) <= reduced <= most:
        problems.append(
            f"{reduced:,} numbers are reduced; {passing.passes} x {trained:,} gradients should be"
        )
    gathered = sum(_numbers(each) for each in collectives if each.kind == "all-gather")
    if gathered > _GATHERS * passing.passes * (trained + read) * (1 + _SLACK) + _FEW:
        problems.append(f"{gathered:,} numbers are gathered; the parameters are {trained + read:,}")
    return problems


def _numbers(collective: Collective) -> int:
    return (collective.times or 0) * sum(array.size for array in collective.arrays)


def _elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _described(collective: Collective) -> str:
    source = f" of {collective.source}" if collective.source else ""
    return f"{collective.kind} of {collective.bytes / 2**20:.2f} MiB{source}"
