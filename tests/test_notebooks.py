"""The notebooks of tools/: their stored form, and their execution at small sizes."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from remem_jax import models
from remem_jax.models import vit
from remem_jax.report import tables
from remem_jax.weights import augreg
from tests import tiny_run

pytestmark = pytest.mark.timeout(900)  # Several whole runs; a busy machine may take minutes.
ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "tools" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Compiling takes nearly all of the time; the second run finds what the first one compiled.
TRAINING = {
    "data.image_size": 16,
    "teacher.steps": (2, 4),
    "teacher.warmup_steps": 1,
    "teacher.batch_size": 8,
    "student.model": tiny_run.NAME,
    "student.steps": 2,
    "student.warmup_steps": 1,
    "student.batch_size": 8,
    "student.learning_rates": (0.1,),
    "student.evaluations": 1,
}
INFORMATION = {
    "methods": ("remem",),
    "information.steps": 2,
    "information.evaluations": 2,
    "information.batch_size": 8,
    "information.pictures": 3,
}
INSIDE = {
    "data.image_size": 16,
    "images.examples": 16,
    "expertness.layers": (-1,),
    "expertness.clusters": 2,
    "criticality.examples": (16,),
    "criticality.neurons": 2,
    "criticality.images": 2,
    "criticality.visualization.steps": 2,
    "criticality.visualization.batch_size": 4,
}


class Executed(NamedTuple):
    """A notebook that has been run.

    Attributes:
        notebook: The notebook with its outputs.
        folder: Folder of its results.
    """

    notebook: Any
    folder: pathlib.Path

    def outputs(self, name: str) -> list[Any]:
        """Returns the outputs of the cell with this name."""
        (cell,) = [cell for cell in self.notebook.cells if cell.id == name]
        return cell.outputs

    def printed(self, name: str) -> str:
        """Returns the text that a cell has printed."""
        return "".join(out.text for out in self.outputs(name) if out.output_type == "stream")

    def shown(self, name: str, kind: str) -> list[str]:
        """Returns what a cell has displayed, of one MIME type."""
        data = [output.data for output in self.outputs(name) if "data" in output]
        return [bundle[kind] for bundle in data if kind in bundle]

    def results(self, part: str = "") -> dict[str, Any]:
        """Reads the results of a run."""
        return json.loads((self.folder / part / "results.json").read_text())


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def settings_of(notebook: Any) -> Any:
    """Returns the cell of settings, which users change."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder for all notebooks, which share compiled programs."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def colours(scratch: pathlib.Path) -> pathlib.Path:
    """Writes a user's images: each class has its own grey."""
    for number in range(10):
        folder = scratch / "colours" / f"grey_{number}"
        folder.mkdir(parents=True)
        for i in range(6):
            image = Image.new("RGB", (32, 32), (25 * number,) * 3)
            image.save(folder / f"{i}.png")
    return scratch / "colours"


def execute(name: str, scratch: pathlib.Path, **settings: Any) -> Executed:
    """Runs a notebook in a new kernel, with some settings replaced and with a small student."""
    notebook, folder = read(name), scratch / name
    cell = settings_of(notebook)
    cell.source += "\n\nfrom tests import tiny_run\n\ntiny_run.add_student()\n"
    settings |= {"FOLDER": str(folder)}
    for setting, value in settings.items():
        cell.source, count = re.subn(
            rf"^{setting} = .*$",
            lambda _, v=value, s=setting: f"{s} = {v!r}",
            cell.source,
            flags=re.M,
        )
        assert count == 1, setting
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
    )
    manager = client.create_kernel_manager()
    environment = os.environ | {
        "IPYTHONDIR": str(scratch / "ipython"),
        "REMEM_CACHE": str(scratch / "cache"),
    }
    with tempfile.TemporaryDirectory() as short:  # Socket paths have a length limit.
        manager.connection_file = str(pathlib.Path(short) / "kernel.json")
        manager.transport = "ipc"  # Needs no network.
        client.execute(env=environment)
    return Executed(notebook, folder)


@pytest.fixture(scope="module")
def training(scratch: pathlib.Path) -> dict[str, Any]:
    """Settings of a run with a small teacher."""
    teacher = tiny_run.save_teacher(scratch / "teacher.npz")
    return TRAINING | {"teacher.variant": "", "teacher.init": str(teacher)}


@pytest.fixture(scope="module")
def distilled(scratch: pathlib.Path, colours: pathlib.Path, training: dict[str, Any]) -> Executed:
    """Runs the first notebook on a user's images."""
    changes = training | {"methods": ("scratch", "remem"), "student.init": ""}
    return execute("distil_your_own_images", scratch, IMAGES=str(colours), CHANGES=changes)


@pytest.fixture(scope="module")
def plane(
    distilled: Executed, scratch: pathlib.Path, colours: pathlib.Path, training: dict[str, Any]
) -> Executed:
    """Runs the second notebook after the first, which compiles for both."""
    del distilled
    changes = training | INFORMATION
    return execute("information_plane", scratch, IMAGES=str(colours), CHANGES=changes)


@pytest.fixture(scope="module")
def inside(scratch: pathlib.Path) -> Executed:
    """Runs the third notebook on its own images, with a user's ViT of two blocks."""
    model = models.make("vit", variant=vit.Size(8, 16, 2, 2), classes=3)
    augreg.save(scratch / "two_blocks.npz", models.init(model, jax.random.key(0), 16)["params"])
    checkpoint = str(scratch / "two_blocks.npz")
    return execute("inside_the_top_mlps", scratch, CHECKPOINT=checkpoint, CHANGES=INSIDE)


# The stored notebooks.


def test_all_notebooks_are_found() -> None:
    assert NAMES == ["distil_your_own_images", "information_plane", "inside_the_top_mlps"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs(name: str) -> None:
    notebook = read(name)

    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_code_cell_has_the_settings_and_an_address_to_fill_in(name: str) -> None:
    notebook = read(name)

    first = next(cell for cell in notebook.cells if cell.cell_type == "code")

    assert first is settings_of(notebook)
    assert 'REPOSITORY = "https://YOUR-HOST/remem-jax.git"' in first.source
    assert json.dumps(notebook).count("://") == 1  # There is no other address.


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records the commands that would have been run, and runs none."""
    recorded: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: recorded.append(list(command)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return recorded


def install(name: str) -> None:
    (cell,) = [cell for cell in read(name).cells if cell.id == "install"]
    exec(cell.source, {"REPOSITORY": "address"})


@pytest.mark.parametrize("name", NAMES)
def test_without_a_clone_the_repository_is_cloned_and_installed(
    name: str, commands: list[list[str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")  # There is no GPU.

    install(name)

    clone = str(tmp_path / "remem-jax")
    assert [command[:2] + command[-2:] for command in commands] == [
        ["git", "clone", "address", clone],
        [sys.executable, "-m", "--quiet", clone],
    ]
    assert sys.path[0] == clone


@pytest.mark.parametrize("name", NAMES)
def test_in_a_clone_nothing_is_installed(
    name: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)

    install(name)

    assert not commands
    assert sys.path[0] == str(ROOT)


# Distil your own images.


def test_the_table_shows_the_accuracies_of_the_results(distilled: Executed) -> None:
    (table,) = distilled.shown("table", "text/markdown")

    rows = {row["method"]: row for row in distilled.results()["methods"]}
    student, teacher = (rows["remem"][model]["test"]["top1"] for model in ("student", "teacher"))
    assert f"| ReMem | {100 * student:.2f} | {100 * teacher:.2f} |" in table
    alone = rows["scratch"]["student"]["test"]["top1"]
    assert f"| From scratch | {100 * alone:.2f} | {tables.NOTHING} |" in table
    assert "Standard error" in distilled.printed("table")


def test_the_plots_of_the_report_are_shown(distilled: Executed) -> None:
    page = (distilled.folder / "report.html").read_text()

    assert 0 < len(distilled.shown("plots", "image/svg+xml")) == page.count("<svg")


def test_the_students_predictions_and_the_image_are_shown(distilled: Executed) -> None:
    probabilities = re.findall(r"(\w+): ([\d.]+) %", distilled.printed("student"))

    assert len(probabilities) == 3
    assert {name for name, _ in probabilities} < {f"grey_{number}" for number in range(10)}
    assert len(distilled.shown("student", "image/png")) == 1


# The information plane.


def test_the_plane_shows_every_teacher(plane: Executed) -> None:
    (figure,) = plane.shown("plane", "image/svg+xml")
    (table,) = plane.shown("table", "text/markdown")

    assert "error, %" in figure
    assert "ReMem" in figure
    for row in plane.results("run")["teachers"]:
        error = 100 * (1 - row["validation"]["top1"])
        excess = row["information"]["excess"]
        assert f"| ReMem, step {row['step']} | {error:.2f} | {excess:.5f} |" in table
    assert table.count("step") == len(TRAINING["teacher.steps"])


def test_reconstructions_of_the_users_images_are_shown(plane: Executed) -> None:
    with np.load(plane.folder / "run" / "information" / "remem" / "pictures.npz") as arrays:
        images = arrays["images"]
        drawn = [arrays[f"reconstructions_{number}"] for number in range(2)]

    assert len(images) == 3
    greys = images.mean(axis=(1, 2, 3)) * 255 / 25
    np.testing.assert_allclose(greys, np.round(greys), atol=1e-4)  # 25 apart; see `colours`.
    for pictures in drawn:
        assert pictures.shape == images.shape
        assert 0 <= pictures.min() < pictures.max() <= 1
    assert len(plane.shown("pictures", "image/png")) == 1  # One for each method.


def test_checkpoints_are_compared(plane: Executed) -> None:
    (setting,) = plane.results("comparison")["analyses"]["information"]["settings"]

    ranked = [m["title"] for m in sorted(setting["models"], key=lambda m: m["excess"])]
    assert set(ranked) == {"pretrained", "ReMem, selected"}
    assert f"ranking by information is {' before '.join(ranked)}, measured" in plane.printed(
        "ranking"
    )
    reconstructions, maps = plane.shown("ranking", "image/svg+xml")
    assert "pretrained" in reconstructions
    assert "<image" in maps


# Inside the top MLPs.


def test_without_user_images_ten_digits_are_used(inside: Executed) -> None:
    written = inside.folder.parent / "digits"

    assert sorted(path.name for path in written.iterdir()) == sorted(DIGITS)
    assert len(list(written.rglob("*.png"))) == 1797  # The number in scikit-learn.
    assert "zero 178" in inside.printed("images")


def test_expertness_is_shown_by_block(inside: Executed) -> None:
    (figure,) = inside.shown("expertness", "image/svg+xml")
    (table,) = inside.shown("expertness", "text/markdown")

    assert "Expertness (fraction, K = 2)" in figure
    (layer,) = inside.results()["analyses"]["expertness"]["models"][0]["layers"]
    assert 0 < layer["null_mean"] < 1
    assert f"| 2 | {np.mean(layer['shares']):.3f} | {layer['null_mean']:.3f} |" in table


def test_the_most_critical_neurons_are_shown_and_the_first_is_visualised(inside: Executed) -> None:
    with np.load(inside.folder / "criticality" / "checkpoint_block_1" / "neurons.npz") as arrays:
        values = arrays["value"][0]
    (figure,) = inside.shown("neurons", "image/svg+xml")

    critical = np.argsort(-values)[:2]
    assert all(str(neuron) in figure for neuron in critical)
    # Two seeds and two images for each of two neurons.
    assert figure.count("<image") == 8
    assert "Criticality" in inside.shown("criticality", "image/svg+xml")[0]
    text = inside.printed("responses")
    assert f"Neuron {critical[0]} of block 2, token cls: [" in text
    assert np.isfinite(json.loads(text.partition(": ")[2])).all()
    assert len(inside.shown("responses", "image/png")) == 1
