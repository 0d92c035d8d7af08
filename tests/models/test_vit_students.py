"""ViTs as students agree with timm: initial parameters, stochastic depth, features, ONNX."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import encoder, projection, vit_student
from remem_jax.weights import augreg, vit_students
from tests import tiny_run
from tests.models import test_every_student
from tests.models.test_students import exported, run_onnx
from tests.oracles import peers

VITS = [name for name, student in models.STUDENTS.items() if student.patch > 1]
ARCHITECTURES = [
    {"pool": pool, "gelu": gelu}
    for pool, gelu in itertools.product(("cls", "gap", "map"), vit_student.GELUS)
]
CLASSES, SIDE = 7, 40


def tiny(**options: Any) -> Any:
    """Makes a student of two blocks with patches of 8 pixels."""
    return tiny_run.VIT_STUDENT.make(classes=CLASSES, **options)


def drawn(model: Any, rng: np.random.Generator) -> Any:
    """Variables that make every layer matter."""
    shapes = models.shapes(model, SIDE)
    params = jax.tree.map(lambda s: 0.15 * rng.standard_normal(s.shape, np.float32), shapes)

    def about_one(path: Any, leaf: np.ndarray) -> np.ndarray:
        return leaf + (path[-1].key == "scale")

    return {"params": jax.tree_util.tree_map_with_path(about_one, params)}


def peer(name: str, student: models.Student, architecture: Any, variables: Any = None) -> Any:
    """Returns timm's network as the model card makes it, with the same weights."""
    torch = peers.torch()
    theirs = peers.timm().create_model(
        student.timm, num_classes=CLASSES, **student.timm_options(architecture, SIDE)
    )
    if variables is not None:
        state = vit_students.to_timm(variables)
        theirs.load_state_dict({n: torch.from_numpy(a) for n, a in state.items()}, strict=True)
    return theirs.eval()


def nchw(images: np.ndarray) -> Any:
    return peers.torch().from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (3, SIDE, SIDE, 3)).astype(np.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(a.values()))
def test_the_onnx_file_has_the_logits_of_timms_network(
    architecture: Any, rng: np.random.Generator, images: np.ndarray
) -> None:
    model = tiny(**architecture)
    variables = drawn(model, rng)
    theirs = peer(tiny_run.VIT_NAME, tiny_run.VIT_STUDENT, architecture, variables)

    logits = run_onnx(exported(model, variables), images)

    with peers.torch().no_grad():
        expected = theirs(nchw(images)).numpy()
    assert np.std(expected, axis=0).max() > 1e-2  # Otherwise any output would pass.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VITS)
def test_names_and_shapes_match_timm(name: str) -> None:
    student, side = models.STUDENTS[name], 96
    with peers.torch().device("meta"):
        theirs = peers.timm().create_model(
            student.timm, **student.timm_options({"gelu": "tanh"}, side)
        )
    expected = {n: tuple(t.shape) for n, t in theirs.state_dict().items()}
    shapes = models.shapes(models.make(name, classes=1000), side)

    arrays = vit_students.to_timm({"params": jax.tree.map(lambda s: np.zeros(s.shape), shapes)})

    assert {n: a.shape for n, a in arrays.items()} == expected


def test_initial_parameters_have_timms_distribution(key: jax.Array) -> None:
    torch, model = peers.torch(), tiny()
    torch.manual_seed(0)
    theirs = peer(tiny_run.VIT_NAME, tiny_run.VIT_STUDENT, {})
    ours = vit_students.to_timm(models.init(model, key, SIDE))

    for name, parameter in theirs.named_parameters():
        expected, array = parameter.detach().numpy(), ours[name]
        spread = 6 / np.sqrt(2 * array.size)  # Six standard errors of a standard deviation.
        np.testing.assert_allclose(array.std(), expected.std(), rtol=spread, atol=1e-9)
        scale = max(float(expected.std()), 1e-9)
        assert abs(array.mean() - expected.mean()) <= 6 * scale / np.sqrt(array.size / 2)


def test_drop_path_rates_are_timms() -> None:
    rate, depth = 0.3, 5
    with peers.torch().device("meta"):
        theirs = peers.timm().create_model("vit_tiny_patch16_224", depth=depth, drop_path_rate=rate)
    expected = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    block = encoder.Block(heads=1, hidden=1, drop_path=rate)
    model = encoder.Encoder(depth, block, True, 0, 0, "nothing", True)

    np.testing.assert_allclose(model.drop_path_rates(), expected, rtol=1e-6, atol=1e-9)


def test_drop_path_leaves_out_whole_images_and_scales_the_others(key: jax.Array) -> None:
    block = encoder.EncoderBlock(encoder.Block(heads=1, hidden=1))
    update, rate = jnp.ones((4000, 2, 3)), 0.25

    dropped = block.apply({}, update, jnp.asarray(rate), method="drop_path", rngs={"dropout": key})

    each = np.asarray(dropped).reshape(4000, -1)
    np.testing.assert_array_equal(each, np.broadcast_to(each[:, :1], each.shape))
    assert set(np.unique(each)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert np.mean(each == 0) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_training_drops_the_same_in_scanned_and_unrolled_blocks(
    option: str, rng: np.random.Generator, images: np.ndarray, key: jax.Array
) -> None:
    model = tiny(**{option: 0.5})
    variables, plain = drawn(model, rng), tiny()

    def logits(model: Any, key: jax.Array) -> np.ndarray:
        out, _ = jax.jit(models.train_apply(model))(variables["params"], {}, images, key)
        return np.asarray(out)

    scanned, other = logits(model, key), logits(model, jax.random.key(1))

    np.testing.assert_allclose(logits(model.clone(scan=False), key), scanned, atol=1e-5)
    assert np.abs(other - scanned).max() > 1e-3
    np.testing.assert_allclose(
        jax.jit(models.evaluation_apply(model))(variables, images),
        logits(plain, key),
        atol=1e-5,
    )


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("side", [3, 5, 7])
def test_predicted_patches_are_the_projected_tokens_of_timm(
    pool: str, side: int, rng: np.random.Generator, images: np.ndarray, key: jax.Array
) -> None:
    torch, model = peers.torch(), tiny(pool=pool, gelu="erf")
    variables = drawn(model, rng)
    targets = (projection.Target("patches", side, width=5),)
    params = projection.add(variables, key, {"patches": (64, 5)})["params"]
    theirs = peer(tiny_run.VIT_NAME, tiny_run.VIT_STUDENT, {"pool": pool}, variables)

    outputs, _ = jax.jit(models.student_apply(model, targets))(params, {}, images, key)

    with torch.no_grad():
        tokens = theirs.forward_features(nchw(images))[:, 1 if pool == "cls" else 0 :]
        maps = tokens.transpose(1, 2).reshape(3, 64, 5, 5)
        maps = torch.nn.functional.interpolate(
            maps, size=(side, side), mode="bilinear", align_corners=False, antialias=side < 5
        )
        kernel = torch.from_numpy(np.array(params["projection"]["kernel"]))
        expected = maps.flatten(2).transpose(1, 2) @ kernel
        logits = theirs(nchw(images))
    np.testing.assert_allclose(outputs.patches, expected.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, logits.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_a_predicted_cls_token_is_the_students_or_else_the_mean(
    pool: str, rng: np.random.Generator, images: np.ndarray, key: jax.Array
) -> None:
    model = tiny(pool=pool, gelu="erf")
    variables, targets = drawn(model, rng), (projection.Target("cls", 5, width=6),)
    params = projection.add(variables, key, models.projected(model, targets, 80))["params"]
    theirs = peer(tiny_run.VIT_NAME, tiny_run.VIT_STUDENT, {"pool": pool}, variables)

    outputs, _ = jax.jit(models.student_apply(model, targets))(params, {}, images, key)

    with peers.torch().no_grad():
        pooled = theirs.forward_head(theirs.forward_features(nchw(images)), pre_logits=True)
    expected = pooled.numpy() @ np.asarray(params["projection"]["kernel"])
    np.testing.assert_allclose(outputs.cls, expected, rtol=1e-4, atol=1e-4)


def test_the_tokens_after_several_blocks_are_timms(
    rng: np.random.Generator, images: np.ndarray, key: jax.Array
) -> None:
    torch, model = peers.torch(), tiny(gelu="erf")
    variables = drawn(model, rng)
    targets = (projection.Target("layers", 5, width=6, layers=2),)
    params = projection.add(variables, key, models.projected(model, targets, SIDE))["params"]
    theirs = peer(tiny_run.VIT_NAME, tiny_run.VIT_STUDENT, {}, variables)

    student, _ = jax.jit(models.student_apply(model, targets))(params, {}, images, key)
    teacher = jax.jit(models.teacher_apply(model, ("layers",)))(variables, images)

    with torch.no_grad():
        layers = theirs.forward_intermediates(
            nchw(images), indices=[0, 1], output_fmt="NLC", intermediates_only=True
        )
    for i, layer in enumerate(layers):
        np.testing.assert_allclose(teacher.layers[i], layer.numpy(), rtol=1e-4, atol=1e-4)
        expected = layer.numpy() @ np.asarray(params["projection"][f"layer_{i + 1}"]["kernel"])
        np.testing.assert_allclose(student.layers[i], expected, rtol=1e-4, atol=1e-4)


@functools.cache
def in_half_precision(name: str) -> tuple[Any, Any]:
    model = models.make(name, classes=3, dtype="float16")
    create = functools.partial(model.init_with_output, jax.random.key(0))
    return jax.eval_shape(create, jnp.zeros((2, 32, 32, 3)))


@pytest.mark.parametrize("name", VITS)
def test_logits_and_parameters_are_float32_in_half_precision(name: str, mixed_dtypes: None) -> None:
    logits, variables = in_half_precision(name)

    leaves = jax.tree.leaves(variables)
    assert {leaf.dtype for leaf in (logits, *leaves)} == {np.dtype(np.float32)}
    assert list(variables) == ["params"]


@pytest.mark.parametrize("name", VITS)
def test_only_the_head_depends_on_the_number_of_classes(name: str) -> None:
    few, many = (augreg.names_and_shapes(models.make(name, classes=n), 32) for n in (3, 5))
    assert {n for n in few if few[n] != many[n]} == set(models.STUDENTS[name].head)


@pytest.mark.parametrize(
    ("option", "value"),
    [("stem", "small"), ("gelu", "relu"), ("pool", "max"), ("dtype", "int8")],
)
def test_unknown_options_are_refused(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be one of .*{value}"):
        tiny(**{option: value})


@pytest.mark.parametrize("name", VITS)
def test_the_docs_list_the_student(name: str) -> None:
    millions, macs = (
        test_every_student.parameters(name, 1000) / 1e6,
        test_every_student.gigamacs(name),
    )
    row = f"| `{name}` | {models.STUDENTS[name].timm} |  | {millions:.1f} M | {macs:.2f} |"
    lines = test_every_student.PAGE.read_text().splitlines()
    assert row in lines, f"Add to docs/students.md: {row}"
