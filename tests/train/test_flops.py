"""The operation counter agrees with torch's on timm's networks and with closed forms."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remem_jax import losses, models, optim, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Batch
from remem_jax.train import flops, state, steps
from tests.oracles import peers

BATCH, CLASSES = 2, 10
# Name and options of our model, those of timm's, and the image size. At 32 pixels the last maps
# have one pixel; at 50, strides are applied to odd sizes.
RESNET = ("resnet18", {}, "resnet18", {}, 32)
ODD_RESNET = ("resnet18", {}, "resnet18", {}, 50)
VIT = ("vit", {"variant": "Ti/16"}, "vit_tiny_patch16_224", {"img_size": 64}, 64)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()), ("data",))


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def counted_by_torch(name: str, options: dict[str, Any], pixels: int, *, backward: bool) -> float:
    """Counts operations of timm's network on the meta device, without fused attention."""
    timm, torch = peers.timm(), peers.torch()
    from torch.utils import flop_counter  # pyright: ignore[reportMissingImports]

    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=CLASSES, **options)
            images = torch.zeros(BATCH, 3, pixels, pixels)
        with flop_counter.FlopCounterMode(display=False) as counter:
            total = network(images).sum()
            if backward:
                total.backward()
    finally:
        timm.layers.set_fused_attn(bool(fused))
    return counter.get_total_flops()


def counted_by_us(
    name: str, options: dict[str, Any], pixels: int, *, backward: bool, platform: str
) -> float:
    model = models.make(name, classes=CLASSES, **options)
    image = spec(1, pixels, pixels, 3)
    statistics = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    params = statistics.pop("params")

    def total(params: Any, statistics: Any, images: jax.Array) -> jax.Array:
        return models.train_apply(model)(params, statistics, images, jax.random.key(0))[0].sum()

    function = jax.grad(total) if backward else total
    images = spec(BATCH, pixels, pixels, 3)
    return flops.count(function, params, statistics, images, platform=platform)


@pytest.mark.parametrize("network", [RESNET, ODD_RESNET, VIT], ids=["resnet", "odd", "vit"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_counts_of_networks_match_torch(
    network: tuple[Any, ...], backward: bool, platform: str
) -> None:
    name, options, timm_name, timm_options, pixels = network

    ours = counted_by_us(name, options, pixels, backward=backward, platform=platform)

    assert ours == counted_by_torch(timm_name, timm_options, pixels, backward=backward)


def test_the_count_of_a_depthwise_network_matches_torch() -> None:
    theirs = counted_by_torch("mobilenetv2_100", {}, 64, backward=False)

    ours = counted_by_us("mobilenet_v2", {}, 64, backward=False, platform="cuda")
    gradient = counted_by_us("mobilenet_v2", {}, 64, backward=True, platform="cuda")

    # Torch counts the gradient of a depthwise convolution as that of a full one, so we compute it:
    # three times the forward count, or twice for the first layer, as images have no gradient.
    first = 2 * BATCH * 32 * 32 * (3 * 3 * 3) * 32
    assert ours == theirs
    assert gradient == 3 * ours - first


def test_a_matrix_product_counts_two_operations_per_term() -> None:
    actual = flops.count(
        lambda x, w: jnp.einsum("bij,bjk->bik", x, w), spec(5, 2, 3), spec(5, 3, 4)
    )

    assert actual == 2 * 5 * 2 * 3 * 4


def test_jit_does_not_change_the_count() -> None:
    assert flops.count(jax.jit(jnp.matmul), spec(2, 3), spec(3, 4)) == 2 * 2 * 3 * 4


def test_counting_does_not_run_the_function() -> None:
    def product(x: jax.Array) -> jax.Array:
        jax.debug.callback(pytest.fail)
        return x @ x

    assert flops.count(product, jnp.ones((3, 3))) == 2 * 3**3


def test_arrays_and_shapes_may_be_sharded(mesh: Mesh) -> None:
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=sharding)
    array = jax.device_put(np.ones((4, 3), np.float32), sharding)

    for images in (shape, array):
        assert flops.count(jax.jit(jnp.matmul), images, spec(3, 5)) == 2 * 4 * 3 * 5


def test_a_scan_counts_each_iteration() -> None:
    def repeated(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=7)[0]

    assert flops.count(repeated, spec(3, 3)) == 7 * 2 * 3**3


def test_a_while_loop_counts_one_iteration() -> None:
    def repeated(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda carry: carry[0, 0] < 9, lambda carry: carry @ carry, x)

    assert flops.count(repeated, spec(3, 3)) == 2 * 3**3


def test_a_cond_counts_its_largest_branch() -> None:
    def either(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.count(either, spec(3, 3)) == 2 * 2 * 3**3


def test_a_platform_dependent_function_counts_the_platforms_branch() -> None:
    def chosen(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x @ x, cuda=lambda x: x, default=lambda x: x @ x
        )

    counts = {name: flops.count(chosen, spec(3, 3), platform=name) for name in ("", "cuda", "tpu")}

    assert counts == {"": 2 * 2 * 3**3, "cuda": 0, "tpu": 2 * 3**3}


def test_shards_count_as_much_as_the_whole_array(mesh: Mesh) -> None:
    def of_shard(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return images @ kernel

    shared = jax.shard_map(
        of_shard,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
    )

    assert flops.count(shared, spec(6, 3), spec(3, 5)) == 2 * 6 * 3 * 5


def test_recomputation_is_counted() -> None:
    def layer(kernel: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.sin(images @ kernel).sum()

    shapes, product = (spec(3, 4), spec(2, 3)), 2 * 2 * 3 * 4
    assert flops.count(jax.grad(layer), *shapes) == 2 * product
    assert flops.count(jax.grad(jax.checkpoint(layer)), *shapes) == 3 * product


def convolution(stride: int, side: int, *, groups: int) -> Callable[..., Any]:
    margins = ((side // 2, side // 2),) * 2
    return functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("pixels", [2, 9])
def test_the_gradients_of_a_convolution_count_twice_its_operations(
    pixels: int, side: int, stride: int, groups: int
) -> None:
    convolve = convolution(stride, side, groups=groups)
    shapes = spec(3, pixels, pixels, 8), spec(side, side, 8 // groups, 16)

    forward = flops.count(convolve, *shapes)
    both = flops.count(lambda x, w: jax.vjp(convolve, x, w)[1](convolve(x, w)), *shapes)

    outputs = math.ceil(pixels / stride)
    assert forward == 2 * 3 * outputs**2 * 16 * side**2 * (8 // groups)
    assert both == (2 + 2) * forward  # The function convolves twice.


def test_the_gradients_of_a_transposed_convolution_count_twice_its_operations() -> None:
    def upsampled(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(x, w, (2, 2), "SAME")

    shapes = spec(3, 9, 9, 4), spec(4, 4, 4, 5)

    forward = flops.count(upsampled, *shapes)
    both = flops.count(lambda x, w: jax.vjp(upsampled, x, w)[1](upsampled(x, w)), *shapes)

    assert forward == 2 * 3 * 9**2 * 4**2 * 4 * 5
    assert both == (2 + 2) * forward


def test_batched_kernels_count_for_each_batch() -> None:
    """`jax.vmap` over images and kernels turns the batch into groups."""
    batched = jax.vmap(convolution(1, 3, groups=1))

    actual = flops.count(batched, spec(2, 3, 6, 6, 4), spec(2, 3, 3, 4, 5))

    assert actual == 2 * (2 * 3 * 6**2 * 5 * 3**2 * 4)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes fused attention traceable without cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.usefixtures("cudnn", "mixed_dtypes")
def test_fused_attention_counts_like_plain_attention(key_heads: int) -> None:
    def total(query: jax.Array, key: jax.Array, value: jax.Array, *, kind: Any) -> jax.Array:
        mixed = jax.nn.dot_product_attention(query, key, value, implementation=kind)
        return mixed.astype(jnp.float32).sum()

    queries = spec(2, 6, 4, 8, dtype=jnp.bfloat16)
    keys = spec(2, 10, key_heads, 8, dtype=jnp.bfloat16)
    product = 2 * 2 * 4 * 6 * 10 * 8
    for kind in ("cudnn", "xla"):
        forward = functools.partial(total, kind=kind)

        assert flops.count(forward, queries, keys, keys) == 2 * product
        assert flops.count(jax.grad(forward, (0, 1, 2)), queries, keys, keys) == 6 * product


def test_a_step_with_sam_counts_twice_a_plain_one() -> None:
    def linear(params: Any, statistics: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        del key
        return images.reshape(4, 3) @ params["kernel"], statistics

    batch = Batch(jnp.zeros((4, 1, 1, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))

    def counted(rho: float) -> float:
        tx = optim.sgd(
            lambda _: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None
        )
        step = steps.make_supervised_step(
            linear,
            tx,
            lambda key, stored: stored,
            key=jax.random.key(0),
            ascent=sam.sam(rho) if rho else None,
            loss=losses.cross_entropy,
            mixing=Mixing(),
        )
        first = state.create({"params": {"kernel": jnp.zeros((3, 5))}}, tx)
        return flops.count(step, first, batch, {})

    plain = 2 * 2 * 4 * 3 * 5  # The logits and the gradient of the kernel.
    assert counted(0.0) == plain
    assert counted(0.05) == 2 * plain


@pytest.mark.parametrize(
    ("device_kind", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 156e12),  # TF32
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362.05e12),
        ("Tesla T4", "float32", 8.1e12),
        ("Tesla T4", "bfloat16", None),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA A100-SXM4-80GB", "int8", None),
        ("cpu", "float32", None),
    ],
)
def test_the_peak_matches_the_data_sheet(
    device_kind: str, dtype: str, expected: float | None
) -> None:
    assert flops.peak(device_kind, dtype) == expected


def test_the_peak_of_a_cpu_is_unknown() -> None:
    assert flops.peak(jax.devices("cpu")[0].device_kind, "float32") is None
