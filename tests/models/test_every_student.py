"""Requirements on every convolutional student; each test takes one record of `models.STUDENTS`.

Those on ViTs are in test_vit_students.py.

tests/docs/test_extending.py runs these tests with the example of docs/extending/student.md as well.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models, platforms
from remem_jax.models.normalisation import IMAGENET
from remem_jax.weights import torch_names
from tests.models.test_students import (
    SIDE,
    Pair,
    assert_close,
    assert_same_logits,
    exported,
    nchw,
    pair,
    run_onnx,
    state,
)
from tests.oracles import peers

NAMES = [name for name, student in models.STUDENTS.items() if student.patch == 1]
pytestmark = pytest.mark.parametrize("name", NAMES)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "students.md"


def traced(name: str, method: Any = None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the shapes of a student's outputs and, by slash-joined name, variables."""
    model, images = models.make(name, **options), jnp.zeros((2, 64, 64, 3))
    init = functools.partial(model.init_with_output, method=method)
    outputs, variables = jax.eval_shape(init, jax.random.key(0), images)
    return outputs, traverse_util.flatten_dict(variables, sep="/")


def parameters(name: str, classes: int) -> int:
    """Returns the number of a student's parameters."""
    head, (_, shapes) = models.STUDENTS[name].head, trunk_and_head_shapes(name)
    names = [path for path in shapes if path.startswith("params/")]
    per_class = sum(shapes[f"params/{path}"].size for path in head) // 3
    return sum(shapes[path].size for path in names) + (classes - 3) * per_class


def gigamacs(name: str) -> float:
    """Counts the multiplications of timm's convolutions and linear layers, for 224 pixels."""
    torch, counts = peers.torch(), []

    def count(layer: Any, _: Any, out: Any) -> None:
        counts.append(layer.weight[0].numel() * out.numel())

    with torch.device("meta"), torch.no_grad():
        network = peers.timm().create_model(models.STUDENTS[name].timm).eval()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(count)
        network(torch.zeros(1, 3, 224, 224))
    return sum(counts) / 1e9


def trunk_and_head(model: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    maps = model.trunk(images)
    return maps, model.head(maps)


# Tracing dominates the time of these tests, so each student is traced only twice.
@functools.cache
def trunk_and_head_shapes(name: str) -> tuple[Any, dict[str, Any]]:
    return traced(name, trunk_and_head, classes=3)


@functools.cache
def small_in_bfloat16(name: str) -> tuple[Any, dict[str, Any]]:
    options = {"normalisation": IMAGENET, "dropout": 0.1, "drop_path": 0.1}
    return traced(name, classes=5, stem="small", dtype="bfloat16", **options)


def test_only_the_head_depends_on_the_number_of_classes(name: str) -> None:
    (_, few), (_, many) = trunk_and_head_shapes(name), small_in_bfloat16(name)

    changed = {path for path in few if few[path].shape[-1] == 3 and many[path].shape[-1] == 5}

    assert changed == {f"params/{path}" for path in models.STUDENTS[name].head}


def test_variables_are_float32_parameters_and_running_statistics(name: str) -> None:
    _, variables = small_in_bfloat16(name)

    assert {path.split("/")[0] for path in variables} <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in variables.values()} == {np.dtype(np.float32)}


def test_logits_are_float32_in_any_compute_dtype(name: str) -> None:
    logits, _ = small_in_bfloat16(name)

    assert (logits.shape, logits.dtype) == ((2, 5), np.dtype(np.float32))


def test_trunk_and_head_together_are_the_whole_model(name: str) -> None:
    ((maps, logits), variables), (_, whole_model) = (
        trunk_and_head_shapes(name),
        small_in_bfloat16(name),
    )

    assert maps.ndim == 4
    assert logits.shape == (2, 3)
    assert set(variables) == set(whole_model)  # The other stem has the same names.


def test_integer_images_are_refused(name: str) -> None:
    model, images = models.make(name, classes=3), jnp.zeros((1, 64, 64, 3), jnp.uint8)
    with pytest.raises(TypeError, match="got uint8"):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_unknown_stems_and_dtypes_are_refused(name: str) -> None:
    for option in ("stem", "dtype"):
        with pytest.raises(ValueError, match=rf"{option} must be one of"):
            models.make(name, classes=3, **{option: "int8"})


def test_names_translated_to_files_and_back_are_unchanged(name: str) -> None:
    _, shapes = trunk_and_head_shapes(name)
    arrays = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}

    files = torch_names.to_timm(traverse_util.unflatten_dict(arrays, sep="/"))
    back: Any = traverse_util.flatten_dict(dict(torch_names.from_timm(files)), sep="/")

    assert {path: leaf.shape for path, leaf in back.items()} == {
        path: leaf.shape for path, leaf in arrays.items()
    }


# Networks of the same blocks as smaller ones; their training steps take long to compile.
_OF_SAME_BLOCKS = (
    *("efficientnet_v2_s", "efficientnet_v2_m", "mobilenetv4_conv_medium", "regnety_008"),
    *("efficientnet_lite1", "efficientnet_lite2", "efficientnet_lite3", "efficientnet_lite4"),
    *("mobilenet_v2_050", "mobilenet_v2_075", "mobilenet_v2_140", "resnet34", "efficientnet_b0"),
)


@pytest.mark.slow
def test_evaluation_and_training_match_timm_or_else_jax(name: str) -> None:
    if models.STUDENTS[name].timm:
        both = pair(name)  # With random weights.
        file = exported(both.model, both.variables)
        assert_same_logits(file, both.peer, both.images)
        if name not in _OF_SAME_BLOCKS:
            assert_same_training(both)
        variables = both.variables
    else:
        model, images = models.make(name, classes=3), np.linspace(-1, 1, 2 * SIDE**2 * 3)
        images = images.reshape(2, SIDE, SIDE, 3).astype(np.float32)
        variables = models.init(model, jax.random.key(0), SIDE)
        file = exported(model, variables)
        expected = jax.jit(models.evaluation_apply(model))(variables, images)
        np.testing.assert_allclose(run_onnx(file, images), expected, rtol=1e-5, atol=1e-5)

    kinds, leaves = [node.op_type for node in file.graph.node], jax.tree.leaves(variables)
    assert kinds.count("Conv") == sum(leaf.ndim == 4 for leaf in leaves)


def assert_same_training(both: Pair) -> None:
    """Compares the logits and running statistics of two passes in training mode."""
    peer, apply = both.peer.train(), models.train_apply(both.model)
    params = both.variables["params"]
    statistics = {"batch_stats": both.variables["batch_stats"]}
    key, batches = jax.random.key(0), (both.images, both.images[:, ::-1].copy())
    with platforms.traced_for("any"):  # XLA's operations compile sooner than those for CPUs.
        run = jax.jit(apply).trace(params, statistics, batches[0], key).lower().compile()

    for images in batches:
        logits, statistics = run(params, statistics, images, key)
        with peers.torch().no_grad():
            expected = peer(nchw(images)).numpy()
        # float32 error of up to 150 normalisations, the last over as few as 4 values.
        assert_close({"logits": np.asarray(logits)}, {"logits": expected}, rtol=1e-3)

    reached = torch_names.to_timm(statistics)
    assert_close({n: a for n, a in reached.items() if "num_" not in n}, state(peer), rtol=1e-3)


def test_the_docs_list_the_student(name: str) -> None:
    student, millions = models.STUDENTS[name], parameters(name, 1000) / 1e6
    row = f"| `{name}` | {student.timm} | {student.torchvision} | {millions:.1f} M |"
    if student.timm:
        row += f" {gigamacs(name):.2f} |"
    lines = PAGE.read_text().splitlines()
    assert any(line.startswith(row) for line in lines), f"Add to docs/students.md: {row}"
