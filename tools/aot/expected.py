"""Which collectives a function of a step may have, and what is wrong with others.

The batch is divided among the devices, and with it all that is computed of it. What has to pass
between them is then known:

- gradients, once for each that a step takes of its batch, as many numbers as there are parameters:
  by all-reduce, or by reduce-scatter where parameters are divided (FSDP);
- with FSDP, parameters that are read, by all-gather;
- small arrays: losses, norms, counts, statistics of a batch.

Anything else is images or activations, which XLA moves where it finds no better way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tools.aot.collectives import Collective

SMALL = 2**16  # Bytes of an array.
_REDUCING = ("all-reduce", "reduce-scatter")
_SLACK = 0.01
_FEW = 2**12  # Losses, norms and faults, which may be summed together with gradients.
_SUMS = 8  # Of a channel, at the most, where a batch is normalised, on the way there and back.
# Of a pass over parameters that are divided: they may be gathered again on the way back.
_GATHERS = 2


class Passing(NamedTuple):
    """What a function may pass between devices.

    Attributes:
        trained: Shapes of the parameters that it has gradients of.
        statistics: Shapes of the statistics of a batch that it keeps.
        read: Shapes of those that it reads only.
        passes: How many gradients it takes of a batch.
        devices: How many there are.
        fsdp: Whether parameters are divided among them.
    """

    trained: Any
    statistics: Any
    read: Any
    passes: int
    devices: int
    fsdp: bool


def problems(found: Sequence[Collective], passing: Passing) -> list[str]:
    """What is wrong with the collectives of a function, as one sentence each."""
    large = [one for one in found if any(array.bytes > SMALL for array in one.arrays)]
    wrong = [said for one in found for said in _of_one(one, passing)]
    allowed = {*(_REDUCING if passing.trained else ())}
    allowed |= {"all-gather"} if passing.fsdp else set()
    for one in large:
        if one.kind not in allowed:
            wrong.append(f"{_described(one)} is not expected")
        elif one.kind == "all-gather":
            wrong.extend(_of_gathered(one, passing))
    return wrong + _of_sums(found, passing)


def _of_one(one: Collective, passing: Passing) -> list[str]:
    if one.times is None:
        return [f"{_described(one)} is in a loop of unknown length"]
    if passing.devices == 1:
        return [f"{_described(one)}, and there is one device"]
    if one.group not in (None, passing.devices):
        return [f"{_described(one)} is among {one.group} of {passing.devices} devices"]
    return []


def _of_gathered(one: Collective, passing: Passing) -> list[str]:
    """Only whole parameters are gathered, alone or those of one block of a stack."""
    shapes = [leaf.shape for leaf in jax.tree.leaves((passing.trained, passing.read))]
    sizes = {int(np.prod(shape)) for shape in shapes}
    sizes |= {int(np.prod(shape[1:])) for shape in shapes if shape}
    return [
        f"{_described(one)} gathers {array.dtype}{list(array.shape)}, which is no parameter"
        for array in one.arrays
        if array.bytes > SMALL and array.size not in sizes
    ]


def _of_sums(found: Sequence[Collective], passing: Passing) -> list[str]:
    """As many numbers are reduced as there are gradients, and not more gathered than are read."""
    trained, read = _elements(passing.trained), _elements(passing.read)
    wrong, gradients = [], passing.passes * trained
    reduced = sum(_numbers(one) for one in found if one.kind in _REDUCING)
    more = _SUMS * _elements(passing.statistics) + _FEW
    most = gradients * (1 + _SLACK) + more
    if trained and passing.devices > 1 and not gradients * (1 - _SLACK) <= reduced <= most:
        wrong.append(
            f"{reduced:,} numbers are reduced; {passing.passes} x {trained:,} gradients should be"
        )
    gathered = sum(_numbers(one) for one in found if one.kind == "all-gather")
    if gathered > _GATHERS * passing.passes * (trained + read) * (1 + _SLACK) + _FEW:
        wrong.append(f"{gathered:,} numbers are gathered; the parameters are {trained + read:,}")
    return wrong


def _numbers(one: Collective) -> int:
    return (one.times or 0) * sum(array.size for array in one.arrays)


def _elements(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _described(one: Collective) -> str:
    source = f" of {one.source}" if one.source else ""
    return f"{one.kind} of {one.bytes / 2**20:.2f} MiB{source}"
