"""The tool that prepares data sets, as a user runs it; without a network and without TensorFlow."""

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

from remem_jax.data import registry
from remem_jax.data.tfds import obtaining, prepared
from tests.data import tiny_tfds
from tools import prepare_data

IMAGES = {"apple_pie/1": 10, "waffles/2": 20, "waffles/3": 30}
SPLITS = {
    "train": {"apple_pie": ["apple_pie/1"], "waffles": ["waffles/2"]},
    "test": {"waffles": ["waffles/3"]},
}


class Done(NamedTuple):
    """What came of a run."""

    code: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the tool in this process, on the data folder `tmp_path`."""

    def started(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["prepare_data", *arguments, "--dir", str(tmp_path)])
        code = prepare_data.main()
        told = capsys.readouterr()
        errors = [line for line in told.err.splitlines() if "prepare_data: " in line]
        return Done(code, told.out, told.err[told.err.index(errors[0]) :] if errors else "")

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
    """Food-101's archive with three images, which TFDS takes for the real one.

    TFDS opens files by TensorFlow while it unpacks archives, and asks nothing else of it here.
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
    whole = path.read_bytes()
    info = checksums.UrlInfo(
        utils.Size(len(whole)), hashlib.sha256(whole).hexdigest(), "food-101.tar.gz"
    )
    monkeypatch.setitem(food101.Food101.url_infos, food101._BASE_URL, info)
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes as if TensorFlow were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_data_set_is_prepared_from_the_manual_folder(
    archive: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    done = run("food101")

    assert done.code == 0, done.errors
    assert archive.is_file()
    assert done.output.splitlines()[-1] == (
        "food101: 2 images of train, 1 of validation; the paper has 75750 and 25250."
    )
    splits = prepared.tfds("food101", str(tmp_path)).splits
    read = [splits["train"].read(i) for i in range(2)] + [splits["test"].read(0)]
    assert {(bytes(example.image), example.label) for example in read} == {
        (tiny_tfds.png(np.full((4, 4, 3), grey, np.uint8)), label)
        for grey, label in ((10, 0), (20, 100), (30, 100))
    }
    assert prepared.state("food101", str(tmp_path)) == ("array_record", (2, 1))


@pytest.mark.usefixtures("archive")
def test_what_is_prepared_is_left_alone(tmp_path: pathlib.Path, run: Run) -> None:
    run("food101")
    before = _files(tmp_path / "food101")

    done = run("food101")

    assert done.code == 0
    assert "food101 is prepared already, as array_record.\n" in done.output
    assert _files(tmp_path / "food101") == before


@pytest.mark.usefixtures("archive")
def test_what_is_there_as_tfrecord_is_read_as_it_is(tmp_path: pathlib.Path, run: Run) -> None:
    run("food101")
    folder = tmp_path / "food101/2.0.0"
    aside = folder.rename(tmp_path / "aside")
    tiny_tfds.as_tfrecord(aside, folder)
    before = _files(tmp_path / "food101")

    done = run("food101")

    assert done.code == 0
    assert "food101 is prepared already, as tfrecord, which is read as it is.\n" in done.output
    assert _files(tmp_path / "food101") == before


def test_another_archive_is_refused_with_what_to_do(
    archive: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    archive.write_bytes(archive.read_bytes() + b"more")

    done = run("food101")

    assert done.code == 1
    first, *rest = done.errors.splitlines()
    assert first.startswith("prepare_data: food101 cannot be prepared: NonMatchingChecksumError")
    assert rest[0] == "food101 (food101:2.*.*): automatic"
    assert f"  TFDS downloads it. Where that fails, put into {archive.parent}:" in rest
    assert prepared.state("food101", str(tmp_path)) is None


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "prepare_data: stopped; no partial data set was left"),
        (OSError("No space left\non device"), 1, "OSError: No space left on device\n"),
    ],
)
def test_what_is_cut_short_leaves_nothing(
    error: BaseException,
    code: int,
    told: str,
    tmp_path: pathlib.Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = food101.Food101._generate_examples

    def cut(*arguments: Any, **more: Any) -> Iterator[Any]:
        yield next(iter(whole(*arguments, **more)))
        raise error

    monkeypatch.setattr(food101.Food101, "_generate_examples", cut)

    done = run("food101")

    assert done.code == code
    assert told in done.errors
    assert list((tmp_path / "food101").iterdir()) == []
    monkeypatch.undo()
    assert prepared.state("food101", str(tmp_path)) is None


@pytest.mark.usefixtures("all_modules")
def test_a_folder_that_is_not_whole_is_named(tmp_path: pathlib.Path, run: Run) -> None:
    (tmp_path / "food101/2.0.0").mkdir(parents=True)

    done = run("food101")

    assert done.code == 1
    assert f"{tmp_path / 'food101/2.0.0'} is there, but not whole; remove it" in done.errors


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dtd", "TFDS needs tensorflow: pip install 'remem-jax[prepare]'"),
        ("pcam", "TFDS needs tensorflow and h5py: pip install 'remem-jax[prepare]'"),
        ("retinopathy", "TFDS needs tensorflow and cv2: pip install 'remem-jax[prepare]'"),
    ],
)
def test_what_tfds_lacks_is_named_beforehand(
    name: str, told: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    done = run(name)

    assert done.code == 1
    assert told in done.errors
    assert len(done.errors.splitlines()) == 1


def test_the_extra_has_all_that_tfds_needs() -> None:
    listed = (pathlib.Path(__file__).parents[1] / "setup.cfg").read_text()
    extra = listed.split("\nprepare =\n")[1].split("\ntest =\n")[0].split()
    package = {"tensorflow": "tensorflow-cpu", "cv2": "opencv-python-headless"}
    modules = {module for record in registry.RECORDS.values() for module in record.modules}

    assert set(extra) == {package.get(module, module) for module in modules}


@pytest.mark.usefixtures("all_modules")
def test_a_dead_address_is_not_tried(manual: pathlib.Path, run: Run) -> None:
    (manual / "cars_test.tgz").touch()

    done = run("cars196")

    assert done.code == 1
    assert done.errors.splitlines()[0] == (
        f"prepare_data: cars196 cannot be downloaded, and {manual} lacks cars_train.tgz, "
        "car_devkit.tgz, cars_test_annos_withlabels.mat."
    )
    # As TFDS has it in its list of checksums.
    assert "979,269,282 bytes, sha256 512b227b30e2f0a8aab9e0948578" in done.errors


@pytest.mark.usefixtures("all_modules")
@pytest.mark.parametrize("name", ["imagenet_lt", "retinopathy", "resisc45", "sun397"])
def test_what_is_to_be_put_where_is_told(name: str, manual: pathlib.Path, run: Run) -> None:
    done = run(name)

    assert done.code == 1
    for file in obtaining.WAYS[name].files:
        assert f"\n    {file}\n" in f"{done.errors}\n"
    assert f"  Put into {manual}:" in done.errors


@pytest.mark.parametrize("name", registry.RECORDS)
def test_instructions_can_be_asked_for(name: str, run: Run) -> None:
    done = run("--instructions", name)

    assert done.code == 0
    assert done.output.startswith(f"{name} ({registry.RECORDS[name].tfds}): ")
    assert registry.RECORDS[name].licence in done.output
    for file in obtaining.WAYS[name].files:
        assert f"\n    {file}\n" in done.output


@pytest.mark.usefixtures("archive")
def test_a_folder_that_is_none_of_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_data", "food101", "--dir", "gs://bucket/data"])

    assert prepare_data.main() == 1
    assert "gs://bucket/data is not a local folder" in capsys.readouterr().err


def test_a_typing_error_shows_before_any_work(tmp_path: pathlib.Path, run: Run) -> None:
    done = run("food101", "food102")

    assert done.code == 1
    assert done.errors.startswith("prepare_data: Unknown food102; known are food101, ")
    assert not (tmp_path / "food101").exists()


@pytest.mark.usefixtures("archive")
def test_one_that_fails_does_not_stop_the_next(tmp_path: pathlib.Path, run: Run) -> None:
    done = run("resisc45", "food101")

    assert done.code == 1
    assert "resisc45 cannot be downloaded" in done.errors
    assert prepared.state("food101", str(tmp_path)) is not None


class Downloads:
    """Stands for TFDS's download manager, and keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def download_and_extract(self, wanted: dict[str, Any]) -> dict[str, str]:
        self.asked = [getattr(one, "url", one) for one in wanted.values()]
        return dict.fromkeys(wanted, "")

    def iter_archive(self, path: str) -> str:
        return path


def test_inaturalist_is_taken_from_where_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder: Any = tensorflow_datasets.builder("i_naturalist2017", data_dir=str(tmp_path))
    monkeypatch.setattr(inaturalist, "_URL", inaturalist._URL)  # Put back afterwards.
    known = dict(builder.url_infos)
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
        info.checksum for info in known.values()
    )
    assert {info.filename for info in moved.values()} == set(obtaining.WAYS["inat2017"].files)


@pytest.fixture
def imagenet(tmp_path: pathlib.Path, rng: np.random.Generator) -> None:
    """A tiny ImageNet, whose images our writer calls 000000, 000001, ..."""
    images = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    examples = images, np.arange(5) * 200
    tiny_tfds.write(registry.IMAGENET, tmp_path, {"train": examples, "validation": examples})


@pytest.mark.usefixtures("imagenet")
def test_imagenet_lt_is_an_index_where_imagenet_is_prepared(
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

    done = run("imagenet_lt", "--lists", str(tmp_path))

    assert done.code == 0, done.errors
    assert done.output == (
        "imagenet_lt: 2 images of train, 1 of validation; the paper has 115846 and 20000.\n"
    )
    splits = prepared.tfds("imagenet_lt", str(tmp_path)).splits
    assert [splits["train"].read(i).label for i in range(2)] == [600, 200]
    assert splits["test"].read(0).label == 800


@pytest.mark.usefixtures("imagenet")
def test_lists_of_imagenet_lt_that_lack_are_named(
    manual: pathlib.Path, tmp_path: pathlib.Path, run: Run
) -> None:
    (manual / "ImageNet_LT_train.txt").touch()

    done = run("imagenet_lt")

    assert done.code == 1
    assert f"is prepared, but {manual} lacks ImageNet_LT_val.txt, which say" in done.errors
    assert prepared.state("imagenet_lt", str(tmp_path)) is None


def _files(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_tool_runs_from_the_command_line(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "tools/prepare_data.py", "--instructions", "cars196", "--dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        cwd=root,
    )

    assert done.stdout.startswith("cars196 (cars196:2.*.*): dead address\n")
    assert done.stderr == ""
