"""What `config.teacher.init` may name: files, and repositories of a local hub."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.models.normalisation import IMAGENET, Normalisation
from remem_jax.weights import (
    catalog,
    hub,
    hub_description,
    teacher_catalog,
    teacher_sources,
    timm,
)
from remem_jax.weights.teacher_sources import TeacherSource
from tests.weights import hub_client, hub_server
from tests.weights.hub_server import COMMIT, Hub

NAME = teacher_catalog.EXAMPLE
OTHER = "facebook/dinov3-vits16-pretrain-lvd1689m"
WEIGHTS = bytes(range(256)) * 2000
TIMM = {
    "architecture": "vit_small_patch14_reg4_dinov2",
    "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}
TRANSFORMERS = {"model_type": "dinov3_vit", "hidden_size": 384}
PREPROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
CARD = b"---\nlicense: other\nlicense_name: dinov3-license\n---\n# Model card\n---\n"
FETCH = """
from remem_jax.weights import teacher_sources

def fetch(name):
    source = teacher_sources.obtain(name)
    return {
        **source._asdict(),
        "path": str(source.path),
        "architecture": source.architecture,
        "licence": source.licence,
        "normalisation": source.normalisation,
    }
"""


@pytest.fixture
def site() -> Iterator[Hub]:
    of_timm = {"model.safetensors": WEIGHTS, "config.json": json.dumps(TIMM).encode()}
    of_transformers = {
        "model.safetensors": WEIGHTS,
        "config.json": json.dumps(TRANSFORMERS).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
        "README.md": CARD,
    }
    with hub_server.serving(Hub({NAME: of_timm, OTHER: of_transformers})) as site:
        yield site


def fetched(site: Hub, cache: pathlib.Path, *names: str, **variables: str) -> list[Any]:
    return hub_client.outcomes(hub_client.started(FETCH, site, cache, *names, **variables))


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_repositories_are_fetched_once_and_then_found_offline(
    site: Hub, tmp_path: pathlib.Path
) -> None:
    of_timm, of_transformers, again = fetched(site, tmp_path, NAME, f"{OTHER}@main", NAME)

    assert pathlib.Path(of_timm["path"]).read_bytes() == WEIGHTS
    assert (of_timm["repository"], of_timm["commit"], of_timm["config"]) == (NAME, COMMIT, TIMM)
    assert of_timm["architecture"] == "vit_small_patch14_reg4_dinov2"
    assert (of_timm["licence"], of_timm["preprocessor"]) == ("apache-2.0", {})
    assert of_timm["normalisation"] == [list(each) for each in IMAGENET]
    assert (of_transformers["architecture"], of_transformers["licence"]) == ("", "dinov3-license")
    assert of_transformers["preprocessor"] == PREPROCESSOR
    assert of_transformers["normalisation"] == [[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]]
    assert again == of_timm
    assert len([r for r in site.requests if r.startswith("GET /storage")]) == 2
    before = len(site.requests)
    names = (f"hf-hub:{NAME}", f"{OTHER}@{COMMIT}")
    assert fetched(site, tmp_path, *names, HF_HUB_OFFLINE="1") == [of_timm, of_transformers]
    assert len(site.requests) == before


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_interrupted_download_is_resumed(site: Hub, tmp_path: pathlib.Path) -> None:
    site.cuts = [100_000, 50_000]

    (source,) = fetched(site, tmp_path, NAME)

    assert pathlib.Path(source["path"]).read_bytes() == WEIGHTS
    assert site.ranges == ["", f"bytes={6 * 2**14}-", f"bytes={9 * 2**14}-"]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_restricted_repositories_need_the_token_of_the_user(
    site: Hub, tmp_path: pathlib.Path
) -> None:
    site.gated, site.private = {OTHER}, {NAME}

    restricted, private = fetched(site, tmp_path, OTHER, NAME)
    (refused,) = fetched(site, tmp_path, OTHER, HF_TOKEN="hf_wrong")
    site.ungranted = {OTHER}
    (ungranted,) = fetched(site, tmp_path, OTHER, HF_TOKEN="hf_right")
    site.ungranted = set()
    (source,) = fetched(site, tmp_path, OTHER, HF_TOKEN="hf_right")

    page = f"{site.url}/{OTHER}"
    assert f"Access to {OTHER} is restricted: ask for it at {page}, and give a token" in restricted
    assert "in HF_TOKEN or by `hf auth login`" in restricted
    assert ungranted == restricted
    assert "correct config.teacher.init; if it is private, give a token" in private
    assert "does not accept the token" in refused
    assert pathlib.Path(source["path"]).read_bytes() == WEIGHTS


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_without_a_connection_the_message_names_the_setting(
    site: Hub, tmp_path: pathlib.Path
) -> None:
    (offline,) = fetched(site, tmp_path, NAME, HF_HUB_OFFLINE="1")
    site.status = 418
    (failing,) = fetched(site, tmp_path, NAME)

    assert "HF_HUB_OFFLINE is set, and the cache" in offline
    files = "model.safetensors config.json preprocessor_config.json README.md"
    assert f"hf download {NAME} {files}` where there is a network" in offline
    for message in (offline, failing):
        assert "set config.teacher.init to the path of a file" in message
        assert "config.student" not in message


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_weights_in_another_form_get_an_error_that_names_what_to_take(
    site: Hub, tmp_path: pathlib.Path
) -> None:
    site.repositories |= {
        "me/sharded": {
            "model.safetensors.index.json": b"{}",
            "model-00001-of-00002.safetensors": WEIGHTS,
            "pytorch_model.bin": b"pickle",
        },
        "me/open-clip": {"open_clip_model.safetensors": WEIGHTS, "a.bin": b"pickle"},
        "me/pickled": {"pytorch_model.bin": b"pickle"},
    }

    sharded, open_clip, pickled = fetched(
        site, tmp_path, "me/sharded", "me/open-clip", "me/pickled"
    )

    assert "only model.safetensors.index.json: its weights are in several files" in sharded
    assert "timm/vit_base_patch16_clip_224.laion2b" in open_clip
    assert "only pytorch_model.bin, which is a pickle" in pickled
    for message in (sharded, open_clip, pickled):
        assert "set config.teacher.init to another repository" in message
    assert not site.ranges


def save(path: pathlib.Path, **metadata: str) -> None:
    timm.save(path, {"x": np.zeros(1, np.float32)}, metadata)


def test_a_file_has_the_description_beside_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path)
    bare = teacher_sources.obtain(str(path))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))

    source = teacher_sources.obtain(str(path))

    assert (bare.path, bare.repository, bare.normalisation, bare.licence) == (path, "", None, "")
    assert source.architecture == "vit_small_patch14_reg4_dinov2"
    assert source.normalisation == IMAGENET  # timm's, not the preprocessor's.
    assert (source.commit, source.metadata["format"]) == ("", "pt")


def test_the_network_of_openais_clip_has_the_quick_gelu() -> None:
    repository = "timm/vit_base_patch16_clip_224.openai"
    config = {"architecture": "vit_base_patch16_clip_224"}

    source = TeacherSource(pathlib.Path("model.safetensors"), repository, config=config)

    assert source.architecture == "vit_base_patch16_clip_quickgelu_224"


def test_a_file_of_ours_has_the_normalisation_in_its_metadata(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save(path, mean="[0.1, 0.2, 0.3]", std="[1, 1, 1]")
    (tmp_path / "config.json").write_text(json.dumps(TIMM))

    used = teacher_sources.obtain(str(path)).normalisation

    assert used == Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "source",
    [
        TeacherSource(pathlib.Path("a"), config={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5]}),
        TeacherSource(pathlib.Path("a"), config={"mean": [0.5, 0.5, 0.5]}),
        TeacherSource(pathlib.Path("a"), preprocessor={"image_mean": "half"}),
        TeacherSource(pathlib.Path("a"), metadata={"mean": "[0.5, 0.5", "std": "[1, 1, 1]"}),
    ],
)
def test_a_damaged_normalisation_is_an_error(source: TeacherSource) -> None:
    with pytest.raises(SettingError, match=r"mean and std that come with a are not three numbers"):
        _ = source.normalisation


DINOV3 = "vit_small_patch16_dinov3"


@pytest.mark.parametrize(
    ("path", "repository", "config", "architecture"),
    [
        ("model.safetensors", f"timm/{DINOV3}.lvd1689m", {}, DINOV3),
        ("model.safetensors", "me/mine", {"architecture": DINOV3}, DINOV3),
        (f"{DINOV3}.lvd1689m.safetensors", "", {}, DINOV3),
        ("mine.safetensors", "", {}, ""),
        ("model.safetensors", f"me/{DINOV3}", TRANSFORMERS, ""),
        (f"{DINOV3}.npz", "", {}, ""),
    ],
)
def test_the_network_is_that_of_the_description_or_of_the_names(
    path: str, repository: str, config: dict[str, Any], architecture: str
) -> None:
    source = TeacherSource(pathlib.Path(path), repository, config=config)

    assert source.architecture == architecture
    assert source.described == config | ({"architecture": architecture} if architecture else {})


@pytest.mark.parametrize("init", ["bundled:Ti/16", "augreg:S/16", NAME, f"hf-hub:{NAME}@v1", OTHER])
def test_names_are_checked_without_a_connection(init: str) -> None:
    teacher_sources.check(init)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nowhere/B_16.npz", "There is no checkpoint nowhere/B_16.npz: set config.teacher.init"),
        ("nowhere.safetensors", "There is no checkpoint nowhere"),
        ("./timm/resnet", "There is no checkpoint ./timm/resnet"),
        ("augreg:B/17", "There are no published weights"),
        ("vit_small_patch14_reg4_dinov2", rf"\(on the Hub: {NAME}"),
        ("https://huggingface.co/timm/resnet18", "is not a local folder or file"),
    ],
)
def test_other_names_are_errors(init: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        teacher_sources.check(init)


def test_an_existing_path_has_precedence_over_a_repository(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert teacher_sources.on_hub("mine/teacher") == hub.Name("mine/teacher")
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/teacher").touch()

    assert teacher_sources.on_hub("mine/teacher") is None
    teacher_sources.check("mine/teacher")
    assert not catalog.is_name(f"hf-hub:{NAME}")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: mit\ntags:\n- timm\n---\n", "mit"),
        (b"---\r\nlicense: mit\r\n---\r\n", "mit"),
        (CARD, "dinov3-license"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\ntags: [timm]\n---\n", "of config.json"),
        (b"# A card\n---\nlicense: mit\n---\n", "of config.json"),
        (b"---\nlicense: [\n---\n", "of config.json"),
        (b"---\nmit\n---\n", "of config.json"),
        (b"\xff", "of config.json"),
    ],
)
def test_the_licence_is_that_of_the_card(card: bytes, licence: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    config = {"pretrained_cfg": {"license": "of config.json"}}

    read = hub_description.read_card(tmp_path / "README.md")

    assert hub_description.licence(config, read) == licence
