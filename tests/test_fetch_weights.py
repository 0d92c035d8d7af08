"""The tool that fetches weights, run as by a user."""

import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.weights import hub_server, server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
TOOL = pathlib.Path(__file__).parents[1] / "tools/fetch_weights.py"
INDEX = (
    b"name,ds,final_val,filename,adapt_ds,adapt_resolution,adapt_final_val,adapt_filename\n"
    b"B/16,i1k,0.8,B_16-i1k-a,imagenet2012,224,0.78,B_16-i1k-a--imagenet2012-res_224\n"
    b"B/16,i1k,0.7,B_16-i1k-b,imagenet2012,224,0.79,B_16-i1k-b--imagenet2012-res_224\n"
)


@pytest.fixture
def site() -> Iterator[server.Site]:
    file = io.BytesIO()
    np.savez(file, kernel=np.arange(1000.0))
    paths = ("/gsam/ViT-S_16.npz", "/gsam/ViT-B_16.npz")
    files = dict.fromkeys(paths, file.getvalue()) | {"/augreg/index.csv": INDEX}
    with server.serving(server.Site(files)) as site:
        yield site


def started(cache: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, TOOL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "REMEM_CACHE": str(cache),
            "REMEM_MIRROR": "",
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )


def run(cache: pathlib.Path, *arguments: str) -> tuple[int, str, str]:
    with started(cache, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_weights_are_fetched_into_the_cache(site: server.Site, tmp_path: pathlib.Path) -> None:
    names = ("gsam:S/16", "gsam:B/16")

    code, output, errors = run(tmp_path, "fetch", *names, "--mirror", site.url)

    assert code == 0, errors
    assert output.splitlines() == [
        f"{name} {tmp_path}/weights/gsam/ViT-{name[5]}_16.npz" for name in names
    ]


def test_students_are_fetched_from_the_hub(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = {"model.safetensors": b"weights", "config.json": b"{}"}
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with hub_server.serving(hub_server.Hub({"timm/resnet18.a1_in1k": repository})) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)

        code, output, errors = run(tmp_path, "fetch", "resnet18.a1_in1k")

    assert code == 0, errors
    name, path = output.split()
    assert (name, pathlib.Path(path).read_bytes()) == ("resnet18.a1_in1k", b"weights")


def test_two_processes_fetch_a_file_once(site: server.Site, tmp_path: pathlib.Path) -> None:
    site.seconds = 0.5  # May be shorter than the delay between their starts.

    processes = [started(tmp_path, "fetch", "gsam:S/16", "--mirror", site.url) for _ in range(2)]
    for process in processes:
        with process:
            process.communicate(timeout=60)

    assert [process.returncode for process in processes] == [0, 0]
    assert len(site.requests) == 1


def test_the_best_entry_of_the_index_is_picked(site: server.Site, tmp_path: pathlib.Path) -> None:
    arguments = ("pick", "B/16", "--pretraining", "i1k", "--cache", str(tmp_path / "other"))

    _, pretrained, _ = run(tmp_path, *arguments, "--mirror", site.url)
    _, fine_tuned, _ = run(tmp_path, *arguments, "--mirror", site.url, "--adapted", "imagenet2012")

    assert pretrained == "augreg:B_16-i1k-a final_val 0.8\n"
    assert fine_tuned == "augreg:B_16-i1k-b--imagenet2012-res_224 adapt_final_val 0.79\n"
    assert (tmp_path / "other/weights/augreg/index.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fetch", "sam:B/32"), "404 Not Found"),
        (("fetch", "--table4"), "sam/ViT-B_16.npz"),
        (("fetch", "gsam:S/16", "augreg:B/17"), "augreg:B/16"),
        (("fetch",), "--table4"),
        (("pick", "B/17"), "R50+L/32"),
    ],
)
def test_an_error_is_one_line(
    arguments: tuple[str, ...], message: str, site: server.Site, tmp_path: pathlib.Path
) -> None:
    code, output, errors = run(tmp_path, *arguments, "--mirror", site.url)

    assert code == 1
    assert output == ""
    assert message in errors
    assert errors.startswith("fetch_weights: ")
    assert len(errors.splitlines()) == 1
