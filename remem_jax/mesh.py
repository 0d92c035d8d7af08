"""Devices as one mesh: what each of them holds, and how several processes become one run.

A step that is jitted computes on whole arrays, wherever their pieces lie: statistics and losses
are those of the global batch. The batch is divided along its first axis; parameters and the state
of the optimiser are copied to all devices, or divided among them too (FSDP).
"""

import contextlib
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remem_jax import host_memory
from remem_jax.checks import SettingError, require

AXIS = "data"
# Elements; a smaller array is not divided. Arrays of this size or more are 99 % of a ViT or of a
# ResNet; of the others, each would cost a message between devices, and free next to nothing.
SMALLEST_DIVIDED = 2**15
JOIN_SECONDS = 300  # As JAX has it; hosts of a queue do not all start at once.
HEARTBEAT_SECONDS = 60  # JAX has 100; the others hold their devices for that long.
# A process that has ended waits so long for the others; one of them may have a report to write.
_END_SECONDS = 1800
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # What JAX asks for.


def require_devices() -> None:
    """Raises `SettingError` unless JAX finds the devices that it is told to use.

    To be called by every command that computes, after `init_distributed`. On a CPU it also makes
    the process keep freed memory; see `host_memory`.
    """
    host_memory.keep_freed()
    try:
        jax.devices()
    # JAX asserts what it does not find a plugin for.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = " ".join(str(error).split())[:300] or "there is no plugin for it"
        raise SettingError(
            f"JAX finds no {platforms or 'device'} here (JAX_PLATFORMS={platforms or ''}): "
            f"{reason}. Unset JAX_PLATFORMS to use what there is, or install the driver and JAX "
            "for it."
        ) from error


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One axis, `AXIS`, over the devices; None is all devices of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """How a state, or any other tree, lies on the mesh.

    An array's shape alone decides, so that the optimiser's state lies as the parameters do.

    Args:
        mesh: The devices.
        tree: Arrays, or their shapes (`jax.eval_shape`).
        fsdp: Whether arrays of `SMALLEST_DIVIDED` elements or more are divided, each along the
            longest of its axes that the number of devices divides, if there is one.

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
    """Puts arrays of the host on the mesh, as copies.

    Args:
        tree: Whole in every process, and in each the same.
        shardings: A tree of the same structure, or of its upper part, or one for all.

    Returns:
        Global arrays; each process has put the pieces of its own devices there.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        # A copy: on a CPU, JAX may share the memory of an array of NumPy's.
        whole = np.array(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(shardings, tree))


def shapes(tree: Any, shardings: Any) -> Any:
    """Shapes and types of arrays, with how they are to lie on the mesh; see `place`."""

    def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, jax.tree.broadcast(shardings, tree))


def device_bytes(tree: Any) -> int:
    """What a tree of arrays, or of `shapes`, takes on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def gather(tree: Any, mesh: Mesh) -> Any:
    """A tree with the whole of every array on every device, so that any process can fetch it."""
    return jax.device_put(tree, replicated(mesh))


def whole(array: jax.Array) -> jax.Array:
    """An array with the whole of it on every device that has a piece; see `gather`."""
    if not isinstance(array.sharding, NamedSharding):  # On one device.
        return array
    return jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))


def gathered(apply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A model whose parameters are divided (FSDP), so that the images still stay where they are.

    Left to itself, XLA moves whichever is smaller, parameters or activations, and in an encoder
    that is often the latter: layer by layer, all devices would exchange their batches.

    Args:
        apply: A `TrainApply` or `Apply`; its first argument has the parameters.
        mesh: Where they lie.

    Returns:
        The same function; what is divided comes together when it begins, and the gradients are
        summed when it has been differentiated.
    """

    def whole(params: Any, *rest: Any) -> Any:
        if jax.sharding.get_abstract_mesh().manual_axes:  # In a shard_map, which was given them so.
            return apply(params, *rest)
        return apply(jax.lax.with_sharding_constraint(params, replicated(mesh)), *rest)

    return whole


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array, divided by its first axis, that this process's devices hold."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises `SettingError`, with the nearest sizes, unless all devices get as many examples."""
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
    """Whether this process writes for all; the others only compute."""
    return jax.process_index() == 0


def broadcast(value: int) -> int:
    """What the writer has, in all processes; all call it, in the same order."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def broadcast_text(text: str) -> str:
    """The same, of a text."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    sent = np.zeros(broadcast(len(encoded)), np.uint8)
    if is_writer():
        sent[:] = encoded
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes().decode()


def any_process(says: bool) -> bool:
    """Whether one of the processes says yes; all call it, in the same order."""
    if jax.process_count() == 1:
        return says
    return bool(np.any(multihost_utils.process_allgather(np.asarray(says))))


def all_processes(say: np.ndarray) -> np.ndarray:
    """Where all processes say yes, element by element; all call it, in the same order."""
    if jax.process_count() == 1:
        return say
    return np.all(multihost_utils.process_allgather(say), axis=0)


def init_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    join_seconds: float = JOIN_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Makes one run of several processes; must come before anything that asks for a device.

    Without arguments the processes are those that srun, Open MPI's mpirun or a TPU pod started;
    where there is none of these, or one process only, nothing is done. So is it when the run has
    been joined already. Under srun and mpirun JAX gives each process one GPU, by its number on
    its host; with the arguments, all of them. JAX_LOCAL_DEVICE_IDS=0,1,2,3 says otherwise.

    From then on a process that is killed ends the others: at once where it was the first, else
    when it has been silent for `heartbeat_seconds`. They say that a task died, and abort.

    Args:
        coordinator: host:port of the first process.
        processes: How many there are.
        process: Which this one is, from 0.
        join_seconds: How long to wait for the others.
        heartbeat_seconds: How long one of them may be silent.

    Raises:
        SettingError: If only some arguments are there, or they cannot be; if another program has
            the port, or nothing listens there in time. Where other processes do not come in time
            this one ends, with a line on stderr, since JAX would abort it.
    """
    if jax.distributed.is_initialized() or processes == 1:
        return
    options: dict[str, Any] = {}
    if coordinator is None and processes is None and process is None:
        if not _is_launched():
            return
        joining = "the processes of the launcher"
    else:
        if coordinator is None or processes is None or process is None:
            raise SettingError(
                "coordinator, processes and process go together: set all, or none where srun, "
                f"mpirun or a TPU pod tells; got {coordinator}, {processes} and {process}."
            )
        _check_address(coordinator, processes, process)
        _await_port(coordinator, process, join_seconds)
        joining = f"the {processes} processes of {coordinator}"
        options = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    logging.info("Joining %s, for at most %g seconds.", joining, join_seconds)
    late = (
        f"remem_jax: {joining} did not all come within {join_seconds} seconds: start each with "
        "the same coordinator and processes, and another process from 0; see what the others say."
    )
    with _at_most(join_seconds, late):
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=int(join_seconds) + 60,  # Ours comes first.
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=_END_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            raise SettingError(f"{joining} cannot be joined: {error}".replace("\n", " ")) from error


def out_of_memory(error: BaseException) -> str | None:
    """What to say of an error of JAX where a device has no room; None of another error."""
    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in text:
        return None
    kind = jax.local_devices()[0].device_kind
    return f"the memory of {kind} is full ({text[:200]})."


def abandon(message: str) -> None:
    """Ends this process with a message on stderr, if it is one of several.

    To be called where it cannot go on: JAX would first wait for the others, and they for it.
    """
    if jax.distributed.is_initialized():
        sys.stderr.write(f"{message}\n")
        _exit(1)


def _is_launched() -> bool:
    """Whether a launcher that JAX knows has started this process and others."""
    environment = os.environ
    if "OMPI_MCA_orte_hnp_uri" not in environment:
        require(
            environment.get("OMPI_COMM_WORLD_SIZE", "1") == "1",
            "This Open MPI does not tell where the first process is: set coordinator, processes "
            "and process (it is OMPI_COMM_WORLD_RANK).",
        )
    elif environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return True
    if all(f"SLURM_{name}" in environment for name in _SLURM):
        return environment["SLURM_NTASKS"] != "1"
    # Set by JAX, when it is imported on a TPU; whether that is one of a pod, JAX asks.
    return "TPU_ML_PLATFORM" in environment


def _check_address(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        f"coordinator must be host:port, such as 10.0.0.1:8476, got {coordinator!r}.",
    )
    require(
        0 <= process < processes,
        f"process must be from 0 to {processes - 1}, one less than processes, got {process}.",
    )


def _await_port(coordinator: str, process: int, seconds: float) -> None:
    """Raises unless the first process can have the port, or another one reaches it in time."""
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        # JAX would share the port with whoever has it.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise SettingError(
                    f"Port {port} of coordinator cannot be used ({error.strerror}): set another."
                ) from error
        return
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise SettingError(
                    f"Nothing answers at {coordinator} after {seconds} seconds ({error}): start "
                    "process 0 on that host, or set coordinator to where it runs."
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _at_most(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with a line on stderr where the block takes longer."""

    def end() -> None:
        sys.stderr.write(f"{message}\n")
        _exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
