"""timm's names and files: timm loads them, and gives the same outputs."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.weights import augreg, folding, names, timm, timm_attention, timm_names
from tests.oracles import peers, vit_numpy

CLASSES = 5
PLAIN = vit.Size(patch=4, features=16, depth=2, heads=2)
# Pool, size and side of the images; the hybrids have the stems of the published ones.
FAMILIES = {
    "cls": ("cls", PLAIN, 16),
    "gap": ("gap", PLAIN, 16),
    "map": ("map", PLAIN, 16),
    "wide": ("cls", PLAIN._replace(mlp=24), 16),
    "stem": ("cls", PLAIN._replace(patch=1, stem=(1, 2)), 32),
    "R+Ti/16": ("cls", PLAIN._replace(patch=8, stem=()), 64),
    "R26+S/32": ("cls", PLAIN._replace(patch=1, stem=(2, 2, 2, 2)), 64),
    "R50+B/16": ("cls", PLAIN._replace(patch=1, stem=(3, 4, 9)), 32),
}
OF_AUGREG = [family for family in FAMILIES if family != "gap"]
SMALL = [family for family in FAMILIES if not family.startswith(("R26", "R50"))]


def random_arrays(family: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of a family, under our names."""
    pool, size, image_size = FAMILIES[family]
    model = vit.VisionTransformer(size, CLASSES, pool=pool)
    shapes = augreg.names_and_shapes(model, image_size)
    # Scales of about 1 for all layers, so that each affects the outputs.
    arrays = {n: rng.normal(size=shape, scale=0.3) for n, shape in shapes.items()}
    return {n: (a + n.endswith("scale")).astype(np.float32) for n, a in arrays.items()}


def peer(family: str) -> Any:
    """The model of a family in timm."""
    library = peers.timm()
    pool, size, image_size = FAMILIES[family]
    options: dict[str, Any] = {
        "img_size": image_size,
        "embed_dim": size.features,
        "depth": size.depth,
        "num_heads": size.heads,
        "mlp_ratio": size.hidden / size.features,
        "num_classes": CLASSES,
        "patch_size": size.patch,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[pool],
        "class_token": pool == "cls",
        "fc_norm": False,
    }
    if size.stem is None:
        return library.models.vision_transformer.VisionTransformer(**options).eval()
    hybrid = library.models.vision_transformer_hybrid
    backbone = hybrid._resnetv2(size.stem)
    return hybrid._create_vision_transformer_hybrid(
        "vit_tiny_r_s16_p8_224", backbone, **options
    ).eval()


def state_of(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def fill(model: Any, arrays: dict[str, np.ndarray]) -> None:
    torch = peers.torch()
    model.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()}, strict=True)


def outputs(model: Any, images: np.ndarray) -> np.ndarray:
    torch = peers.torch()
    with torch.no_grad():
        return model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


def require_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_timm_and_back_changes_nothing(family: str, rng: np.random.Generator) -> None:
    arrays = random_arrays(family, rng)

    back = timm_names.from_timm(timm_names.to_timm(arrays), heads=2)

    require_equal(back, arrays)


@pytest.mark.parametrize("family", SMALL)
def test_timm_takes_every_array_and_gives_our_outputs(
    family: str, rng: np.random.Generator
) -> None:
    model, arrays = peer(family), random_arrays(family, rng)
    _, size, image_size = FAMILIES[family]
    image = rng.uniform(-1, 1, (image_size, image_size, 3)).astype(np.float32)
    expected = vit_numpy.logits(
        arrays,
        image,
        patch=size.patch,
        heads=size.heads,
        alpha=1.0,
        beta=1.0,
        plain=False,
        exact_gelu=True,
    )

    fill(model, timm_names.to_timm(arrays))
    (actual,) = outputs(model, image[None])

    # float32, and other epsilons in timm's stems.
    np.testing.assert_allclose(actual, expected, atol=1e-5 if size.stem is None else 1e-4)


@pytest.mark.parametrize("family", OF_AUGREG)
def test_timms_own_loader_of_our_names_agrees(
    family: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    model, arrays = peer(family), random_arrays(family, rng)
    np.savez(tmp_path / "vit.npz", **arrays)  # pyright: ignore[reportArgumentType]

    model.load_pretrained(str(tmp_path / "vit.npz"))

    require_equal(timm_names.to_timm(arrays), state_of(model))


@pytest.mark.parametrize("family", ["cls", "gap", "map", "stem"])
def test_a_file_of_timm_gives_our_parameters(family: str, tmp_path: pathlib.Path) -> None:
    state = state_of(peer(family))
    pool, size, _ = FAMILIES[family]
    timm.save(tmp_path / "vit.safetensors", state)

    checkpoint = augreg.read(tmp_path / "vit.safetensors", heads=size.heads)

    assert checkpoint.size == size
    assert checkpoint.options["pool"] == pool
    assert checkpoint.options["gelu"] == "erf"
    require_equal(timm_names.to_timm(checkpoint.arrays), state)


def test_timm_loads_a_folded_teacher(rng: np.random.Generator) -> None:
    model, arrays = peer("cls"), random_arrays("cls", rng)
    image = rng.uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9}
    expected = vit_numpy.logits(
        arrays, image, patch=4, heads=2, alpha=0.8, beta=0.9, plain=False, exact_gelu=True
    )

    fill(model, timm_names.to_timm(folding.fold(arrays, residual="two_minus", **weights)))

    np.testing.assert_allclose(outputs(model, image[None])[0], expected, atol=1e-5)


def test_computed_positions_are_written_out(rng: np.random.Generator) -> None:
    model, arrays = peer("gap"), random_arrays("gap", rng)
    del arrays[names.POSITION]
    image = rng.uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    expected = vit_numpy.logits(
        arrays, image, patch=4, heads=2, alpha=1.0, beta=1.0, plain=False, exact_gelu=True
    )

    fill(model, timm_names.to_timm(arrays, grid=4))

    np.testing.assert_allclose(outputs(model, image[None])[0], expected, atol=1e-5)
    with pytest.raises(SettingError, match="no computed positions: give grid"):
        timm_names.to_timm(arrays)


def test_positions_without_that_of_cls_get_zeros_for_it(rng: np.random.Generator) -> None:
    arrays = random_arrays("cls", rng)
    arrays[names.POSITION][:, 0] = 0
    state = timm_names.to_timm(arrays)
    state["pos_embed"] = state["pos_embed"][:, 1:]

    require_equal(timm_names.from_timm(state, heads=2), arrays)


def test_pre_logits_are_read_and_not_written(rng: np.random.Generator) -> None:
    arrays = random_arrays("cls", rng)
    kernel, bias = rng.normal(size=(16, 16)), rng.normal(size=16)
    state = timm_names.to_timm(arrays) | {
        "pre_logits.fc.weight": kernel.T,
        "pre_logits.fc.bias": bias,
    }

    back = timm_names.from_timm(state, heads=2)

    require_equal(back, arrays | {"pre_logits/kernel": kernel, "pre_logits/bias": bias})
    with pytest.raises(SettingError, match="timm has no pre_logits"):
        timm_names.to_timm(back)


@pytest.mark.parametrize(("features", "heads"), [(192, 3), (1280, 16), (128, 2)])
def test_heads_are_those_of_the_published_sizes(features: int, heads: int) -> None:
    assert timm_attention.usual_heads(features) == heads


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"head_dist.weight": np.zeros((5, 16))}, "distilled DeiT.*head_dist"),
        ({"dist_token": np.zeros((1, 1, 16))}, "distilled DeiT.*dist_token"),
        ({"blocks.0.attns.0.norm.weight": np.zeros(16)}, "parallel sub-blocks, so ReMem's Eq. 2"),
        ({"blocks.0.in_proj.weight": np.zeros((16, 16))}, "parallel sub-blocks, so ReMem's Eq. 2"),
        ({"blocks.0.attn.relative_position_bias_table": np.zeros(4)}, "relative positions"),
        ({"blocks.0.attn.gate.weight": np.zeros((16, 16))}, "gated attention"),
        ({"blocks.0.attn.lambda_q1": np.zeros(16)}, "differential attention"),
        ({"blocks.1.ls3.gamma": np.zeros(16)}, r"no parameter for blocks\.1\.ls3\.gamma"),
        ({"blocks.0.attn.qkv.weight": None}, r"no blocks\.0\.attn\.qkv\.weight"),
        ({"blocks.0.attn.qkv.weight": np.zeros((16, 48))}, r"mis-shaped: \(16, 48\) .* \(48, 16\)"),
        ({"blocks.0.attn.proj.weight": np.zeros(16)}, r"proj\.weight is mis-shaped: \(16,\)"),
    ],
)
def test_an_unsupported_vit_is_named(
    rng: np.random.Generator, change: dict[str, Any], complaint: str
) -> None:
    state = {**timm_names.to_timm(random_arrays("cls", rng)), **change}

    with pytest.raises(SettingError, match=complaint):
        timm_names.from_timm({n: a for n, a in state.items() if a is not None}, heads=2)


def test_heads_that_do_not_divide_are_named(rng: np.random.Generator) -> None:
    state = timm_names.to_timm(random_arrays("cls", rng))
    with pytest.raises(SettingError, match="16 features, which do not divide into 3 heads"):
        timm_names.from_timm(state, heads=3)
    with pytest.raises(SettingError, match="give the number of heads"):
        timm_names.from_timm(state)


def test_reals_are_read_as_float32(tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(2, 3))
    types = {"half": np.float16, "brain": ml_dtypes.bfloat16, "double": np.float64}
    arrays = {name: values.astype(dtype) for name, dtype in types.items()}
    timm.save(tmp_path / "a.safetensors", arrays | {"steps": np.array(3)})

    result = timm.read(tmp_path / "a.safetensors")

    for name, array in arrays.items():
        np.testing.assert_array_equal(result[name], array.astype(np.float32), strict=True)
    np.testing.assert_array_equal(result["steps"], np.array(3), strict=True)


def test_a_transposed_array_is_stored_in_its_logical_order(
    tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    array = rng.normal(size=(2, 3)).astype(np.float32).T

    timm.save(tmp_path / "a.safetensors", {"a": array}, {"source": "here"})

    np.testing.assert_array_equal(timm.read(tmp_path / "a.safetensors")["a"], array)
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt", "source": "here"}


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None])
def test_a_broken_file_is_named(content: bytes | None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "broken.safetensors"
    complete = safetensors.numpy.save({"a": np.zeros(9, np.float32)})
    path.write_bytes(complete[:-5] if content is None else content)

    with pytest.raises(SettingError, match=r"broken\.safetensors is not a whole"):
        timm.read(path)


def test_a_type_that_numpy_lacks_is_named(tmp_path: pathlib.Path) -> None:
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (tmp_path / "a.safetensors").write_bytes(content)

    with pytest.raises(SettingError, match=r"a in .*a\.safetensors holds F8_E4M3"):
        timm.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_a_pickle_is_not_loaded(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SettingError, match=rf"{name} is a pickle.*save_file"):
        augreg.read(tmp_path / name)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingError, match=r"no checkpoint missing\.safetensors"):
        timm.read("missing.safetensors")


WRAPPERS = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "state_dict.model.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_prefixes_of_wrappers_are_removed(
    wrapper: str, tmp_path: pathlib.Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "absl")
    arrays = timm_names.to_timm(random_arrays("cls", rng))
    timm.save(tmp_path / "plain.safetensors", arrays)
    wrapped = {wrapper + name: array for name, array in arrays.items()}
    timm.save(tmp_path / "wrapped.safetensors", wrapped)

    plain, result = (
        augreg.read(tmp_path / f"{n}.safetensors", heads=2) for n in ("plain", "wrapped")
    )

    assert result.arrays.keys() == plain.arrays.keys()
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(result.arrays[name], array)
    assert "names are read without" in caplog.text


def test_arrays_beside_a_wrapped_model_are_ignored(rng: np.random.Generator) -> None:
    arrays = timm_names.to_timm(random_arrays("cls", rng))
    beside = {"optimizer.step": np.zeros(1), "ema.cls_token": np.zeros(2)}

    result, ignored = timm.unwrapped(
        {f"model.{n}": a for n, a in arrays.items()} | beside, "a file"
    )

    assert result.keys() == arrays.keys()
    assert sorted(ignored) == ["ema.cls_token", "optimizer.step"]


def test_wrappers_of_compiled_submodules_are_removed_from_names() -> None:
    result, _ = timm.unwrapped({"blocks.0._orig_mod.norm1.bias": np.zeros(1)}, "a file")

    assert result.keys() == {"blocks.0.norm1.bias"}


def test_several_models_in_one_file_are_refused(rng: np.random.Generator) -> None:
    arrays = timm_names.to_timm(random_arrays("cls", rng))
    both = {
        f"{start}{name}": array for start in ("model.", "module.") for name, array in arrays.items()
    }

    with pytest.raises(SettingError, match=r"holds several models.* model\., module\."):
        timm.unwrapped(both, "a file")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_named(
    bad: float, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    arrays = timm_names.to_timm(random_arrays("cls", rng))
    arrays["norm.bias"] = arrays["norm.bias"].astype(np.float64)
    arrays["norm.bias"][0] = bad
    timm.save(tmp_path / "a.safetensors", arrays)

    with pytest.raises(SettingError, match=r"a\.safetensors holds NaN or infinity, in norm\.bias:"):
        augreg.read(tmp_path / "a.safetensors")
