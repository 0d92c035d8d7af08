"""One, two and four hosts, each in its own process, get the same batches and metrics."""

import json
import pathlib
import socket
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import forking
from tests.data import hosts_child

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(600)]  # The hosts talk to each other.
INPUTS = ("resident", "streamed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """63 images of three classes, and 31 without labels.

    No split is divisible by the number of hosts.
    """
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(94):
        path = root / "mine" / f"class {i % 3}" / f"{i}.jpg"
        if i >= 63:
            path = root / "more" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12 + i % 5, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _run(server: forking.Server, folder: pathlib.Path, hosts: int) -> list[dict[str, Any]]:
    """Runs that many hosts and returns the result of each."""
    port = _free_port()
    places = [str(folder / name) for name in ("mine", "more", ".cache")]
    children = [
        server.start("tests.data.hosts_child:main", *places, port, hosts, host)
        for host in range(hosts)
    ]
    finished = [child.communicate(timeout=250) for child in children]
    assert [child.returncode for child in children] == [0] * hosts, finished[0][1][-3000:]
    return [json.loads(printed.splitlines()[-1]) for printed, _ in finished]


@pytest.fixture(scope="module")
def results(folder: pathlib.Path) -> dict[int, list[dict[str, Any]]]:
    """Results of each host, for one, two and four hosts."""
    with forking.Server("tests.data.hosts_child") as server:
        return {hosts: _run(server, folder, hosts) for hosts in (1, 2, 4)}


@pytest.mark.parametrize("kind", INPUTS)
def test_global_batches_are_the_same_for_any_number_of_hosts(
    results: dict[int, list[dict[str, Any]]], kind: str
) -> None:
    alone = results[1][0][kind]["seen"]

    # The training batches differ: four plain, two balanced, two with unlabelled images.
    assert len(set(alone[:8])) == 8
    for hosts, by_host in results.items():
        for result in by_host:
            assert result["devices"] == [hosts_child.DEVICES, hosts_child.DEVICES // hosts]
            assert result[kind]["seen"] == alone


@pytest.mark.parametrize("kind", INPUTS)
def test_metrics_of_any_number_of_hosts_are_the_same_on_each(
    results: dict[int, list[dict[str, Any]]], kind: str
) -> None:
    alone = results[1][0][kind]["measured"]
    counted = {name: alone.pop(name) for name in ("confusion", "predictions")}
    floats = {name: alone.pop(name) for name in ("confidences", "logits")}

    assert np.sum(counted["confusion"]) == 12  # A fifth of each class, rounded.
    for by_host in results.values():
        for result in by_host:
            measured = dict(result[kind]["measured"])
            for name, value in counted.items():
                assert measured.pop(name, value) == value
            for name, values in floats.items():
                actual = measured.pop(name, values)
                np.testing.assert_allclose(actual, values, rtol=1e-6, atol=1e-6)
            assert measured == pytest.approx(alone, rel=1e-6)
