"""Runs the command at tiny sizes on a CPU, without packages that a GPU machine may lack."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tools.benchmarks import rows
from tools.gpu import items, page, record, running

MANIFEST = {"weights": "", "image_size": 224}
ROOT = pathlib.Path(__file__).parents[2]
# A sitecustomize that hides these packages from imports and from their own metadata.
MISSING = ("array_record", "grain", "importlib_resources", "optuna", "tensorflow_datasets")
_HIDES = """
import importlib.metadata, sys

MISSING = {missing!r}

class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hides())
found = importlib.metadata.Distribution.from_name

def from_name(name):
    if name.replace("-", "_") in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.Distribution.from_name = staticmethod(from_name)
"""


# All items except the students of one teacher, which tests/test_benchmark.py trains.
ITEMS = (
    items.DEVICE, "numerics_float32", "numerics_bfloat16", "attention",
    "forward", "plan_microbatches", "table10",
)  # fmt: skip


def test_at_full_size_every_row_of_the_benchmark_is_an_item() -> None:
    names = [item.name for item in items.make(MANIFEST, tiny=False)]
    assert {*rows.GPU, *ITEMS, *items.TABLE10, "lockstep"} == set(names)
    assert len(names) == len(set(names))


class Tool:
    """Runs the command in a folder that several tests share."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "hidden").mkdir()
        (folder / "hidden" / "sitecustomize.py").write_text(_HIDES.format(missing=MISSING))
        self.environment = os.environ | {
            "PYTHONPATH": str(folder / "hidden"),
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tools.measure_gpu", "--tiny", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *options: str) -> str:
        process = self.start(*options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tool, pathlib.Path]:
    """Packs the folder for the GPU machine once for all tests."""
    tool = Tool(tmp_path_factory.mktemp("measure_gpu"))
    tool.run(f"--pack={tool.folder / 'packed'}")
    return tool, tool.folder / "packed"


@pytest.fixture(scope="module")
def measured(packed: tuple[Tool, pathlib.Path]) -> dict[str, Any]:
    """Measures all items once for all tests; returns the record."""
    tool, folder = packed
    out = tool.folder / "out"
    tool.run(f"--packed={folder}", f"--out={out}", f"--items={','.join(ITEMS)}")
    content = json.loads((out / "measured.json").read_text())
    assert (out / "measured.md").read_text() == page.render(content)
    return content


def test_only_the_mini_table_needs_packages_that_are_not_packed(tmp_path: pathlib.Path) -> None:
    hidden = (*MISSING, "matplotlib", "sklearn", "timm", "torch")
    (tmp_path / "sitecustomize.py").write_text(_HIDES.format(missing=hidden))
    called = {item.call.partition(":")[0] for item in items.make(MANIFEST, tiny=False)}
    imported = {*called, "tools.benchmarks.ours", "tools.benchmarks.lockstep"}
    imported.remove("tools.gpu.table10")

    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(sorted(imported))}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr


pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_everything_is_measured(measured: dict[str, Any]) -> None:
    errors = {name: entry.get("error") for name, entry in measured["items"].items()}
    assert errors == dict.fromkeys(ITEMS)
    assert measured["runs"][0]["ended"] == running.FINISHED


def test_the_same_device_agrees_with_itself(measured: dict[str, Any]) -> None:
    for dtype, names in items.TINY_PROGRAMS.items():
        programs = measured["items"][f"numerics_{dtype}"]["result"]
        for name in names:
            assert programs[name]["agrees"], (dtype, name)
            # The tiny student has two blocks, the teacher six.
            assert programs[name]["ours"]["parameters"] >= (20 if name == "kd_step" else 100)
    # bfloat16 differs from the reference, which is in float32.
    programs = measured["items"]["numerics_bfloat16"]["result"]
    assert programs["gradient"]["ours"]["gradient"] > 1e-3


def test_attention_agrees_with_the_plain_form(measured: dict[str, Any]) -> None:
    lengths = measured["items"]["attention"]["result"]
    assert list(lengths) == ["17", "18"]
    for forms in lengths.values():
        for name in ("output", "tokens", "parameters"):
            # bfloat16 has 8 bits, and rounding errors accumulate.
            assert 0 < forms["ours"][name] < 0.03
            assert 0 < forms["plain"][name] < 0.03


def test_the_mini_table_has_teachers_and_students_of_each_method(measured: dict[str, Any]) -> None:
    runs = measured["items"]["table10"]["result"]["runs"]
    assert [(run["seed"], run["method"]) for run in runs] == [(0, "finetune"), (0, "remem")]
    assert all(0 <= run[model] <= 1 for run in runs for model in ("student", "teacher"))


def test_sigterm_ends_it_cleanly_and_keeps_results(packed: tuple[Tool, pathlib.Path]) -> None:
    tool, folder = packed
    path = tool.folder / "stopped" / "measured.json"
    process = tool.start(f"--packed={folder}", f"--out={path.parent}", "--items=table10")
    for _ in range(600):
        if path.exists() and items.DEVICE in record.read(path)["items"]:
            break
        time.sleep(0.1)
    time.sleep(0.5)  # The next item has begun.

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM, err
    content = record.read(path)
    assert content["runs"][0]["ended"] == running.ASKED_TO_STOP
    assert content["items"]["table10"]["status"] == record.STOPPED
    assert f"{running.ASKED_TO_STOP}: " in out


def test_an_unknown_item_is_refused_with_a_list_of_the_known_ones(
    packed: tuple[Tool, pathlib.Path],
) -> None:
    tool, folder = packed
    process = tool.start(f"--packed={folder}", f"--out={tool.folder / 'no'}", "--items=steps")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("measure_gpu: unknown items steps in --items; known: device, numerics_")
