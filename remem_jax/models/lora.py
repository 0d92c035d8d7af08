"""LoRA: frozen kernels, each changed by the product of two thin matrices.

It works on the parameters alone, so any ViT has it: `add` puts the matrices into the tree, `merge`
makes the tree that the model knows.

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

TARGETS = ("query", "key", "value", "out", "Dense_0", "Dense_1")
LEAVES = ("lora_a", "lora_b")


def check(targets: Sequence[str], rank: int) -> None:
    """Raises `ValueError` unless `add` can use the targets and the rank."""
    at_least("rank", rank, 1)
    require(len(targets) > 0, f"targets must name at least one of {', '.join(TARGETS)}.")
    for target in targets:
        one_of("targets", target, TARGETS)


def add(
    params: Params, key: Key, *, targets: Sequence[str] = ("query", "value"), rank: int = 32
) -> Params:
    """Puts `lora_a` and `lora_b` beside the kernels of the targets, in every encoder block.

    Kernels of attention have an axis for the heads; the two matrices are those of the kernel as
    one matrix, from all its inputs to all its outputs. The change is zero at first: A is Gaussian,
    B is zero. The paper leaves the variance of A open; ours is 1 / (3 inputs), that of the uniform
    A of the authors' code (loralib): a deviation of 0.021 at 768 features.

    Args:
        params: Parameters of a ViT.
        key: Source of A.
        targets: Names of the layers, of `TARGETS`.
        rank: Columns of A and rows of B (r).

    Raises:
        ValueError: If a target is unknown or in no block, or the rank is below 1.
    """
    check(targets, rank)
    flat: Any = traverse_util.flatten_dict(params)
    kernels = sorted(path for path in flat if _is_target(path, targets))
    missing = set(targets) - {path[-2] for path in kernels}
    require(not missing, f"targets: no encoder block has {', '.join(sorted(missing))}.")
    for path, own_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        kernel = flat[path]
        # Only the output projection of attention sums over more than its first axis.
        inner = 2 if path[-2] == "out" else 1
        inputs, outputs = math.prod(kernel.shape[:inner]), math.prod(kernel.shape[inner:])
        deviation = (3 * inputs) ** -0.5
        gaussian = jax.random.normal(own_key, (inputs, rank), kernel.dtype)
        flat[(*path[:-1], "lora_a")] = deviation * gaussian
        flat[(*path[:-1], "lora_b")] = jnp.zeros((rank, outputs), kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def merge(params: Params, *, scale: float = 32) -> Params:
    """The tree that the model knows: each kernel plus (scale / rank) A B, without A and B.

    Pure and differentiable: training applies the model to it, and it is what is exported.

    Args:
        params: Parameters, or all variables of a model; without LoRA they come back as they are.
        scale: alpha of the paper; the rank is read off A.
    """
    flat: Any = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    if not any(path[-1] in LEAVES for path in flat):
        return params
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in LEAVES}
    for path in [path for path in flat if path[-1] == "lora_a"]:
        a, b = flat[path], flat[(*path[:-1], "lora_b")]
        kernel = (*path[:-1], "kernel")
        # In full precision, so that what is exported is what was trained on any device.
        change = jnp.matmul(a, b, precision="highest").reshape(merged[kernel].shape)
        merged[kernel] = merged[kernel] + (scale / a.shape[-1]) * change
    return traverse_util.unflatten_dict(merged)


def _is_target(path: tuple[str, ...], targets: Sequence[str]) -> bool:
    in_block = any(part.startswith("encoderblock_") for part in path)
    return in_block and path[-1] == "kernel" and path[-2] in targets
