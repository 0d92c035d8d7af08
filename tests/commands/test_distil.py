"""The arguments of `remem distil`, as settings of `configs/own.py`."""

import pathlib
from typing import Any

import pytest

from configs import own
from remem_jax.commands import distil
from remem_jax.settings import values

Leaves = dict[str, Any]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Any:
    """Runs the command with a workflow that keeps its settings; returns them and the folder."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    (tmp_path / "cats.and.dogs").mkdir()

    def run(*arguments: str) -> tuple[Leaves, str]:
        parsed, rest = distil.parse(arguments)
        given = dict(each.removeprefix("--").split("=", 1) for each in [*parsed, *rest])
        config = own.get_config(given.pop("config").removeprefix("configs/own.py:"))
        known, folder = dict(values.leaves(config)), given.pop("workdir")
        for name, text in given.items():
            leaf = name.removeprefix("config.")
            known[leaf] = type(known[leaf])(text)
        return known, folder

    return run


def test_the_defaults_are_those_of_the_config(settings_of: Any, tmp_path: pathlib.Path) -> None:
    images = tmp_path / "cats.and.dogs"
    settings, folder = settings_of(str(images))
    assert settings == dict(values.leaves(own.get_config(str(images))))
    assert folder == "runs/cats.and.dogs"


def test_each_option_sets_one_setting(settings_of: Any, tmp_path: pathlib.Path) -> None:
    default, _ = settings_of("images")
    options = {
        "--hours=0.5": ("budget.hours", 0.5),
        "--student=resnet18": ("student.model", "resnet18"),
        "--student-weights=weights/a.safetensors": ("student.init", "weights/a.safetensors"),
        "--student-weights=": ("student.init", ""),
        "--teacher=augreg:S/16": ("teacher.init", "augreg:S/16"),
        "--size=128": ("data.image_size", 128),
        "--unlabelled=more": ("data.unlabelled", "more"),
        "--config.seed=3": ("seed", 3),
    }
    for option, (name, value) in options.items():
        settings, _ = settings_of("images", option)
        assert settings == {**default, name: value}
    settings, folder = settings_of("images", "--classes-from=labels.csv")
    listed, _ = settings_of("labels.csv")
    assert settings == {**listed, "data.root": "images"}
    assert folder == "runs/images"
    assert settings_of("images", "--out=elsewhere")[1] == "elsewhere"


@pytest.mark.parametrize(
    ("images", "name", "path", "folder"),
    [
        ("list.csv", "list", "list.csv", "runs/list"),
        ("arrays.npz", "arrays", "arrays.npz", "runs/arrays"),
        ("tfds:eurosat/rgb:2.0.0", "tfds:eurosat/rgb:2.0.0", "", "runs/eurosat_rgb_2.0.0"),
    ],
)
def test_images_may_be_in_a_list_an_array_or_tfds(
    settings_of: Any, images: str, name: str, path: str, folder: str
) -> None:
    settings, out = settings_of(images)
    assert (settings["data.name"], settings["data.path"], out) == (name, path, folder)


def test_what_is_no_option_and_no_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distil.main(["images", "--teacher_size=3"])
    assert "unknown arguments --teacher_size=3; settings begin with --config." in (
        capsys.readouterr().err
    )
