"""Students agree with the same networks in timm and torchvision.

`test_every_student` compares each student with timm's, but for its gradients.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from remem_jax import losses, models
from remem_jax.export import folding, graph
from remem_jax.models import inverted_blocks, inverted_residual, layers
from remem_jax.models.architectures import Architecture, Head, Row
from remem_jax.weights import torch_names
from tests.oracles import peers

TIMM = {n: s.timm for n, s in models.STUDENTS.items() if s.timm and s.patch == 1}  # Without ViTs.
TORCHVISION = {n: s.torchvision for n, s in models.STUDENTS.items() if s.torchvision}
CLASSES = 7
SIDE = 40  # Of exported images: strides of 2 are applied to odd and to even sizes.
F32 = jnp.dtype(jnp.float32)
RATE = 0.01  # Learning rate.


class Pair(NamedTuple):
    """A student, its peer in timm with the same weights, and a batch for both."""

    model: Any
    variables: Any
    peer: Any
    images: np.ndarray
    labels: np.ndarray


def randomised(peer: Any) -> tuple[Any, np.ndarray]:
    """Randomises a torch network so that logits are O(1); returns it and images."""
    torch, rng = peers.torch(), np.random.default_rng(1)
    peer = peer.double()
    for name, parameter in peer.named_parameters():
        noise = torch.tensor(rng.standard_normal(parameter.shape, np.float32)).double()
        if parameter.ndim == 4:  # Keeps the scale of the maps, up to ReLU's gain.
            parameter.data = noise * (1.5 / parameter[0].numel()) ** 0.5
        elif parameter.ndim == 2:
            parameter.data = 0.1 * noise * parameter.shape[1] ** -0.5
        else:  # With a bias of 2, few units are so near ReLU's kink that rounding matters.
            parameter.data = 0.2 * noise + (1 if "weight" in name else 2)
        parameter.data = parameter.data.float().double()
    # At 48 x 40, strides of 2 are applied to odd and to even sizes.
    images = rng.uniform(-1, 1, (4, 48, 40, 3)).astype(np.float32)
    norms = [m for m in peer.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        peer.train()(nchw(images))
    for norm in norms:
        norm.momentum = 0.1
        for statistics in (norm.running_mean, norm.running_var):
            factors = rng.uniform(0.7, 1.4, statistics.shape)
            statistics.copy_((statistics * torch.tensor(factors)).float())
    return peer, images


def nchw(images: np.ndarray) -> Any:
    return peers.torch().tensor(images, dtype=peers.torch().float64).permute(0, 3, 1, 2)


def state(peer: Any) -> dict[str, np.ndarray]:
    """Returns the state dict of a torch network, in float32."""
    arrays = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    return {n: a if a.dtype == np.int64 else a.astype(np.float32) for n, a in arrays.items()}


def timm_model(name: str) -> Any:
    """Returns a network without drawing its initial parameters, which `randomised` sets."""
    with peers.torch().device("meta"):
        model = peers.timm().create_model(name, num_classes=CLASSES)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    return model


def pair(name: str) -> Pair:
    peer, images = randomised(timm_model(TIMM[name]))
    variables = torch_names.from_timm(state(peer))
    return Pair(models.make(name, classes=CLASSES), variables, peer, images, np.arange(4))


def assert_close(ours: Any, theirs: dict[str, np.ndarray], *, rtol: float) -> None:
    """Compares arrays by name, each relative to its largest entry."""
    assert set(ours) <= set(theirs)
    for name, array in ours.items():
        scale = max(float(np.abs(theirs[name]).max()), 1e-3)
        np.testing.assert_allclose(
            array / scale, theirs[name] / scale, rtol=0, atol=rtol, err_msg=name
        )


def exported(model: Any, variables: Any) -> onnx.ModelProto:
    """Returns a student as an ONNX graph for any number of images of `SIDE` pixels.

    Tracing and exporting a large network takes half of the time of compiling it.
    """
    apply = folding.make_apply(model, whole_norms=True)
    return graph.of_apply(apply, variables, graph.Input(SIDE, "float32", 0))


def assert_same_logits(file: onnx.ModelProto, peer: Any, images: np.ndarray) -> None:
    """Compares the logits of a graph and of a torch network, for a batch of one and another."""
    images = images[:, :SIDE]
    with peers.torch().no_grad():
        expected = peer.eval()(nchw(images)).numpy()
    assert np.std(expected, axis=0).max() > 1e-3  # Otherwise any output would pass.
    np.testing.assert_allclose(run_onnx(file, images), expected, rtol=1e-5, atol=1e-5)


def run_onnx(file: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Returns the logits of images, in batches of one and of the others."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    batches = images[:1], images[1:]
    return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_v2_b0"])
def test_last_maps_match_timm(name: str) -> None:
    model, variables, peer, images, _ = pair(name)

    maps = jax.jit(functools.partial(model.apply, method="trunk"))(variables, jnp.asarray(images))

    with peers.torch().no_grad():
        expected = peer.eval().forward_features(nchw(images)).permute(0, 2, 3, 1).numpy()
    assert_close({"maps": maps}, {"maps": expected}, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenetv3_small_100", "efficientnet_v2_b0"]
)
def test_two_training_steps_match_timm(name: str) -> None:
    model, variables, peer, images, labels = pair(name)
    torch = peers.torch()
    expected, start = [], {n: t.clone() for n, t in peer.state_dict().items()}
    for _ in range(2):
        peer.train().zero_grad()
        torch.nn.functional.cross_entropy(peer(nchw(images)), torch.tensor(labels)).backward()
        expected.append({n: p.grad.numpy().copy() for n, p in peer.named_parameters()})
        for parameter in peer.parameters():
            parameter.data -= RATE * parameter.grad
    ended = state(peer)
    peer.load_state_dict(start)

    @jax.jit
    def gradient(variables: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, statistics = models.train_apply(model)(
                params,
                {"batch_stats": variables["batch_stats"]},
                jnp.asarray(images),
                jax.random.key(0),
            )
            return losses.cross_entropy(logits, jnp.asarray(labels)), statistics

        return jax.grad(loss, has_aux=True)(variables["params"])

    for grads in expected:
        ours, statistics = gradient(variables)
        # float32 error of up to 60 normalisations, the last over 16 values: torch's float32
        # differs from float64 by up to 3e-4.
        assert_close(torch_names.to_timm({"params": ours}), grads, rtol=1e-3)
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], ours)
        variables = {"params": params, **statistics}
    reached = torch_names.to_timm(variables)
    assert_close({n: a for n, a in reached.items() if "num_" not in n}, ended, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_v2_s", "efficientnet_b0"])
def test_logits_match_torchvision(name: str) -> None:
    peer, images = randomised(getattr(peers.torchvision().models, name)(num_classes=CLASSES))
    options = {"padding": "torch"} if name == "efficientnet_v2_s" else {}
    variables = torch_names.from_torchvision(state(peer))

    model = models.make(name, classes=CLASSES, **options)
    assert_same_logits(exported(model, variables), peer, images)


@functools.cache
def shapes(name: str, classes: int) -> Any:
    """Returns the shapes and types of a student's variables."""
    model = models.make(name, classes=classes)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def empty(name: str, classes: int) -> Any:
    """Returns the variables of a student, all zero."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(name, classes))


def peer_shapes(create: Any, device: str = "meta") -> dict[str, tuple[int, ...]]:
    with peers.torch().device(device):
        return {name: tuple(tensor.shape) for name, tensor in create().state_dict().items()}


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_at_1000_classes_match_timm(name: str) -> None:
    expected = peer_shapes(lambda: peers.timm().create_model(TIMM[name]))
    arrays = torch_names.to_timm(empty(name, 1000))
    assert {n: a.shape for n, a in arrays.items()} == expected


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_at_1000_classes_match_torchvision(name: str) -> None:
    device = "cpu" if name.startswith("regnet") else "meta"  # A RegNet computes its widths.
    expected = peer_shapes(getattr(peers.torchvision().models, TORCHVISION[name]), device)
    arrays = torch_names.to_torchvision(empty(name, 1000))
    assert {n: a.shape for n, a in arrays.items()} == expected


@pytest.mark.parametrize("form", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_v2_b0"])
def test_renaming_and_back_changes_nothing(rng: np.random.Generator, name: str, form: str) -> None:
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape), empty(name, 3))

    arrays = getattr(torch_names, f"to_{form}")(variables)
    back = getattr(torch_names, f"from_{form}")(arrays)

    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert all(a.dtype == np.int64 for n, a in arrays.items() if n.endswith("num_batches_tracked"))


def test_a_student_that_torchvision_lacks_has_no_torchvision_names() -> None:
    with pytest.raises(ValueError, match="form 'timm'"):
        torch_names.to_torchvision(empty("efficientnet_lite0", 3))


def test_unknown_names_are_kept() -> None:
    arrays = {
        "cls_token": np.ones(2),
        "fc.weight": np.ones((3, 2)),
        "blocks.0.attn.x.bias": np.ones(1),
    }
    back = torch_names.to_timm(torch_names.from_timm(arrays))
    assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in arrays.items()}


def tiny(classes: int, dtype: Any = jnp.float32) -> Any:
    """Makes a network with every kind of layer."""
    stages = (
        (Row("fused", 64, expansion=4),),
        (Row("inverted", 64, stride=2, expansion=16, squeeze=0.25),),
    )
    architecture = Architecture(64, stages, "relu6", "same", 1e-3, head=Head(256))
    return inverted_residual.make(architecture, classes=classes, dtype=dtype)


@pytest.fixture(scope="module")
def first() -> Any:
    return models.init(tiny(50), jax.random.key(0), 8)["params"]


@pytest.mark.parametrize(
    ("path", "deviation"),
    [
        ("blocks_0_0/conv_exp", (2 / (9 * 256)) ** 0.5),
        ("blocks_1_0/conv_pw", (2 / 1024) ** 0.5),
        ("blocks_1_0/conv_dw", (2 / 9) ** 0.5),
        ("blocks_1_0/se/conv_expand", (2 / 1024) ** 0.5),
        (
            "classifier",
            (1 / 3 / 50) ** 0.5,
        ),  # Uniform between -1 / sqrt(classes) and 1 / sqrt(classes).
    ],
)
def test_kernels_are_initialised_with_timms_deviation(
    first: Any, path: str, deviation: float
) -> None:
    kernel = functools.reduce(lambda tree, name: tree[name], path.split("/"), first)["kernel"]
    assert np.std(kernel) == pytest.approx(
        deviation, rel=0.05
    )  # The kernel has at least 9,000 entries.


@pytest.mark.parametrize("name", ["mobilenet_v2_035", "efficientnet_v2_b0"])
def test_the_small_stem_doubles_the_side_of_the_maps(name: str) -> None:
    def side(stem: str) -> int:
        model, images = models.make(name, classes=2, stem=stem), jnp.zeros((1, 64, 64, 3))
        _, mutated = jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), images, capture_intermediates=True)
        )
        return mutated["intermediates"]["conv_head"]["__call__"][0].shape[1]

    assert (side("imagenet"), side("small")) == (2, 4)


@pytest.mark.parametrize("option", ["stem", "padding"])
def test_an_unknown_option_lists_the_known_ones(option: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*'tiny'"):
        models.make("efficientnet_v2_b0", classes=2, **{option: "tiny"})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_v2_b0"])
def test_only_the_computation_is_in_half_precision(name: str) -> None:
    model, images = models.make(name, classes=2, dtype="bfloat16"), jnp.zeros((2, 32, 32, 3))

    def trained() -> Any:
        variables = model.init(jax.random.key(0), images)
        return variables, model.apply(
            variables, images, train=True, mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )  # fmt: skip

    variables, (logits, mutated) = jax.eval_shape(trained)

    intermediates = mutated.pop("intermediates")
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, mutated))} == {F32}
    block = "layer4_1" if name == "resnet18" else "blocks_4_0"
    assert intermediates[block]["__call__"][0].dtype == jnp.bfloat16


def test_logits_in_half_precision_are_close(rng: np.random.Generator) -> None:
    images = jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    variables = models.init(tiny(3), jax.random.key(0), 8)

    full, half = (
        jax.jit(models.evaluation_apply(tiny(3, dtype)))(variables, images)
        for dtype in (jnp.float32, jnp.bfloat16)
    )

    np.testing.assert_allclose(
        half, full, atol=0.05 * float(np.abs(full).max())
    )  # bfloat16 has 8 bits.


def test_a_dropped_block_is_the_identity(rng: np.random.Generator, key: jax.Array) -> None:
    maps = jnp.asarray(rng.normal(size=(16, 3, 3, 8)), jnp.float32)
    row = Row("inverted", 8, expansion=2)
    make = inverted_blocks.Layers(Architecture(8, ((row,),), "relu6"), jnp.float32)

    def update(rate: float) -> jax.Array:
        block = inverted_blocks.InvertedResidual(row, 1, rate, make)
        variables = block.init(key, maps, train=False)
        out: Any = block.apply(
            variables, maps, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return out[0] - maps

    full, halved = update(0.0), update(0.5)

    is_kept = np.abs(np.asarray(halved)).max((1, 2, 3)) > 1e-3
    assert 0 < is_kept.sum() < 16
    np.testing.assert_allclose(halved[is_kept], 2 * full[is_kept], atol=1e-5)


@pytest.mark.parametrize(("stride", "has_residual"), [(2, True), (1, False)])
def test_a_block_with_stride_2_or_without_a_residual_returns_only_its_output(
    stride: int, has_residual: bool
) -> None:
    maps = jnp.ones((1, 1, 1, 8))
    row = Row("inverted", 8, expansion=2, has_residual=has_residual)
    make = inverted_blocks.Layers(Architecture(8, ((row,),), "relu6"), jnp.float32)
    block = inverted_blocks.InvertedResidual(row, stride, 0.0, make)

    out = block.residual(maps, maps, train=False)

    np.testing.assert_array_equal(out, 1.0)


@pytest.mark.parametrize(("value", "slope"), [(-1.0, 0), (0.0, 0), (3.0, 1), (7.0, 0)])
def test_the_gradient_of_relu6_matches_torch(value: float, slope: float) -> None:
    assert jax.grad(layers.relu6)(jnp.asarray(value)) == slope


def test_same_padding_depends_on_the_side() -> None:
    maps = jnp.zeros((1, 6, 5, 1))
    assert layers.pads(maps, 3, 2, "same") == ((0, 1), (1, 1))
