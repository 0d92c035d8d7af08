"""Floating-point operations: what a step takes, and what a device does in a second at most.

Their ratio, with the seconds of a step, is the utilisation of the devices (MFU).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from remem_jax import platforms

# Products of queries, keys and values in cuDNN's fused attention. Backward it takes the scores a
# fifth time, since it has not kept them; attention that is not fused does not, nor is it counted.
_FUSED = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


class _Peak(NamedTuple):
    """TFLOP/s of dense matrix products, by the type of the operands; None where there are none."""

    bfloat16: float | None
    float32: float


# Of NVIDIA's data sheets, which from Ampere on print figures for sparse matrices: half of those.
_A100 = _Peak(312, 156)
_H100 = _Peak(989.4, 494.7)  # SXM. The white paper on the architecture prints dense figures.
_PEAKS = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": _Peak(756, 378),
    "NVIDIA H200": _H100,
    "NVIDIA B200": _Peak(2250, 1125),  # An eighth of an HGX B200.
    "NVIDIA L4": _Peak(121, 60),
    "NVIDIA L40S": _Peak(362.05, 183),
    "NVIDIA A10G": _Peak(70, 35),  # Of the sheet for AWS; an A10 does more.
    # White papers on GA102 and on Ada; sums are in float32, as XLA has them.
    "NVIDIA GeForce RTX 3090": _Peak(71, 35.6),
    "NVIDIA GeForce RTX 4090": _Peak(165.2, 82.6),
    # No bfloat16 and no TF32 before Ampere.
    "Tesla T4": _Peak(None, 8.1),
    "Tesla V100-PCIE-16GB": _Peak(None, 14),
    "Tesla V100-PCIE-32GB": _Peak(None, 14),
    "Tesla V100-SXM2-16GB": _Peak(None, 15.7),
    "Tesla V100-SXM2-32GB": _Peak(None, 15.7),
    # Google's documentation of Cloud TPU, per chip. A device of v2 and v3 is one of two cores.
    "TPU v2": _Peak(45 / 2, 45 / 2),
    "TPU v3": _Peak(123 / 2, 123 / 2),
    "TPU v4": _Peak(275, 275),
    "TPU v5 lite": _Peak(197, 197),  # v5e
    "TPU v5": _Peak(459, 459),  # v5p
    "TPU v5p": _Peak(459, 459),
    "TPU v6 lite": _Peak(918, 918),  # v6e
}


def count(function: Callable[..., Any], *arguments: Any, platform: str = "") -> float:
    """Operations of one call, on all devices together: two for each multiplication and addition.

    Matrix products and convolutions count, at their shapes; nothing else does. Padding counts as
    pixels; the zeros that a stride puts between them, in the gradient of a convolution, do not.
    The function is traced, not compiled and not run. Of a choice by platform that platform's branch
    counts, of any other `cond` the largest, of a `while_loop` one turn, since nobody knows their
    number. What `shard_map` does alike on several devices counts on each of them.

    What is recomputed (`jax.checkpoint`, a model's `rematerialise`) counts again. MFU is defined
    without that: count the same step with a model that keeps its activations. Also, on a CPU our
    depthwise convolutions are sums of shifted maps, and do not count.

    Args:
        function: Jitted or not.
        *arguments: Arrays, or their shapes (`jax.ShapeDtypeStruct`), sharded or not.
        platform: Whose implementations count (see `platforms.of`); empty is that of the devices
            that are here.

    Source: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B (MFU).
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, platform=platform)


def of_jaxpr(jaxpr: core.Jaxpr, *, platform: str = "") -> float:
    """`count` of what is traced already."""
    return float(_operations(jaxpr, platform or platforms.of(jax.devices()[0])))


def peak(device_kind: str, dtype: str) -> float | None:
    """Floating-point operations per second of one device, at most, in dense matrix products.

    "float32" is what JAX makes of it unless `jax_default_matmul_precision` is set: operands are
    rounded to TF32 by NVIDIA's GPUs since Ampere, and to bfloat16 by TPUs. Exact float32 is many
    times slower on both.

    Args:
        device_kind: `jax.Device.device_kind`.
        dtype: Of the operands, "bfloat16" or "float32".

    Returns:
        None for a CPU, for any device (a slice of one, too) or type that is not in the table, and
        for bfloat16 where the device has none.
    """
    found = _PEAKS.get(device_kind)
    tera = None if found is None else found._asdict().get(dtype)
    return None if tera is None else tera * 1e12


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
    if taken := platforms.branch(equation, platform):
        return _operations(taken.jaxpr, platform)
    inner = [_operations(jaxpr, platform) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # The body is the share of one device.
        mesh = params["mesh"]
        times = math.prod(mesh.shape[a] for a in params.get("newly_manual_axes", mesh.axis_names))
    return times * sum(inner)


def _shapes(equation: core.JaxprEqn) -> list[tuple[int, ...]]:
    """Shapes of what goes in, and of the first result, last."""
    variables: list[Any] = [*equation.invars, equation.outvars[0]]
    return [variable.aval.shape for variable in variables]


def _product(equation: core.JaxprEqn) -> int:
    """Multiplications of a matrix product."""
    left, _, out = _shapes(equation)
    (contracted, _), _ = equation.params["dimension_numbers"]
    return math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """Multiplications of a convolution; groups show in the kernel's input channels."""
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
    """Pairs of an output and a tap of the kernel, along one axis, that fall on no inserted zero."""
    if dilation == 1:
        return outputs * taps
    # With zeros between its pixels it is a convolution with a stride, turned round (the gradient
    # by its maps), in which every pixel meets every tap; or, with few outputs, the gradient by
    # the kernel of such a one, whose outputs are those taps.
    return pixels * (taps if outputs > pixels else outputs)


def _attention(equation: core.JaxprEqn) -> int:
    """Multiplications of one of the products of fused attention."""
    query, key = _shapes(equation)[:2]  # (batch, token, head, feature)
    return math.prod(query) * key[1]
