"""Every family of timm's ViTs: outputs, gradients and files, beside timm's own modules."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.weights import augreg, folding, recorded, timm, timm_names
from tests.oracles import peers
from tests.weights.timm_families import CLASSES, FAMILIES, HEADS, SIDES, Family, state_of


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (2, SIDES[1], SIDES[1], 3)).astype(np.float32)


def as_torch(images: np.ndarray) -> Any:
    return peers.torch().tensor(images.transpose(0, 3, 1, 2).copy())


def saved(family: Family, path: pathlib.Path) -> tuple[Any, augreg.Checkpoint]:
    """Returns timm's module, and the file of its state as we read it."""
    peer = family.make(SIDES[0])
    timm.save(path, state_of(peer))
    return peer, augreg.read(path, heads=HEADS, facts=family.facts)


def require_close(actual: Any, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * largest)


def _tokens_and_logits(model: Any, images: Any) -> tuple[Any, Any]:
    tokens = model.trunk(images)
    return tokens, model.head(tokens)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_logits_are_timms(
    name: str, side: int, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    peer, checkpoint = saved(FAMILIES[name], tmp_path / "vit.safetensors")
    images = images[:, :side, :side]
    if side != SIDES[0]:
        peer.set_input_size(img_size=(side, side))
    with peers.torch().no_grad():
        expected = peer.forward_features(as_torch(images)).numpy()
        expected_logits = peer(as_torch(images)).numpy()

    model = checkpoint.make(classes=CLASSES)
    variables = augreg.into(checkpoint, model, image_size=side, resize="dinov2")
    outputs: Any = jax.jit(lambda v, x: model.apply(v, x, method=_tokens_and_logits))
    tokens, logits = outputs(variables, images)

    assert tokens.shape[1] == model.prefix + (side // 4) ** 2
    require_close(tokens, expected)
    require_close(logits, expected_logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_torchs(name: str, images: np.ndarray, tmp_path: pathlib.Path) -> None:
    peer, checkpoint = saved(FAMILIES[name], tmp_path / "vit.safetensors")
    images = images[:, : SIDES[0], : SIDES[0]]
    peer(as_torch(images)).square().mean().backward()
    expected = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}

    model = checkpoint.make(classes=CLASSES)
    params = augreg.into(checkpoint, model)["params"]
    apply = models.evaluation_apply(model)
    pixels = jnp.asarray(images)
    loss = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply({"params": p}, pixels)))))
    gradients = augreg.flatten(loss(params))
    # Its position, which timm's network lacks, has the gradient of [CLS] too.
    layout = checkpoint.layout._replace(has_cls_position=True)
    actual = timm_names.to_timm(gradients, layout=layout)
    if not checkpoint.layout.has_cls_position:
        actual["pos_embed"] = actual["pos_embed"][:, 1:]

    assert set(actual) >= set(expected)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for parameter, gradient in expected.items():
        # Some are zero but for rounding, such as those of a bias of all keys.
        tolerance = 2e-4 * max(np.abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(actual[parameter], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_loads_strictly_what_we_save(name: str, tmp_path: pathlib.Path) -> None:
    torch, path = peers.torch(), tmp_path / "ours.safetensors"
    peer, checkpoint = saved(FAMILIES[name], tmp_path / "vit.safetensors")
    model = checkpoint.make(classes=CLASSES)
    params = augreg.flatten(augreg.into(checkpoint, model)["params"])
    timm.save(path, timm_names.to_timm(params, layout=checkpoint.layout))

    state = {name: torch.tensor(array) for name, array in timm.read(path).items()}
    other = FAMILIES[name].make(SIDES[0])
    other.load_state_dict(state, strict=True)

    assert {n: a.tobytes() for n, a in state_of(other).items()} == {
        n: a.tobytes() for n, a in state_of(peer).items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_ours_records_its_whole_network(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ours.safetensors"
    _, checkpoint = saved(FAMILIES[name], tmp_path / "vit.safetensors")
    model = checkpoint.make(classes=CLASSES)
    params = augreg.flatten(augreg.into(checkpoint, model)["params"])
    timm.save(
        path,
        timm_names.to_timm(params, layout=checkpoint.layout),
        recorded.texts(recorded.of_model(model, "vit_of_timm")),
    )

    back = augreg.read(path)

    assert back.make(classes=CLASSES) == model
    assert back.architecture == "vit_of_timm"
    for parameter, array in params.items():
        np.testing.assert_array_equal(back.arrays[parameter], array)


@pytest.mark.parametrize(
    ("name", "residual"),
    [*((name, "two_minus") for name in FAMILIES), ("augreg", "plain"), ("radio", "plain")],
)
def test_timm_computes_the_reweighted_network_from_the_folded_file(
    name: str, residual: str, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    peer, checkpoint = saved(FAMILIES[name], tmp_path / "vit.safetensors")
    images = images[:, : SIDES[0], : SIDES[0]]
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9, "residual": residual}
    model = checkpoint.make(classes=CLASSES, **weights)
    variables = augreg.into(checkpoint, model)
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    with peers.torch().no_grad():
        plain = peer(as_torch(images)).numpy()

    folded = folding.fold(augreg.flatten(variables["params"]), **weights)
    state = timm_names.to_timm(folded, layout=checkpoint.layout)
    torch = peers.torch()
    peer.load_state_dict({n: torch.tensor(a) for n, a in state.items()}, strict=True)
    with torch.no_grad():
        actual = peer(as_torch(images)).numpy()

    require_close(actual, expected)
    assert np.abs(plain - expected).max() > 0.01 * np.abs(expected).max()
