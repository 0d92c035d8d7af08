"""Counts the floating-point operations (FLOPs) of a step; lists the peak FLOP/s of devices.

The FLOPs per second of a step, divided by the peak of its devices, are their utilisation (MFU).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from remem_jax import platforms

# Number of matrix products in cuDNN's fused attention. Its backward pass also recomputes the
# scores, which the forward pass does not store. This fifth product is not counted, because unfused
# attention does not need it.
_FUSED = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


class _Peak(NamedTuple):
    """Peak TFLOP/s of dense matrix products by the type of operands; None if it is unsupported."""

    bfloat16: float | None
    float32: float


# From NVIDIA's data sheets. Since Ampere they give figures for sparse matrices, halved here.
_A100 = _Peak(312, 156)
_H100 = _Peak(989.4, 494.7)  # SXM. From the architecture's white paper, which gives dense figures.
_PEAKS = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": _Peak(756, 378),
    "NVIDIA H200": _H100,
    "NVIDIA B200": _Peak(2250, 1125),  # One eighth of an HGX B200.
    "NVIDIA L4": _Peak(121, 60),
    "NVIDIA L40S": _Peak(362.05, 183),
    "NVIDIA A10G": _Peak(70, 35),  # From the data sheet for AWS; an A10 is faster.
    # From the white papers on GA102 and Ada, with accumulation in float32, as in XLA.
    "NVIDIA GeForce RTX 3090": _Peak(71, 35.6),
    "NVIDIA GeForce RTX 4090": _Peak(165.2, 82.6),
    # No bfloat16 and no TF32 before Ampere.
    "Tesla T4": _Peak(None, 8.1),
    "Tesla V100-PCIE-16GB": _Peak(None, 14),
    "Tesla V100-PCIE-32GB": _Peak(None, 14),
    "Tesla V100-SXM2-16GB": _Peak(None, 15.7),
    "Tesla V100-SXM2-32GB": _Peak(None, 15.7),
    # From Google's Cloud TPU documentation, per chip. A device of v2 and v3 is half a chip.
    "TPU v2": _Peak(45 / 2, 45 / 2),
    "TPU v3": _Peak(123 / 2, 123 / 2),
    "TPU v4": _Peak(275, 275),
    "TPU v5 lite": _Peak(197, 197),  # v5e
    "TPU v5": _Peak(459, 459),  # v5p
    "TPU v5p": _Peak(459, 459),
    "TPU v6 lite": _Peak(918, 918),  # v6e
}


def count(function: Callable[..., Any], *arguments: Any, platform: str = "") -> float:
    """Counts the operations of one call on all devices: two for each multiplication and addition.

    Only matrix products and convolutions count, by their shapes. Padding counts as pixels. The
    zeros that a stride inserts between pixels, in the gradient of a convolution, do not count.
    The function is traced, but neither compiled nor run. A choice by platform counts as the branch
    of `platform`, any other `cond` as its largest branch, and a `while_loop` as one iteration,
    because the number of iterations is unknown. Work that `shard_map` repeats on several devices
    counts on each of them.

    Recomputation (`jax.checkpoint`, a model's `rematerialise`) counts too. MFU is defined without
    it: count the same step with a model that stores its activations. On a CPU, our depthwise
    convolutions are sums of shifted maps, which do not count.

    Args:
        function: The function, jitted or not.
        *arguments: Arrays, or their shapes (`jax.ShapeDtypeStruct`), sharded or not.
        platform: Platform whose implementations count (see `platforms.of`); "" is that of this
            machine's devices.

    Source: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B (MFU).
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, platform=platform)


def of_jaxpr(jaxpr: core.Jaxpr, *, platform: str = "") -> float:
    """Counts the operations of a function that has been traced; see `count`."""
    return float(_operations(jaxpr, platform or platforms.of(jax.devices()[0])))


def peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of one device in dense matrix products.

    "float32" has JAX's default precision (`jax_default_matmul_precision` is not set): NVIDIA's GPUs
    since Ampere round the operands to TF32, and TPUs round them to bfloat16. Exact float32 is many
    times slower on both.

    Args:
        device_kind: `jax.Device.device_kind`.
        dtype: Type of the operands, "bfloat16" or "float32".

    Returns:
        None for a CPU, for any device (or slice of one) or type that is not in the table, and for
        bfloat16 if the device does not support it.
    """
    peaks = _PEAKS.get(device_kind)
    teraflops = None if peaks is None else peaks._asdict().get(dtype)
    return None if teraflops is None else teraflops * 1e12


def _operations(jaxpr: core.Jaxpr, platform: str) -> int:
    return sum(_of_equation(equation, platform) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn, platform: str) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return 2 * _product(equation)
    if name == "conv_general_dilated":
        return 2 * _convolution(equation)
    if name in _FUSED:
        return 2 * _FUSED[name] * _attention(equation)
    if branch := platforms.branch(equation, platform):
        return _operations(branch.jaxpr, platform)
    inner = [_operations(jaxpr, platform) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    repetitions = 1
    if name == "scan":
        repetitions = params["length"]
    elif name == "shard_map":  # The body is the share of one device.
        mesh = params["mesh"]
        axes = params.get("newly_manual_axes", mesh.axis_names)
        repetitions = math.prod(mesh.shape[axis] for axis in axes)
    return repetitions * sum(inner)


def _shapes(equation: core.JaxprEqn) -> list[tuple[int, ...]]:
    """Returns the shapes of the inputs, followed by that of the first output."""
    variables: list[Any] = [*equation.invars, equation.outvars[0]]
    return [variable.aval.shape for variable in variables]


def _product(equation: core.JaxprEqn) -> int:
    """Returns the number of multiplications in a matrix product."""
    left, _, out = _shapes(equation)
    (contracted, _), _ = equation.params["dimension_numbers"]
    return math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """Returns the number of multiplications in a convolution.

    Groups reduce the number of the kernel's input channels.
    """
    maps, kernel, out = _shapes(equation)
    spec = equation.params["dimension_numbers"]
    pairs = map(
        _pairs,
        (maps[axis] for axis in spec.lhs_spec[2:]),
        (kernel[axis] for axis in spec.rhs_spec[2:]),
        (out[axis] for axis in spec.out_spec[2:]),
        equation.params["lhs_dilation"],
    )
    channels = kernel[spec.rhs_spec[1]]
    return math.prod(pairs) * channels * math.prod(out[axis] for axis in spec.out_spec[:2])


def _pairs(pixels: int, taps: int, outputs: int, dilation: int) -> int:
    """Counts pairs of an output and a kernel tap along one axis, except those on inserted zeros."""
    if dilation == 1:
        return outputs * taps
    # Zeros between pixels occur in the gradients of a strided convolution. In the gradient with
    # respect to its maps, every pixel meets every tap. The gradient with respect to its kernel has
    # few outputs, one for each tap, and every pixel meets every output.
    return pixels * (taps if outputs > pixels else outputs)


def _attention(equation: core.JaxprEqn) -> int:
    """Returns the number of multiplications in one matrix product of fused attention."""
    query, key = _shapes(equation)[:2]  # (batch, token, head, feature)
    return math.prod(query) * key[1]
