"""Finding collectives in compiled programs and in HLO written by accelerators' compilers.

The programs are compiled for the tests' two CPU devices, and their exchanges are known.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from remem_jax import mesh
from tools.aot import collectives, expected

PARAMS = {"kernel": jax.ShapeDtypeStruct((256, 256), "float32")}
STATISTICS = {"mean": jax.ShapeDtypeStruct((1000,), "float32")}


def _collectives(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> list[Any]:
    text = jax.jit(function).lower(*shapes).compile().as_text()
    assert text
    return collectives.find(text)


def _on_two_devices(function: Callable[..., Any], out: PartitionSpec) -> Callable[..., Any]:
    """Applies a function to each of two devices' shards of an array."""
    devices, rows = mesh.make_mesh(jax.devices()[:2]), PartitionSpec(mesh.AXIS)
    return jax.shard_map(function, mesh=devices, in_specs=rows, out_specs=out, check_vma=False)


def _sum(x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, mesh.AXIS)


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes() -> None:
    shape = jax.ShapeDtypeStruct((2, 1000), "float32")

    (op,) = _collectives(_on_two_devices(_sum, PartitionSpec()), shape)

    assert (op.kind, op.times, op.bytes, op.group) == ("all-reduce", 1, 4000, 2)


def test_an_all_gather_counts_the_full_array() -> None:
    devices = mesh.make_mesh(jax.devices()[:2])
    replicated = mesh.replicated(devices)
    rows = jax.ShapeDtypeStruct((64, 16), "float32", sharding=mesh.batch_sharding(devices))

    (op,) = _collectives(lambda x: jax.lax.with_sharding_constraint(x, replicated), rows)

    assert (op.kind, op.arrays) == ("all-gather", (collectives.Array("f32", (64, 16)),))


def test_a_reduce_scatter_counts_the_full_array() -> None:
    scatter = functools.partial(jax.lax.psum_scatter, axis_name=mesh.AXIS, tiled=True)

    (op,) = _collectives(
        _on_two_devices(scatter, PartitionSpec(mesh.AXIS)), jax.ShapeDtypeStruct((80,), "float32")
    )

    assert (op.kind, op.bytes) == ("reduce-scatter", 4 * 40)


def test_collectives_in_a_loop_count_once_per_iteration() -> None:
    def scanned(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (_sum(carry), None), x, length=5)[0]

    (op,) = _collectives(
        _on_two_devices(scanned, PartitionSpec()), jax.ShapeDtypeStruct((2, 8), "float32")
    )

    assert op.times == 5


def test_a_loop_of_unknown_length_is_reported() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 100, _sum, x)

    (op,) = _collectives(
        _on_two_devices(loop, PartitionSpec()), jax.ShapeDtypeStruct((2, 8), "float32")
    )

    assert op.times is None
    assert "unknown length" in expected.problems([op], _passing())[0]


# HLO as XLA writes it for GPUs.
ASYNCHRONOUS = """
HloModule step

ENTRY %main (p: f32[4,8]) -> f32[32,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %gather = ((f32[4,8]{1,0}), (f32[32,8]{1,0})) all-gather-start(%p), channel_id=1, \
replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(step)/add"}
  ROOT %done = f32[32,8]{1,0} all-gather-done(%gather)
}
"""


def test_an_asynchronous_collective_counts_once_at_its_start() -> None:
    (op,) = collectives.find(ASYNCHRONOUS)

    array = collectives.Array("f32", (32, 8))
    assert op == collectives.Collective("all-gather", (array,), 1, 8, "jit(step)/add")


# HLO as libtpu writes it: tiled layouts, groups by mesh axes, and a collective in pieces.
IN_PIECES = """
HloModule step

%piece.1 (a: bf16[1,24]) -> bf16[1,192] {
  %a = bf16[1,24]{1,0:T(2,128)(2,1)} parameter(0)
  ROOT %g = bf16[1,192]{1,0:T(2,128)(2,1)S(1)} all-gather(%a), channel_id=50, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, frontend_attributes={chain_id="0"}
}

%body (b: (s32[], bf16[1,24])) -> (s32[], bf16[1,24]) {
  %b = (s32[]{:T(128)}, bf16[1,24]{1,0:T(2,128)(2,1)}) parameter(0)
  %x = bf16[1,24]{1,0:T(2,128)(2,1)} get-tuple-element(%b), index=1
  %f = bf16[1,192]{1,0:T(2,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%piece.1
  %r = (bf16[1,24]{1,0:T(2,128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%x, %n), channel_id=7
}

%condition (c: (s32[], bf16[1,24])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %c = (s32[]{:T(128)}, bf16[1,24]{1,0:T(2,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %twelve), direction=LT
}

ENTRY %main (p: bf16[1,24]) -> bf16[1,192] {
  %p = bf16[1,24]{1,0:T(2,128)(2,1)} parameter(0)
  %start = bf16[1,192]{1,0:T(2,128)(2,1)S(1)} fusion(%p), kind=kCustom, calls=%piece.1
  ROOT %loop = (s32[]{:T(128)}, bf16[1,24]{1,0:T(2,128)(2,1)}) while(%t), \
condition=%condition, body=%body
}
"""


def test_a_collective_in_pieces_counts_once_and_others_once_per_iteration() -> None:
    gathered, reduced = sorted(collectives.find(IN_PIECES))

    assert (gathered.kind, gathered.group, gathered.bytes) == ("all-gather", 8, 2 * 192)
    # The piece runs once before the loop and 12 times in it; together these are one collective.
    assert (reduced.kind, reduced.times, reduced.bytes) == ("all-reduce", 12, 2 * 24 + 4)


def test_text_that_is_not_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.find("jit(step)")


def _passing(**changes: Any) -> expected.Passing:
    return expected.Passing(PARAMS, {}, {}, 1, 2, False)._replace(**changes)


def _collective(kind: str, *shape: int, group: int = 2, times: int = 1) -> collectives.Collective:
    return collectives.Collective(kind, (collectives.Array("f32", shape),), times, group, "")


GRADIENTS = _collective("all-reduce", 256, 256)
PARAMETERS = _collective("all-gather", 256, 256)


@pytest.mark.parametrize(
    ("program", "changes"),
    [
        ([GRADIENTS, _collective("all-gather", 100)], {}),
        ([_collective("all-reduce", 128, 256, times=2)], {}),
        ([GRADIENTS, _collective("all-reduce", 1000, times=5)], {"statistics": STATISTICS}),
        ([GRADIENTS, GRADIENTS], {"passes": 2}),
        ([GRADIENTS, PARAMETERS], {"fsdp": True}),
        ([_collective("reduce-scatter", 256, 256), PARAMETERS, PARAMETERS], {"fsdp": True}),
        ([PARAMETERS], {"trained": {}, "read": PARAMS, "fsdp": True}),
        ([], {"trained": {}}),
        ([], {"devices": 1}),
    ],
)
def test_gradients_parameters_and_small_arrays_are_expected(
    program: list[collectives.Collective], changes: dict[str, Any]
) -> None:
    assert not expected.problems(program, _passing(**changes))


@pytest.mark.parametrize(
    ("program", "changes", "message"),
    [
        ([GRADIENTS, PARAMETERS], {}, "all-gather of 0.25 MiB is not expected"),
        ([GRADIENTS, _collective("all-to-all", 512, 512)], {}, "all-to-all of 1.00 MiB is not"),
        ([GRADIENTS, _collective("collective-permute", 512, 512)], {"fsdp": True}, "is not"),
        ([GRADIENTS], {"passes": 2}, "65,536 numbers are reduced; 2 x 65,536 gradients should be"),
        ([], {}, "0 numbers are reduced"),
        ([GRADIENTS, _collective("all-reduce", 1000, times=5)], {}, "70,536 numbers are reduced"),
        ([GRADIENTS] * 2, {}, "131,072 numbers are reduced"),
        ([GRADIENTS], {"trained": {}}, "all-reduce of 0.25 MiB is not expected"),
        ([GRADIENTS, _collective("all-gather", 300, 256)], {"fsdp": True}, "is no parameter"),
        ([GRADIENTS, *[PARAMETERS] * 3], {"fsdp": True}, "196,608 numbers are gathered"),
        ([GRADIENTS], {"devices": 1}, "there is one device"),
        ([_collective("all-reduce", 256, 256, group=1)], {}, "is among 1 of 2 devices"),
    ],
)
def test_unexpected_collectives_are_reported(
    program: list[collectives.Collective], changes: dict[str, Any], message: str
) -> None:
    assert any(message in problem for problem in expected.problems(program, _passing(**changes)))
