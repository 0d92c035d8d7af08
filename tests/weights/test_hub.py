"""Names on the Hugging Face Hub, fetched from a local server that speaks its protocol.

Each fetch is a process, because huggingface_hub reads its environment when it is imported.
"""

import json
import pathlib
from collections.abc import Iterator

import pytest

from remem_jax.weights import hub
from tests.weights import hub_client, hub_server
from tests.weights.hub_server import COMMIT, Hub

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
NAME = "timm/resnet18.a1_in1k"
WEIGHTS = bytes(range(256)) * 2000
CONFIG = {"architecture": "resnet18", "num_classes": 1000}
FETCH = """
from remem_jax.weights import hub

def fetch(name):
    fetched = hub.fetch(hub.parse(name), setting="config.student.init")
    return [str(fetched.weights), fetched.config, fetched.commit]
"""


@pytest.fixture
def site() -> Iterator[Hub]:
    files = {"model.safetensors": WEIGHTS, "config.json": json.dumps(CONFIG).encode()}
    with hub_server.serving(Hub({NAME: files})) as site:
        yield site


def fetched(site: Hub, cache: pathlib.Path, name: str = NAME, **variables: str) -> list | str:
    (outcome,) = hub_client.outcomes(hub_client.started(FETCH, site, cache, name, **variables))
    return outcome


def test_files_are_downloaded_once_and_then_found_without_a_network(
    site: Hub, tmp_path: pathlib.Path
) -> None:
    path, config, commit = fetched(site, tmp_path)

    assert pathlib.Path(path).read_bytes() == WEIGHTS
    assert (config, commit) == (CONFIG, COMMIT)
    assert fetched(site, tmp_path) == [path, config, commit]
    assert len([r for r in site.requests if r.startswith("GET /storage")]) == 1
    before = len(site.requests)
    assert fetched(site, tmp_path, HF_HUB_OFFLINE="1") == [path, config, commit]
    assert fetched(site, tmp_path, f"hf-hub:{NAME}@{COMMIT}", HF_HUB_OFFLINE="1") == [
        path,
        config,
        commit,
    ]
    assert len(site.requests) == before


def test_a_broken_connection_is_resumed(site: Hub, tmp_path: pathlib.Path) -> None:
    site.cuts = [100_000, 50_000]

    path, *_ = fetched(site, tmp_path)

    assert pathlib.Path(path).read_bytes() == WEIGHTS
    assert site.ranges == ["", f"bytes={6 * 2**14}-", f"bytes={9 * 2**14}-"]


def test_processes_share_one_download(site: Hub, tmp_path: pathlib.Path) -> None:
    processes = [hub_client.started(FETCH, site, tmp_path, NAME) for _ in range(2)]

    first, second = map(hub_client.outcomes, processes)

    assert first == second
    assert site.ranges == [""]


def test_a_revision_is_fetched(site: Hub, tmp_path: pathlib.Path) -> None:
    site.commits |= dict.fromkeys(("v1.0", "f" * 40), "f" * 40)

    *_, commit = fetched(site, tmp_path, f"{NAME}@v1.0")

    assert commit == "f" * 40
    assert "no branch, tag or commit 'v2'" in fetched(site, tmp_path, f"{NAME}@v2")


def test_access_needs_a_token(site: Hub, tmp_path: pathlib.Path) -> None:
    site.gated = {NAME}

    assert f"Access to {NAME} is restricted" in fetched(site, tmp_path)
    assert "HF_TOKEN" in fetched(site, tmp_path)
    assert "does not accept the token" in fetched(site, tmp_path, HF_TOKEN="hf_wrong")
    path, *_ = fetched(site, tmp_path, HF_TOKEN="hf_right")
    assert pathlib.Path(path).read_bytes() == WEIGHTS
    site.gated, site.private = set(), {NAME}
    assert "or it is private" in fetched(site, tmp_path / "other")
    path, *_ = fetched(site, tmp_path / "other", HF_TOKEN="hf_right")
    assert pathlib.Path(path).read_bytes() == WEIGHTS


def test_an_unknown_repository_is_refused(site: Hub, tmp_path: pathlib.Path) -> None:
    message = fetched(site, tmp_path, "timm/resnet19")

    assert f"There is no repository timm/resnet19 at {site.url}" in message
    assert "config.student.init" in message


def test_pickles_are_not_downloaded(site: Hub, tmp_path: pathlib.Path) -> None:
    site.repositories["someone/old"] = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}

    message = fetched(site, tmp_path, "someone/old")

    assert "someone/old has no model.safetensors on the Hub, only pytorch_model.bin" in message
    assert not [request for request in site.requests if request.endswith(".bin")]


def test_a_repository_may_have_no_config(site: Hub, tmp_path: pathlib.Path) -> None:
    site.repositories["someone/bare"] = {"model.safetensors": WEIGHTS}

    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        _, config, _ = fetched(site, tmp_path, "someone/bare", **variables)
        assert config == {}


def test_without_a_network_the_message_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with hub_server.serving(Hub({})) as site:
        offline = fetched(site, tmp_path, HF_HUB_OFFLINE="1")
    down = fetched(site, tmp_path)

    assert "HF_HUB_OFFLINE is set, and the cache" in offline
    assert f"Cannot reach {site.url}" in down
    for message in (offline, down):
        assert f"hf download {NAME} model.safetensors config.json" in message
        assert "config.student.init" in message
    assert "set HF_ENDPOINT to a mirror" in down


def test_a_failing_server_is_named(site: Hub, tmp_path: pathlib.Path) -> None:
    site.status = 418

    assert "answered with status 418" in fetched(site, tmp_path)


def test_a_damaged_file_of_the_cache_is_refused(site: Hub, tmp_path: pathlib.Path) -> None:
    path, *_ = fetched(site, tmp_path)
    pathlib.Path(path).resolve().write_bytes(WEIGHTS[:-1] + b"\0")

    assert "is damaged: its SHA-256 is" in fetched(site, tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("timm/resnet18.a1_in1k", hub.Name("timm/resnet18.a1_in1k")),
        ("hf-hub:timm/resnet18@main", hub.Name("timm/resnet18", "main")),
        ("hf_hub:timm/resnet18@refs/pr/1", hub.Name("timm/resnet18", "refs/pr/1")),
        ("resnet18.a1_in1k", None),
        ("/timm/resnet18", None),
        ("../timm/resnet18", None),
        ("a/b/c", None),
        ("hf-hub:resnet18", None),
        ("https://huggingface.co/timm/resnet18", None),
    ],
)
def test_names_are_parsed(text: str, name: hub.Name | None) -> None:
    assert hub.parse(text) == name
