"""The factors of learning rates are those of timm's parameter groups."""

import importlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import encoder, parameter_groups, vit
from remem_jax.weights import timm_names, torch_names
from tests.oracles import peers
from tests.weights import timm_families

DECAY = 0.7
SIZE = vit.Size(patch=8, features=16, depth=3, heads=2)


def _factors(params: Any, head: tuple[str, ...], **options: float) -> dict[str, np.ndarray]:
    """Returns the factors by slash-joined name, as arrays that have one element along each axis."""
    options = {"layer_decay": DECAY, "body_rate": 1.0} | options
    factors = parameter_groups.rate_factors(params, is_head=lambda n: n.startswith(head), **options)
    arrays = jax.tree.map(lambda leaf, x: np.full((1,) * leaf.ndim, x), params, factors)
    flat: Any = traverse_util.flatten_dict(arrays, sep="/")
    return flat


def _timms(model: Any) -> dict[str, float]:
    """Returns timm's scale of the learning rate of each parameter."""
    peers.timm()
    optim = importlib.import_module("timm.optim")
    groups = optim.param_groups_layer_decay(model, layer_decay=DECAY)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scales[id(param)] for name, param in model.named_parameters()}


@pytest.mark.parametrize(
    "student",
    [
        "resnet18",
        "resnet26d",
        "regnety_004",
        "mobilenet_v2",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
        "efficientnet_lite0",
        "efficientnet_v2_b0",
    ],
)
def test_layers_of_a_student_are_timms(student: str) -> None:
    record = models.STUDENTS[student]
    params = models.shapes(record.make(classes=3), 32)
    with peers.torch().device("meta"):
        expected = _timms(peers.timm().create_model(record.timm, num_classes=3))

    arrays = traverse_util.unflatten_dict(_factors(params, record.head), sep="/")
    factors = torch_names.to_timm({"params": arrays})

    assert len(set(expected.values())) > 5
    assert {name: factor.item() for name, factor in factors.items()} == pytest.approx(expected)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_layers_of_a_vit_are_timms(pool: str) -> None:
    params = models.shapes(vit.make(variant=SIZE, classes=3, pool=pool), 16)
    with peers.torch().device("meta"):
        expected = _timms(
            peers.timm().models.vision_transformer.VisionTransformer(
                img_size=16,
                patch_size=SIZE.patch,
                embed_dim=SIZE.features,
                depth=SIZE.depth,
                num_heads=SIZE.heads,
                num_classes=3,
                **{"cls": {}, "gap": {"global_pool": "avg", "class_token": False}}[pool],
                fc_norm=False,
            )
        )

    filled: Any = jax.tree.map(
        lambda leaf, factor: np.full(leaf.shape, factor, np.float32),
        params,
        parameter_groups.rate_factors(
            params, is_head=lambda name: name.startswith("head/"), layer_decay=DECAY, body_rate=1.0
        ),
    )
    flat: Any = traverse_util.flatten_dict(filled, sep="/")
    factors = timm_names.to_timm(flat)

    assert {name: np.unique(factor).item() for name, factor in factors.items()} == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    "name", ["dinov2_reg", "clip", "siglip", "dinov3", "eva02_clip", "pe_core"]
)
def test_layers_of_todays_vits_are_timms(name: str) -> None:
    family = timm_families.FAMILIES[name]
    peer = family.make(timm_families.SIDES[0])
    expected = _timms(peer)

    arrays = timm_families.state_of(peer)
    layout = timm_names.layout_of(arrays)
    params = timm_names.from_timm(arrays, heads=timm_families.HEADS)
    nested = traverse_util.unflatten_dict(params, sep="/")
    factors = _factors(nested, ("head/",))
    filled = {ours: np.full(array.shape, factors[ours]) for ours, array in params.items()}
    actual = {ours: np.unique(a) for ours, a in timm_names.to_timm(filled, layout=layout).items()}

    assert {ours: factor.tolist() for ours, factor in actual.items() if ours in expected} == {
        ours: [pytest.approx(factor)] for ours, factor in expected.items()
    }


def test_stacked_blocks_have_the_factors_of_single_ones() -> None:
    shapes = models.shapes(vit.make(variant=SIZE, classes=3), 16)
    params: Any = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    options: Any = {
        "is_head": lambda name: name.startswith("head/"),
        "layer_decay": DECAY,
        "body_rate": 0.5,
    }

    def scaled(tree: Any) -> Any:
        factors = parameter_groups.rate_factors(tree, **options)
        return jax.tree.map(lambda x, factor: factor * x, tree, factors)

    stacked = encoder.unstack(scaled(encoder.stack(params)))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stacked, scaled(params))


def test_only_the_body_has_the_rate_of_the_body() -> None:
    params = models.shapes(models.make("resnet18", classes=3), 32)
    params = {**params, "projection": {"kernel": jnp.zeros((2, 2))}}

    factors = _factors(params, ("fc/", "projection/"), layer_decay=1.0, body_rate=0.1)

    head = {"fc/kernel", "fc/bias", "projection/kernel"}
    assert {name for name, factor in factors.items() if factor == 1.0} == head
    assert all(factor == 0.1 for name, factor in factors.items() if name not in head)


def test_names_without_blocks_have_no_layers() -> None:
    params = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 2)))["params"]

    with pytest.raises(SettingError, match="layer_decay must be 1"):
        _factors(params, ("head/",))
