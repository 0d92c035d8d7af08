"""Names and paths of published weights, and the choice from AugReg's index."""

import pathlib
import re

import pytest

from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.weights import catalog

STEM = "B_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REMEM_MIRROR", raising=False)
    return tmp_path / "cache"


def row(name: str, val: str, adapted: str = "cifar100", res: int = 224, tuned: str = "0") -> dict:
    return {
        "filename": name,
        "ds": name.split("-")[1],
        "final_val": val,
        "adapt_ds": adapted,
        "adapt_resolution": str(res),
        "adapt_final_val": tuned,
        "adapt_filename": f"{name}--{adapted}-res_{res}",
    }


@pytest.mark.parametrize("name", catalog.PUBLISHED)
def test_published_weights_are_of_the_variant_in_their_name(name: str) -> None:
    published = catalog.PUBLISHED[name]

    assert published.variant in vit.VARIANTS
    assert published.name == name == f"{name.split(':')[0]}:{published.variant}"


def test_no_two_names_mean_one_file() -> None:
    paths = [published.path for published in catalog.PUBLISHED.values()]

    assert len(set(paths)) == len(paths) > 40


@pytest.mark.parametrize("name", [name for name in catalog.PUBLISHED if "augreg" in name])
def test_files_of_augreg_are_named_by_its_grammar(name: str) -> None:
    grammar = (
        r"augreg/\w+_\d+-(i1k|i21k)-300ep-lr_0.001-aug_(none|light[01]|medium[12]|strong[12])"
        r"-wd_0.(03|1)-do_0.[01]-sd_0.[01](--imagenet2012-steps_20k-lr_0.0[13]-res_384)?\.npz"
    )

    assert re.fullmatch(grammar, catalog.PUBLISHED[name].path)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("augreg:R26+S/32", "augreg/R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0"),
        ("i21k:R50+L/32", "imagenet21k/R50+ViT-L_32"),
        ("i21k-i1k:B/16", "imagenet21k+imagenet2012/ViT-B_16-224"),
        ("sam:S/16", "sam/ViT-S_16"),
    ],
)
def test_a_name_means_the_published_file(name: str, path: str) -> None:
    assert catalog.find(name).path == f"{path}.npz"


@pytest.mark.parametrize(
    "published",
    [
        published
        for published in catalog.PUBLISHED.values()
        if published.mebibytes and vit.VARIANTS[published.variant].stem is None
    ],
    ids=lambda published: published.name,
)
def test_known_sizes_are_those_of_the_parameters(published: catalog.Published) -> None:
    size = vit.VARIANTS[published.variant]
    with_state = published.name == "sam:S/16"  # Holds the optimizer's two moments too.
    blocks = size.depth * 12 * size.features**2
    classes = 21_843 if published.pretraining == "ImageNet-21k" else 1000
    ends = size.features * (classes + 3 * size.patch**2)

    assert (published.mebibytes or 0) * 2**20 == pytest.approx(
        4 * (blocks + ends) * (3 if with_state else 1),
        rel=0.04,  # Biases, positions and pre_logits.
    )


def test_table_4_starts_from_three_published_weights_of_one_size() -> None:
    actual = [catalog.find(name) for name in catalog.TABLE_4.values()]

    assert {published.variant for published in actual} == {"B/16"}
    assert len({published.path for published in actual}) == 3


@pytest.mark.parametrize("end", ["", ".npz"])
def test_any_file_of_augreg_has_a_name(end: str) -> None:
    actual = catalog.find(f"augreg:{STEM}{end}")

    assert actual == catalog.Published(
        f"augreg:{STEM}", "B/16", f"augreg/{STEM}.npz", 391.4, "ImageNet-21k"
    )


@pytest.mark.parametrize(
    ("stem", "mebibytes", "pretraining"),
    [
        (STEM.replace("i21k", "i1k"), 330.2, "ImageNet-1k"),
        (STEM.replace("i21k", "i21k_30"), 391.4, "ImageNet-21k"),
        (f"{STEM}--imagenet2012-steps_20k-res_224", 330.2, "ImageNet-21k, then ImageNet-1k"),
        (f"{STEM}--cifar100-steps_1k-lr_0.03-res_384", None, "ImageNet-21k, then cifar100"),
    ],
)
def test_the_size_of_a_file_of_augreg_is_that_of_its_head(
    stem: str, mebibytes: float | None, pretraining: str
) -> None:
    actual = catalog.find(f"augreg:{stem}")

    assert (actual.mebibytes, actual.pretraining) == (mebibytes, pretraining)


@pytest.mark.parametrize(
    ("init", "listed"),
    [
        ("augreg:B/17", "augreg:B/16"),
        ("agreg:B/16", "augreg:B/16"),
        ("bundled:Nano/8", "bundled:Ti/16"),
        (f"sam:{STEM}", "sam:B/16"),
        ("augreg:../B_16-i21k-x", "augreg:B/16"),
    ],
)
def test_an_unknown_name_is_refused_with_similar_ones(init: str, listed: str) -> None:
    with pytest.raises(SettingError, match=f"{re.escape(init)}.*{listed}.*config.teacher.init"):
        catalog.locate(init)


def test_bundled_weights_exist() -> None:
    assert catalog.locate("bundled:Ti/16").is_file()


def test_bundled_weights_are_of_the_variant_and_data_of_their_source() -> None:
    source = catalog.find("bundled:Ti/16")

    assert source.variant == "Ti/16"
    assert source.path.startswith("augreg/Ti_16-i21k-300ep")
    assert source.pretraining == "ImageNet-21k, then ImageNet-1k"


def test_a_name_that_is_no_longer_bundled_names_its_replacement() -> None:
    with pytest.raises(SettingError, match=r"Pico/8 is no longer bundled.* to bundled:Ti/16"):
        catalog.locate("bundled:Pico/8")


@pytest.mark.parametrize("init", ["a/B_16.npz", "/a:b/c.npz", "x.npz:params/img", "w.safetensors"])
def test_a_path_is_returned_unchanged(init: str) -> None:
    assert catalog.locate(init) == pathlib.Path(init)


def test_a_path_may_start_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")

    assert catalog.locate("~/a.npz") == pathlib.Path("/somewhere/a.npz")
    assert catalog.split_path("~/a.npz:img") == (pathlib.Path("/somewhere/a.npz"), "img")


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("a.npz", ("a.npz", "")),
        ("a.npz:params/img/", ("a.npz", "params/img")),
        ("/b:c/a.npz", ("/b:c/a.npz", "")),
        ("a.safetensors", ("a.safetensors", "")),
    ],
)
def test_a_part_of_a_file_is_named_after_a_colon(init: str, expected: tuple[str, str]) -> None:
    path, subtree = catalog.split_path(init)

    assert (str(path), subtree) == expected


def test_the_cache_has_the_paths_of_the_bucket(cache: pathlib.Path) -> None:
    assert catalog.locate("sam:B/16") == cache / "weights/sam/ViT-B_16.npz"


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize("start", ["", "file://"])
def test_a_mirror_that_is_a_folder_is_used_in_place(
    how: str, start: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"{start}{tmp_path}"
    if how == "variable":
        monkeypatch.setenv("REMEM_MIRROR", mirror)

    path = catalog.locate("sam:B/16", mirror=mirror if how == "argument" else "")

    assert path == tmp_path / "sam/ViT-B_16.npz"


@pytest.mark.parametrize("mirror", ["https://a.example/b", "https://a.example/b/"])
def test_a_mirror_that_is_a_url_replaces_that_of_the_bucket(mirror: str) -> None:
    assert catalog.url("x+y/z.npz", mirror) == "https://a.example/b/x%2By/z.npz"
    assert catalog.url("x+y/z.npz") == f"{catalog.BUCKET}x%2By/z.npz"


def test_the_pick_is_the_best_on_validation_data_of_its_variant_and_pretraining() -> None:
    rows = [
        row("B_16-i1k-a", "0.7"),
        row("B_16-i1k-b", "0.8"),
        row("B_16-i1k-c", "0.75"),
        row("B_16-i1k-d", ""),
        row("B_16-i1k-e", "nan"),
        row("B_16-i21k-f", "0.9"),
        row("B_32-i1k-g", "0.9"),
        row("R50_L_32-i1k-h", "0.9"),
    ]

    assert catalog.pick(rows, "B/16", "i1k") == ("augreg:B_16-i1k-b", 0.8)
    assert catalog.pick(rows, "R50+L/32", "i1k").name == "augreg:R50_L_32-i1k-h"


def test_the_pick_is_the_last_of_equals() -> None:
    rows = [row("B_16-i21k-a", "0.5"), row("B_16-i21k-b", "0.5"), row("B_16-i21k-c", "0.4")]

    assert catalog.pick(rows, "B/16", "i21k").name == "augreg:B_16-i21k-b"


def test_the_pick_of_fine_tuned_ones_is_the_best_after_fine_tuning() -> None:
    rows = [
        row("B_16-i21k-a", "0.9", "imagenet2012", 224, "0.83"),
        row("B_16-i21k-b", "0.5", "imagenet2012", 224, "0.84"),
        row("B_16-i21k-c", "0.5", "imagenet2012", 384, "0.86"),
        row("B_16-i21k-d", "0.5", "cifar100", 224, "0.93"),
    ]

    best = catalog.pick(rows, "B/16", "i21k", adapted="imagenet2012", resolution=224)

    assert best == ("augreg:B_16-i21k-b--imagenet2012-res_224", 0.84)
    assert catalog.find(best.name).path == "augreg/B_16-i21k-b--imagenet2012-res_224.npz"


def test_a_pick_without_candidates_names_what_is_missing() -> None:
    rows = [row("B_16-i21k-a", "0.9", "cifar100", 224, "0.83")]

    with pytest.raises(SettingError, match="no B/16 pretrained on i1k"):
        catalog.pick(rows, "B/16", "i1k")
    with pytest.raises(SettingError, match="fine-tuned on cifar100 at 384 pixels"):
        catalog.pick(rows, "B/16", "i21k", adapted="cifar100", resolution=384)
    with pytest.raises(SettingError, match="must be one of Ti/16"):
        catalog.pick(rows, "H/14", "i21k")
