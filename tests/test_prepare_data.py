"""The tool that prepares data sets, run as by a user, without network and TensorFlow."""

import hashlib
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets
from tensorflow_datasets.core import utils
from tensorflow_datasets.core.download import checksums, extractor
from tensorflow_datasets.image_classification import food101, inaturalist

from remem_jax import data
from remem_jax.data import registry
from remem_jax.data.tfds import obtaining, prepared
from tests.data import tiny_tfds
from tools import prepare_data

IMAGES = {"apple_pie/1": 10, "waffles/2": 20, "waffles/3": 30}
SPLITS = {
    "train": {"apple_pie": ["apple_pie/1"], "waffles": ["waffles/2"]},
    "test": {"waffles": ["waffles/3"]},
}


class Outcome(NamedTuple):
    """Exit code and output of one run of the tool."""

    code: int
    output: str
    errors: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the tool in this process, on the data folder `tmp_path`."""

    def started(*arguments: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["prepare_data", *arguments, "--dir", str(tmp_path)])
        code = prepare_data.main()
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if "prepare_data: " in line]
        return Outcome(
            code, captured.out, captured.err[captured.err.index(errors[0]) :] if errors else ""
        )

    return started


@pytest.fixture
def manual(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "downloads/manual"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def archive(
    manual: pathlib.Path, all_modules: None, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """An archive with three images that TFDS accepts as the one of Food-101.

    TFDS needs TensorFlow here only to open files while unpacking, so a stand-in suffices.
    """
    gfile = types.SimpleNamespace(GFile=open)
    fake = types.SimpleNamespace(
        io=types.SimpleNamespace(gfile=gfile), compat=types.SimpleNamespace(as_text=str)
    )
    monkeypatch.setattr(extractor, "tf", fake)
    path = manual / "food-101.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for split, names in SPLITS.items():
            _add(tar, f"food-101/meta/{split}.json", json.dumps(names).encode())
        for name, grey in IMAGES.items():
            pixels = np.full((4, 4, 3), grey, np.uint8)
            _add(tar, f"food-101/images/{name}.jpg", tiny_tfds.png(pixels))
    content = path.read_bytes()
    info = checksums.UrlInfo(
        utils.Size(len(content)), hashlib.sha256(content).hexdigest(), "food-101.tar.gz"
    )
    monkeypatch.setitem(food101.Food101.url_infos, food101._BASE_URL, info)
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that TensorFlow is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_data_set_is_prepared_from_the_manual_folder(
    archive: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    outcome = run("food101")

    assert outcome.code == 0, outcome.errors
    assert archive.is_file()
    assert outcome.output.splitlines()[-1] == (
        "food101: 2 images of train, 1 of validation; the paper has 75750 and 25250."
    )
    splits = prepared.tfds("food101", str(tmp_path)).splits
    read = [splits["train"].read(i) for i in range(2)] + [splits["test"].read(0)]
    assert {(bytes(example.image), example.label) for example in read} == {
        (tiny_tfds.png(np.full((4, 4, 3), grey, np.uint8)), label)
        for grey, label in ((10, 0), (20, 100), (30, 100))
    }
    assert prepared.state("food101", str(tmp_path)) == ("array_record", (2, 1), 0)


@pytest.mark.usefixtures("archive")
def test_a_prepared_data_set_is_left_unchanged(tmp_path: pathlib.Path, run: Run) -> None:
    run("food101")
    before = _files(tmp_path / "food101")

    outcome = run("food101")

    assert outcome.code == 0
    assert "food101 is prepared already, as array_record.\n" in outcome.output
    assert _files(tmp_path / "food101") == before


@pytest.mark.usefixtures("archive")
def test_an_existing_tfrecord_copy_is_left_unchanged(tmp_path: pathlib.Path, run: Run) -> None:
    run("food101")
    folder = tmp_path / "food101/2.0.0"
    original = folder.rename(tmp_path / "original")
    tiny_tfds.as_tfrecord(original, folder)
    before = _files(tmp_path / "food101")

    outcome = run("food101")

    assert outcome.code == 0
    assert "food101 is prepared already, as tfrecord, which is read as it is.\n" in outcome.output
    assert _files(tmp_path / "food101") == before


def test_a_different_archive_is_refused_with_instructions(
    archive: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    archive.write_bytes(archive.read_bytes() + b"more")

    outcome = run("food101")

    assert outcome.code == 1
    first, *rest = outcome.errors.splitlines()
    assert first.startswith("prepare_data: food101 cannot be prepared: NonMatchingChecksumError")
    assert rest[0] == "food101 (food101:2.*.*): automatic"
    assert f"  TFDS downloads it. Where that fails, put into {archive.parent}:" in rest
    assert prepared.state("food101", str(tmp_path)) is None


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "prepare_data: stopped; no partial data set was left"),
        (OSError("No space left\non device"), 1, "OSError: No space left on device\n"),
    ],
)
def test_an_interrupted_preparation_leaves_nothing(
    error: BaseException,
    code: int,
    message: str,
    tmp_path: pathlib.Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate = food101.Food101._generate_examples

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(iter(generate(*arguments, **options)))
        raise error

    monkeypatch.setattr(food101.Food101, "_generate_examples", interrupted)

    outcome = run("food101")

    assert outcome.code == code
    assert message in outcome.errors
    assert list((tmp_path / "food101").iterdir()) == []
    monkeypatch.undo()
    assert prepared.state("food101", str(tmp_path)) is None


@pytest.mark.usefixtures("all_modules")
def test_an_incomplete_folder_is_named(tmp_path: pathlib.Path, run: Run) -> None:
    (tmp_path / "food101/2.0.0").mkdir(parents=True)

    outcome = run("food101")

    assert outcome.code == 1
    assert f"{tmp_path / 'food101/2.0.0'} is there, but not whole; remove it" in outcome.errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dtd", "TFDS needs tensorflow: pip install 'remem-jax[prepare]'"),
        ("pcam", "TFDS needs tensorflow and h5py: pip install 'remem-jax[prepare]'"),
        ("retinopathy", "TFDS needs tensorflow and cv2: pip install 'remem-jax[prepare]'"),
    ],
)
def test_missing_packages_are_named_before_any_work(
    name: str, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    outcome = run(name)

    assert outcome.code == 1
    assert message in outcome.errors
    assert len(outcome.errors.splitlines()) == 1


def test_the_extra_has_all_packages_that_tfds_needs() -> None:
    listed = (pathlib.Path(__file__).parents[1] / "setup.cfg").read_text()
    extra = listed.split("\nprepare =\n")[1].split("\ntest =\n")[0].split()
    package = {"tensorflow": "tensorflow-cpu", "cv2": "opencv-python-headless"}
    modules = {module for record in registry.RECORDS.values() for module in record.modules}

    assert set(extra) == {package.get(module, module) for module in modules}


@pytest.mark.usefixtures("all_modules")
def test_a_dead_address_is_not_requested(manual: pathlib.Path, run: Run) -> None:
    (manual / "cars_test.tgz").touch()

    outcome = run("cars196")

    assert outcome.code == 1
    assert outcome.errors.splitlines()[0] == (
        f"prepare_data: cars196 cannot be downloaded, and {manual} lacks cars_train.tgz, "
        "car_devkit.tgz, cars_test_annos_withlabels.mat."
    )
    # From TFDS's list of checksums.
    assert "979,269,282 bytes, sha256 512b227b30e2f0a8aab9e0948578" in outcome.errors


@pytest.mark.usefixtures("all_modules")
@pytest.mark.parametrize("name", ["imagenet_lt", "retinopathy", "resisc45", "sun397"])
def test_the_error_lists_the_manual_files(name: str, manual: pathlib.Path, run: Run) -> None:
    outcome = run(name)

    assert outcome.code == 1
    for file in obtaining.WAYS[name].files:
        assert f"\n    {file}\n" in f"{outcome.errors}\n"
    assert f"  Put into {manual}:" in outcome.errors


@pytest.mark.parametrize("name", registry.RECORDS)
def test_instructions_can_be_printed(name: str, run: Run) -> None:
    outcome = run("--instructions", name)

    assert outcome.code == 0
    assert outcome.output.startswith(f"{name} ({registry.RECORDS[name].tfds}): ")
    assert registry.RECORDS[name].licence in outcome.output
    for file in obtaining.WAYS[name].files:
        assert f"\n    {file}\n" in outcome.output


@pytest.mark.usefixtures("archive")
def test_a_remote_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_data", "food101", "--dir", "gs://bucket/data"])

    assert prepare_data.main() == 1
    assert "gs://bucket/data is not a local folder" in capsys.readouterr().err


def test_an_unknown_name_is_refused_before_any_work(tmp_path: pathlib.Path, run: Run) -> None:
    outcome = run("food101", "food102")

    assert outcome.code == 1
    assert outcome.errors.startswith("prepare_data: Unknown food102; known are food101, ")
    assert not (tmp_path / "food101").exists()


@pytest.mark.usefixtures("archive")
def test_a_failure_does_not_stop_the_next_data_set(tmp_path: pathlib.Path, run: Run) -> None:
    outcome = run("resisc45", "food101")

    assert outcome.code == 1
    assert "resisc45 cannot be downloaded" in outcome.errors
    assert prepared.state("food101", str(tmp_path)) is not None


@pytest.mark.usefixtures("archive")
def test_any_data_set_of_tfds_is_prepared_by_its_name(tmp_path: pathlib.Path, run: Run) -> None:
    first, second = run("tfds:food101"), run("tfds:food101")

    assert first.output.splitlines()[-1] == (
        "tfds:food101 is prepared as array_record: 2 of train, 1 of validation."
    )
    assert second.output.splitlines() == first.output.splitlines()[-1:]
    source = data.open_source("tfds:food101", path="", data_dir=str(tmp_path))
    assert source.splits["train"].examples == 2


def test_any_data_set_of_tfds_needs_tensorflow(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert "To prepare tfds:beans, TFDS needs tensorflow: pip" in run("tfds:beans").errors


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tfds:imagenet2012", "ILSVRC2012_img_train.tar"),
        ("tfds:beans", "TFDS downloads it."),
        ("tfds:food101", "https://data.vision.ee.ethz.ch/"),
    ],
)
def test_instructions_of_any_data_set_are_those_of_tfds(name: str, text: str, run: Run) -> None:
    assert text in run("--instructions", name).output


def test_a_name_that_tfds_does_not_have_is_refused(run: Run) -> None:
    assert "no such data set; it has beans" in run("tfds:bean").errors
    assert "must have the form tfds:NAME" in run("tfds:beans:new").errors


class Downloads:
    """Replaces TFDS's download manager and records the requested URLs."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def download_and_extract(self, resources: dict[str, Any]) -> dict[str, str]:
        self.asked = [getattr(resource, "url", resource) for resource in resources.values()]
        return dict.fromkeys(resources, "")

    def iter_archive(self, path: str) -> str:
        return path


def test_inaturalist_is_downloaded_from_its_current_address(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder: Any = tensorflow_datasets.builder("i_naturalist2017", data_dir=str(tmp_path))
    monkeypatch.setattr(inaturalist, "_URL", inaturalist._URL)  # Restored after the test.
    original = dict(builder.url_infos)
    manager = Downloads()

    prepare_data.redirect(builder)

    builder._split_generators(manager)
    moved = {url: builder.url_infos[url] for url in manager.asked}
    assert set(moved) == {
        "https://ml-inat-competition-datasets.s3.amazonaws.com/2017/" + file
        for file in ("train_val_images.tar.gz", "train_val2017.zip", "test2017.tar.gz")
    }
    # The files, and thus their checksums, are the same.
    assert sorted(info.checksum for info in moved.values()) == sorted(
        info.checksum for info in original.values()
    )
    assert {info.filename for info in moved.values()} == set(obtaining.WAYS["inat2017"].files)


@pytest.fixture
def imagenet(tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    """Writes a tiny ImageNet, whose images `tiny_tfds` names 000000, 000001, ..."""
    images = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    examples = images, np.arange(5) * 200
    tiny_tfds.write(registry.IMAGENET, tmp_path, {"train": examples, "validation": examples})


@pytest.mark.usefixtures("imagenet")
def test_imagenet_lt_is_an_index_of_the_prepared_imagenet(
    tmp_path: pathlib.Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {"train": {"000003": 600, "000001": 200}, "test": {"000004": 800}}
    monkeypatch.setattr(
        prepare_data.imagenet_lt,
        "read_list",
        lambda file: lists["train" if "train" in file.name else "test"],
    )
    for file in obtaining.LISTS:
        (tmp_path / file).touch()

    outcome = run("imagenet_lt", "--lists", str(tmp_path))

    assert outcome.code == 0, outcome.errors
    assert outcome.output == (
        "imagenet_lt: 2 images of train, 1 of validation; the paper has 115846 and 20000.\n"
    )
    splits = prepared.tfds("imagenet_lt", str(tmp_path)).splits
    assert [splits["train"].read(i).label for i in range(2)] == [600, 200]
    assert splits["test"].read(0).label == 800


@pytest.mark.usefixtures("imagenet")
def test_missing_lists_of_imagenet_lt_are_named(
    manual: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    (manual / "ImageNet_LT_train.txt").touch()

    outcome = run("imagenet_lt")

    assert outcome.code == 1
    assert f"is prepared, but {manual} lacks ImageNet_LT_val.txt, which say" in outcome.errors
    assert prepared.state("imagenet_lt", str(tmp_path)) is None


def _files(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_tool_runs_from_the_command_line(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parents[1]

    outcome = subprocess.run(
        [sys.executable, "tools/prepare_data.py", "--instructions", "cars196", "--dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=root,
    )

    assert outcome.stdout.startswith("cars196 (cars196:2.*.*): dead address\n")
    assert outcome.stderr == ""
