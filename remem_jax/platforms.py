"""Platforms that programs are compiled for: their names, their branches, the type they compute in.

Operations that need another implementation on another platform choose it by `dependent`, so that a
program compiled or exported for a platform that is not here gets the one of that platform. Only the
branch of the platform reaches the compiler.
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

AUTO = "auto"  # Of a setting of the computation type: the one of `compute_dtype`.
_AMPERE = 8.0  # Compute capability; older GPUs of NVIDIA have no bfloat16.


def of(device: Any) -> str:
    """Name of the platform of a device, as `jax.lax.platform_dependent` has it."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


_traced_for: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Traces what `dependent` chooses for one platform alone.

    What is compiled needs it not. A gradient that is only traced, to see what it stores, holds
    arrays of all branches.

    Args:
        platform: See `of`.
    """
    token = _traced_for.set(platform)
    try:
        yield
    finally:
        _traced_for.reset(token)


def dependent(*operands: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
    """A function of the operands, in the implementation of the platform that is compiled for.

    Args:
        *operands: Arrays.
        default: The implementation of all platforms that have none of their own.
        **branches: Implementations by platform; see `of`.
    """
    only = _traced_for.get()
    if only:
        return branches.get(only, default)(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **branches)


def compute_dtype(devices: Sequence[Any]) -> str:
    """The type that is fastest on these devices: "bfloat16" or "float32".

    bfloat16 on TPUs and on GPUs (of NVIDIA's, on those since Ampere), float32 on everything else.

    Args:
        devices: `jax.Device`s, all of one kind; not necessarily of this machine.
    """
    first = devices[0]
    has_bfloat16 = first.platform == "tpu" or (first.platform == "gpu" and not is_old(first))
    return "bfloat16" if has_bfloat16 else "float32"


def is_old(device: Any) -> bool:
    """Whether a device is a GPU of NVIDIA's from before Ampere."""
    capability = str(getattr(device, "compute_capability", ""))
    is_number = capability.replace(".", "", 1).isdigit()  # AMD's are such as "gfx942".
    return is_number and float(capability) < _AMPERE


def branch(equation: JaxprEqn, platform: str) -> ClosedJaxpr | None:
    """The branch that a platform takes of a `platform_dependent`, which a jaxpr has as a `cond`.

    Args:
        equation: Any equation.
        platform: See `of`.

    Returns:
        None unless the equation chooses by platform, and has a branch for this one.
    """
    for names, inner in zip(
        equation.params.get("branches_platforms") or (),
        equation.params.get("branches", ()),
        strict=False,
    ):
        if names is None or platform in names:
            return inner
    return None
