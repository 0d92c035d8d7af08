"""LoRA: frozen kernels, each changed by the product of two low-rank matrices.

It works on the parameters, so it suits any ViT: `add` adds the matrices to the tree, and `merge`
returns the tree that the model takes.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, Eq. 3.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from remem_jax.checks import at_least, one_of, require
from remem_jax.records import Key, Params

TARGETS = ("query", "key", "value", "out", "Dense_0", "Dense_1", "gate")
LEAVES = ("lora_a", "lora_b")


def check(targets: Sequence[str], rank: int) -> None:
    """Raises `ValueError` if a target is unknown, there is none, or the rank is below 1."""
    at_least("rank", rank, 1)
    require(len(targets) > 0, f"targets must name at least one of {', '.join(TARGETS)}.")
    for target in targets:
        one_of("targets", target, TARGETS)


def add(
    params: Params, key: Key, *, targets: Sequence[str] = ("query", "value"), rank: int = 32
) -> Params:
    """Adds `lora_a` and `lora_b` beside the kernels of the targets, in every encoder block.

    Attention kernels have an axis for the heads; the two matrices belong to the kernel as one
    matrix, from all inputs to all outputs. At first the change is zero: A is Gaussian and B is
    zero. The paper does not state the variance of A. Ours is 1 / (3 inputs), that of the uniform A
    in the authors' code (loralib): a standard deviation of 0.021 at 768 features.

    Args:
        params: Parameters of a ViT.
        key: Random key of A.
        targets: Names of layers in `TARGETS`; only a SwiGLU has a gate.
        rank: Number of columns of A and rows of B (r).

    Raises:
        ValueError: If a target is unknown or in no block, or the rank is below 1.
    """
    check(targets, rank)
    flat: Any = traverse_util.flatten_dict(params)
    kernels = sorted(path for path in flat if _is_target(path, targets))
    missing = set(targets) - {path[-2] for path in kernels}
    require(not missing, f"targets: no encoder block has {', '.join(sorted(missing))}.")
    for path, target_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        kernel = flat[path]
        # Only the output projection of attention sums over more than its first axis.
        inner = 2 if path[-2] == "out" else 1
        inputs, outputs = math.prod(kernel.shape[:inner]), math.prod(kernel.shape[inner:])
        deviation = (3 * inputs) ** -0.5
        gaussian = jax.random.normal(target_key, (inputs, rank), kernel.dtype)
        flat[(*path[:-1], "lora_a")] = deviation * gaussian
        flat[(*path[:-1], "lora_b")] = jnp.zeros((rank, outputs), kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def merge(params: Params, *, scale: float = 32) -> Params:
    """Adds (scale / rank) A B to each kernel, and removes A and B.

    Training applies the model to the result, and the result is exported.

    Args:
        params: Parameters, or all variables of a model. Without LoRA they are returned unchanged.
        scale: Scale of the change (alpha of the paper). The rank is that of A.
    """
    flat: Any = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    if not any(path[-1] in LEAVES for path in flat):
        return params
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in LEAVES}
    for path in [path for path in flat if path[-1] == "lora_a"]:
        a, b = flat[path], flat[(*path[:-1], "lora_b")]
        kernel = (*path[:-1], "kernel")
        # In full precision, so that the exported kernels are those of training on any device.
        change = jnp.matmul(a, b, precision="highest").reshape(merged[kernel].shape)
        merged[kernel] = merged[kernel] + (scale / a.shape[-1]) * change
    return traverse_util.unflatten_dict(merged)


def _is_target(path: tuple[str, ...], targets: Sequence[str]) -> bool:
    in_block = any(name.startswith("encoderblock_") for name in path)
    return in_block and path[-1] == "kernel" and path[-2] in targets
