"""The mesh of all devices, with one axis: shardings of arrays, and exchange between processes.

A jitted step computes on global arrays, so statistics and losses are those of the global batch. The
batch is divided along its first axis. Parameters and the optimizer's state are replicated on all
devices, or divided too (FSDP).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remem_jax import host_memory
from remem_jax.checks import SettingError

AXIS = "data"
# Elements; smaller arrays are replicated. Larger ones are 99 % of a ViT or a ResNet; dividing the
# others would cost a message between devices for each, and save next to nothing.
SMALLEST_DIVIDED = 2**15


def require_devices() -> None:
    """Raises `SettingError` unless JAX finds the devices that it is configured to use.

    Every command that computes calls it, after `distributed.initialize`. On a CPU it also makes
    the process keep freed memory; see `host_memory`.
    """
    host_memory.keep_freed()
    try:
        jax.devices()
    # JAX raises an AssertionError if a platform has no plugin.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = " ".join(str(error).split())[:300] or "there is no plugin for it"
        raise SettingError(
            f"JAX finds no {platforms or 'device'} here (JAX_PLATFORMS={platforms or ''}): "
            f"{reason}. Unset JAX_PLATFORMS to use what there is, or install the driver and JAX "
            "for it."
        ) from error


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Builds a mesh with one axis, `AXIS`; None is all devices of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that divides the first axis among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """Returns the shardings of a training state, or of any other tree.

    They depend on shapes alone, so the optimizer's state has the sharding of its parameters.

    Args:
        mesh: The devices.
        tree: Arrays, or their shapes (`jax.eval_shape`).
        fsdp: Whether arrays with `SMALLEST_DIVIDED` elements or more are divided, each along the
            longest axis that is divisible by the number of devices, if there is one.

    Returns:
        A tree of the same structure with a sharding for each array; for `place`, and for
        `jax.jit(out_shardings=...)`, without which XLA may choose others.
    """
    return jax.tree.map(
        lambda leaf: _divided(mesh, np.shape(leaf)) if fsdp else replicated(mesh), tree
    )


def _divided(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    axes = [axis for axis, length in enumerate(shape) if not length % mesh.size]
    if not axes or np.prod(shape) < SMALLEST_DIVIDED:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))


def place(tree: Any, shardings: Any) -> Any:
    """Copies host arrays to the mesh.

    Args:
        tree: Whole arrays, equal in all processes.
        shardings: A tree of the same structure, a prefix of it, or one sharding for all.

    Returns:
        Global arrays; each process contributes the shards of its own devices.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        # A copy: on a CPU, JAX may share the memory of a NumPy array.
        whole = np.array(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(shardings, tree))


def shapes(tree: Any, shardings: Any) -> Any:
    """Returns shapes and types of arrays with their shardings on the mesh; see `place`."""

    def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, jax.tree.broadcast(shardings, tree))


def device_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of `shapes`, takes on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def gather(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of a tree on every device, so that any process can fetch it."""
    return jax.device_put(tree, replicated(mesh))


def whole(array: jax.Array) -> jax.Array:
    """Replicates an array on every device that has a shard of it; see `gather`."""
    if not isinstance(array.sharding, NamedSharding):  # On one device.
        return array
    return jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))


def gathered(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Wraps a model with divided parameters (FSDP) so that images stay on their devices.

    By default, XLA moves the smaller of parameters and activations. In an encoder these are often
    the activations: all devices would exchange their batches, layer by layer.

    Args:
        apply: A `TrainApply` or `Apply`; its first argument has the parameters.
        mesh: The mesh of the parameters.

    Returns:
        The same function; it gathers divided parameters first, and its gradients are summed over
        devices.
    """

    def whole(params: Any, *rest: Any) -> Any:
        if jax.sharding.get_abstract_mesh().manual_axes:  # In a shard_map, which has gathered them.
            return apply(params, *rest)
        return apply(jax.lax.with_sharding_constraint(params, replicated(mesh)), *rest)

    return whole


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns the rows, of an array divided along its first axis, on this process's devices."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises `SettingError`, with the nearest sizes, unless a batch divides evenly."""
    over = batch_size % mesh.size
    if batch_size >= 1 and not over:
        return
    lower, upper = batch_size - over, batch_size - over + mesh.size
    nearest = f"{lower} or {upper}" if lower > 0 else f"{max(upper, mesh.size)}"
    raise SettingError(
        f"{name} must be a multiple of the number of devices, {mesh.size}, got {batch_size}: set "
        f"it to {nearest}, or use fewer devices."
    )


def is_writer() -> bool:
    """Returns whether this process, the first, writes for all; the others only compute."""
    return jax.process_index() == 0


def broadcast(value: int) -> int:
    """Returns the first process's value in all processes; all call it, in the same order."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def broadcast_text(text: str) -> str:
    """Returns the first process's text in all processes; all call it, in the same order."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    sent = np.zeros(broadcast(len(encoded)), np.uint8)
    if is_writer():
        sent[:] = encoded
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes().decode()


def any_process(flag: bool) -> bool:
    """Returns whether the flag is true in any process; all call it, in the same order."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def all_processes(flags: np.ndarray) -> np.ndarray:
    """Returns, elementwise, whether flags are true in all processes; all call it, in order."""
    if jax.process_count() == 1:
        return flags
    return np.all(multihost_utils.process_allgather(flags), axis=0)


def out_of_memory(error: BaseException) -> str | None:
    """Describes an error of JAX if a device is out of memory; returns None for other errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in text:
        return None
    kind = jax.local_devices()[0].device_kind
    return f"the memory of {kind} is full ({text[:200]})."
