"""Every family of files is recognised and loaded; errors name every corruption."""

import logging
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.weights import augreg, matching, names

Arrays = dict[str, np.ndarray]
PLAIN = vit.Size(patch=4, features=12, depth=2, heads=3)
BLOCK = "Transformer/encoderblock_1"
HYBRID = vit.Size(patch=1, features=12, depth=1, heads=3, stem=(1, 1))


def model_of(size: vit.Size = PLAIN, **options: Any) -> vit.VisionTransformer:
    return vit.make(variant=size, classes=5, **options)


def store(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz."""
    contents: dict[str, Any] = dict(arrays)
    np.savez(path, **contents)


def filled(model: vit.VisionTransformer, rng: np.random.Generator, image_size: int = 16) -> Arrays:
    """Random parameters under our names, nowhere zero."""
    shapes = augreg.names_and_shapes(model, image_size)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def renamed(arrays: Arrays, *pairs: tuple[str, str]) -> Arrays:
    """Renames arrays as other code bases do, by replacing parts of names."""
    result = {}
    for name, array in arrays.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = array
    return result


def in_linen(arrays: Arrays) -> Arrays:
    """Renames to big_vision's numbering of submodules and its name of positions."""
    return renamed(
        arrays,
        ("LayerNorm_2", "LayerNorm_1"),
        ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
        ("MlpBlock_3", "MlpBlock_0"),
        ("Transformer/posembed_input/", ""),
    )


def stacked(arrays: Arrays) -> Arrays:
    """Stacks blocks on a leading axis, as a scan over layers does."""
    result = {n: a for n, a in arrays.items() if "encoderblock" not in n}
    for name in arrays:
        if "encoderblock_0/" in name:
            both = [arrays[name.replace("block_0/", f"block_{i}/")] for i in range(2)]
            result[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    return result


def under(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def in_old_group_norms(arrays: Arrays) -> Arrays:
    return {n: a.reshape(1, 1, 1, -1) if "gn" in n else a for n, a in arrays.items()}


OTHERS = {"opt/state/step": np.zeros(1), "chrono/x": np.zeros(2)}
FAMILIES: dict[str, tuple[vit.VisionTransformer, Callable[[Arrays], Mapping[str, Any]], str]] = {
    "augreg": (model_of(), dict, "vit_jax"),
    "i21k originals": (model_of(representation=12), dict, "vit_jax"),
    "hybrid": (model_of(HYBRID), dict, "vit_jax"),
    "hybrid, root alone": (model_of(PLAIN._replace(patch=2, stem=())), dict, "vit_jax"),
    "hybrid, old norms": (model_of(HYBRID), in_old_group_norms, "vit_jax"),
    "sam": (model_of(), lambda a: under("opt/target/", a) | OTHERS, "vit_jax"),
    "gsam": (model_of(pool="gap"), dict, "vit_jax"),
    "vit_jax of today": (
        model_of(),
        lambda a: renamed(in_linen(a), ("pos_emb", "Transformer/posembed_input/pos_emb")),
        "vit_jax",
    ),
    "big_vision gap": (model_of(pool="gap"), in_linen, "big_vision"),
    "big_vision map": (model_of(pool="map"), in_linen, "big_vision"),
    "big_vision map, inlined": (
        model_of(pool="map"),
        lambda a: renamed(in_linen(a), ("MAPHead_0/", "")),
        "big_vision",
    ),
    "big_vision scanned": (model_of(pool="map"), lambda a: stacked(in_linen(a)), "big_vision"),
    "big_vision old positions": (
        model_of(pool="gap"),
        lambda a: renamed(in_linen(a), ("pos_emb", "Transformer/pos_emb")),
        "big_vision",
    ),
    "big_vision computed positions": (
        model_of(pool="gap", positions="sincos2d", representation=12),
        in_linen,
        "big_vision",
    ),
    "big_vision params": (
        model_of(pool="gap"),
        lambda a: under("params/", in_linen(a)) | OTHERS,
        "big_vision",
    ),
    "two towers": (
        model_of(pool="map"),
        lambda a: under("params/img/", in_linen(a)) | {"params/txt/x": np.ones(3)},
        "big_vision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recognised_and_read_completely(
    family: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    model, as_stored, form = FAMILIES[family]
    arrays = filled(model, rng)
    store(tmp_path / "vit.npz", as_stored(arrays))

    result, variables = augreg.make(tmp_path / "vit.npz")

    assert result == model
    assert augreg.read(tmp_path / "vit.npz").form == form
    flat = augreg.flatten(variables["params"])
    assert set(flat) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(flat[name], array, err_msg=name)


def test_the_class_token_of_big_vision_has_no_position(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    arrays = filled(model_of(), rng)
    with_cls = arrays[names.POSITION]
    stored = in_linen(arrays)
    stored["cls"], stored["pos_embedding"] = arrays["cls"] + with_cls[:, :1], with_cls[:, 1:]
    store(tmp_path / "vit.npz", stored)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    model = model_of()
    expected: Any = model.apply({"params": traverse(arrays)}, images)

    actual: Any = model.apply(augreg.load(tmp_path / "vit.npz", model), images)

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def traverse(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A nested dict of slash-joined names."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    return tree


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
def test_what_is_saved_under_big_visions_names_is_the_same_function(
    pool: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    model = model_of(pool=pool)
    params = traverse(filled(model, rng))
    images = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)

    augreg.save(tmp_path / "bv.npz", params, form="big_vision")

    stored = np.load(tmp_path / "bv.npz")
    assert "pos_embedding" in stored
    assert "Transformer/encoderblock_1/MlpBlock_0/Dense_1/bias" in stored
    assert stored["pos_embedding"].shape == (1, 16, 12)
    expected: Any = model.apply({"params": params}, images)
    actual: Any = model.apply(augreg.load(tmp_path / "bv.npz", model), images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "form"),
    [({"pool": "map"}, "vit_jax"), ({"pool": "gap", "positions": "sincos2d"}, "vit_jax")],
)
def test_what_vit_jax_lacks_is_not_saved_in_its_form(
    options: dict[str, Any], form: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    params = traverse(filled(model_of(**options), rng))

    with pytest.raises(SettingError, match="save it as big_vision"):
        augreg.save(tmp_path / "vit.npz", params, form=form)

    assert not list(tmp_path.iterdir())


def test_hybrids_are_not_saved_as_big_visions(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(SettingError, match="no hybrid ViTs"):
        augreg.save(tmp_path / "x.npz", traverse(filled(model_of(HYBRID), rng)), form="big_vision")


def test_bfloat16_is_read_as_numpy_stores_it(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    arrays = filled(model_of(), rng)
    halves: dict[str, Any] = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
    store(tmp_path / "vit.npz", halves)
    assert np.load(tmp_path / "vit.npz")["cls"].dtype == np.dtype("V2")

    flat = augreg.flatten(augreg.load(tmp_path / "vit.npz", model_of())["params"])

    for name, array in halves.items():
        np.testing.assert_array_equal(flat[name], array.astype(np.float32))


def test_a_tree_inside_the_file_can_be_named(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    first, second = (filled(model_of(), rng) for _ in range(2))
    store(tmp_path / "two.npz", under("a/", first) | under("b/c/", second))

    flat = augreg.flatten(augreg.load(f"{tmp_path}/two.npz:b/c", model_of())["params"])

    np.testing.assert_array_equal(flat["cls"], second["cls"])


def test_the_error_for_a_file_without_a_vit_lists_its_arrays(tmp_path: pathlib.Path) -> None:
    store(tmp_path / "bert.npz", {"word/kernel": np.zeros(2)})
    with pytest.raises(SettingError, match=r"holds no ViT.*it has word/kernel.*sub/tree"):
        augreg.read(tmp_path / "bert.npz")


def test_pre_logits_are_kept_on_request(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    arrays = filled(model_of(representation=12), rng)
    store(tmp_path / "vit.npz", arrays)

    dropped = augreg.load(tmp_path / "vit.npz", model_of())["params"]
    params = augreg.load(tmp_path / "vit.npz", model_of(representation=12))["params"]

    assert "pre_logits" not in dropped
    np.testing.assert_array_equal(params["pre_logits"]["kernel"], arrays["pre_logits/kernel"])


def test_a_head_of_zeros_is_logged(
    rng: np.random.Generator, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = filled(model_of(), rng)
    arrays["head/kernel"][:] = 0
    store(tmp_path / "vit.npz", arrays)

    with caplog.at_level(logging.WARNING, logger="absl"):
        augreg.load(tmp_path / "vit.npz", model_of())

    assert "head" in caplog.text
    assert "all zeros" in caplog.text


def test_the_error_for_a_file_of_another_pool_names_it(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    store(tmp_path / "vit.npz", in_linen(filled(model_of(pool="map"), rng)))
    with pytest.raises(SettingError, match=r"missing: cls.*its pool is 'map'.*pool='map'"):
        augreg.load(tmp_path / "vit.npz", model_of())


def test_pruned_blocks_in_the_file_are_ignored(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    store(tmp_path / "vit.npz", filled(model_of(), rng))

    _, variables = augreg.make(tmp_path / "vit.npz", pruned_mlp=1)

    assert "MlpBlock_3" not in variables["params"]["Transformer"]["encoderblock_1"]
    assert "MlpBlock_3" in variables["params"]["Transformer"]["encoderblock_0"]


@pytest.mark.parametrize(("old", "new"), [(4, 6), (6, 4), (3, 3), (14, 24)])
def test_positions_are_resized_as_torch_does(old: int, new: int, rng: np.random.Generator) -> None:
    from tests.oracles import peers

    torch = peers.torch()
    positions = rng.normal(size=(1, old * old, 5)).astype(np.float32)
    grid = torch.from_numpy(positions.reshape(1, old, old, 5)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, (new, new), mode="bilinear", align_corners=False, antialias=False
    )
    expected = resized.permute(0, 2, 3, 1).reshape(1, new * new, 5).numpy()

    actual = matching.resize_positions(positions, new * new, prefix=0, way="timm")

    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.fixture
def stored(rng: np.random.Generator, tmp_path: pathlib.Path) -> pathlib.Path:
    store(tmp_path / "vit.npz", filled(model_of(), rng))
    return tmp_path / "vit.npz"


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(stored: pathlib.Path, share: float) -> None:
    content = stored.read_bytes()
    stored.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SettingError, match=r"vit\.npz is not a whole \.npz"):
        augreg.read(stored)


def test_a_flipped_bit_is_detected(stored: pathlib.Path) -> None:
    with zipfile.ZipFile(stored) as archive:
        info = archive.getinfo("cls.npy")
    raw = bytearray(stored.read_bytes())
    raw[info.header_offset + info.compress_size] ^= 1  # Inside the array.
    stored.write_bytes(raw)
    with pytest.raises(SettingError, match=r"Bad CRC-32 for file 'cls\.npy'"):
        augreg.read(stored)


def test_a_pickled_object_is_never_loaded(stored: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arrays: dict[str, Any] = dict(np.load(stored))
    arrays["cls"] = np.array([{"run": "me"}], dtype=object)
    store(tmp_path / "evil.npz", arrays)
    with pytest.raises(SettingError, match=r"cls in .*evil\.npz is a pickled object"):
        augreg.read(tmp_path / "evil.npz")


def test_a_shape_that_the_bytes_do_not_fill_is_refused(
    stored: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 1, 10**12)}
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(tmp_path / "x.npz", "w") as out:
        for info in archive.infolist():
            if info.filename != "cls.npy":
                out.writestr(info.filename, archive.read(info))
        with out.open("cls.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
            member.write(b"\0" * 48)
    with pytest.raises(SettingError, match=r"cls in .* should have 4,000,000,000,000 bytes"):
        augreg.read(tmp_path / "x.npz")


def test_a_file_that_claims_an_absurd_size_is_refused(
    stored: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = zipfile.ZipFile.infolist

    def inflated(self: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        result = infos(self)
        for info in result:
            if info.filename == "cls.npy":
                info.file_size = 2**40
        return result

    monkeypatch.setattr(zipfile.ZipFile, "infolist", inflated)
    with pytest.raises(SettingError, match=r"1024 GiB \(most in cls\)"):
        augreg.read(stored)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"{BLOCK}/LayerNorm_2/scale", f"{BLOCK}/LayerNorm_7/scale"),
        ("Transformer/encoder_norm/bias", "Transformer/encoder_norm/b"),
        (f"{BLOCK}/MlpBlock_3/Dense_1/bias", "Transformer/encoderblock_5/MlpBlock_3/Dense_1/bias"),
        (names.POSITION, "Transformer/positions"),
        ("cls", "class"),
    ],
)  # fmt: skip
def test_a_renamed_array_is_named(
    stored: pathlib.Path, tmp_path: pathlib.Path, old: str, new: str
) -> None:
    arrays = {new if name == old else name: array for name, array in np.load(stored).items()}
    store(tmp_path / "x.npz", arrays)
    with pytest.raises(SettingError, match=r"x\.npz"):
        augreg.load(tmp_path / "x.npz", model_of())


def test_a_swapped_shape_is_named(stored: pathlib.Path, tmp_path: pathlib.Path) -> None:
    name = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"
    arrays: dict[str, Any] = dict(np.load(stored))
    arrays[name] = arrays[name].T
    store(tmp_path / "x.npz", arrays)
    with pytest.raises(SettingError, match=rf"mis-shaped: {name} \(48, 12\) instead of \(12, 48\)"):
        augreg.load(tmp_path / "x.npz", model_of())


def test_the_model_has_every_option_of_the_file(stored: pathlib.Path) -> None:
    model, variables = augreg.make(stored, classes=3, image_size=8, mlp_weight=0.8)

    assert (model.classes, model.mlp_weight, model.pool) == (3, 0.8, "cls")
    assert not jax.tree.reduce(lambda a, b: a or bool(b.any()), variables["params"]["head"], False)
    assert variables["params"]["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, 5, 12)
