"""Complete commands on a user's own images."""

import pathlib
from collections.abc import Callable

import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import quickstart, study
from remem_jax import workflow
from remem_jax.checks import SettingError
from remem_jax.study import worker


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of images of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / "mine" / name / f"{i}.png")
    return tmp_path / "mine"


def _run_of(images: pathlib.Path) -> ConfigDict:
    config = quickstart.get_config()
    config.data.name, config.data.path = "folder", str(images)
    return config


def _study_of(images: pathlib.Path) -> ConfigDict:
    base, changes = quickstart.get_config(), {"data": {"name": "folder", "path": str(images)}}
    columns = {"digits": study.column("Digits"), "mine": study.column("Mine", **changes)}
    config = study.make("Tiny", study.rows("finetune"), columns, base=base)
    config.grid, config.search.near = ConfigDict({"learning_rate": (0.05,)}), ConfigDict()
    return config


@pytest.mark.parametrize(
    ("run", "make"), [(workflow.run, _run_of), (worker.run, _study_of)], ids=["run", "study"]
)
@pytest.mark.parametrize("folder", ["run", "cat/run"])
def test_a_folder_among_the_images_is_refused_before_anything_is_written(
    images: pathlib.Path, run: Callable[..., None], make: Callable[..., ConfigDict], folder: str
) -> None:
    before = sorted(images.rglob("*"))

    with pytest.raises(SettingError, match=r"--workdir .* lies in config\.data\.path"):
        run(make(images), images / folder)

    assert sorted(images.rglob("*")) == before
