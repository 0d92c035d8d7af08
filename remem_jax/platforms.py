"""Differences between platforms: CPUs, CUDA and ROCm GPUs, TPUs.

An operation whose implementation depends on the platform chooses it by `dependent`, so that a
program that is compiled or exported for another machine gets the implementation of that machine's
platform. Only this implementation reaches the compiler. `models.operations` has these operations.
This module also makes the choices that depend on the device and precede tracing: the compute type
(`compute_dtype`), and whether SAM's two passes are a loop (`has_sam_loop`).
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]  # Since 0.12 it is Jaxpr.
    JaxprEqn,
)

AUTO = "auto"  # The compute type of a setting that stands for `compute_dtype`.
_AMPERE = 8.0  # Compute capability. Older NVIDIA GPUs have no bfloat16.


def of(device: Any) -> str:
    """Returns the platform of a device, by the name of `jax.lax.platform_dependent`."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


_traced_for: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Makes `dependent` trace the implementation of one platform only.

    Compilation does not need this. It is for gradients that are traced to find out what they store,
    which would include the arrays of all platforms.

    Args:
        platform: See `of`.
    """
    token = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(token)


def dependent(*operands: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
    """Calls the implementation of the platform that the program is compiled for.

    Args:
        *operands: Arrays.
        default: The implementation for platforms without their own.
        **branches: Implementations by platform; see `of`.
    """
    only = _traced_for.get()
    if only:
        return branches.get(only, default)(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **branches)


def compute_dtype(devices: Sequence[Any]) -> str:
    """Returns the fastest compute type of these devices.

    It is "bfloat16" on TPUs and GPUs (NVIDIA's since Ampere), and "float32" on everything else.

    Args:
        devices: `jax.Device`s, all of one kind; not necessarily of this machine.
    """
    first = devices[0]
    has_bfloat16 = first.platform == "tpu" or (first.platform == "gpu" and not is_old(first))
    return "bfloat16" if has_bfloat16 else "float32"


def has_sam_loop(device: Any) -> bool:
    """Returns whether SAM's two passes are one loop on a device; see `train.division.Division`.

    A loop compiles once and stores the activations of one pass. On CPUs, convolutions in a loop
    are slow.
    """
    return device.platform != "cpu"


def is_old(device: Any) -> bool:
    """Returns whether a device is an NVIDIA GPU older than Ampere."""
    capability = str(getattr(device, "compute_capability", ""))
    is_number = capability.replace(".", "", 1).isdigit()  # AMD's look like "gfx942".
    return is_number and float(capability) < _AMPERE


def branch(equation: JaxprEqn, platform: str) -> ClosedJaxpr | None:
    """Returns the branch of a platform in a `platform_dependent`, which is a `cond` in a jaxpr.

    Args:
        equation: Any equation.
        platform: See `of`.

    Returns:
        None if the equation does not choose by platform, or has no branch for this one.
    """
    for names, inner in zip(
        equation.params.get("branches_platforms") or (),
        equation.params.get("branches", ()),
        strict=False,
    ):
        if names is None or platform in names:
            return inner
    return None
