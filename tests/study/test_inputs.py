"""Keys of trials: they depend on images and weights, not on their paths."""

import logging
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import quickstart, study
from remem_jax.checks import SettingError
from remem_jax.storage import results
from remem_jax.study import inputs, queue, space
from remem_jax.study.configurations import Configuration


@pytest.fixture
def images(rng: np.random.Generator, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two classes."""
    for name in ("cat", "dog"):
        folder = tmp_path / "here" / name
        folder.mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "here"


def _study(images: pathlib.Path) -> ConfigDict:
    base = quickstart.get_config()
    base.data.name, base.data.path = "folder", str(images)
    base.data.cache = str(images.parent / "cache")
    base.student.batch_size = base.teacher.batch_size = 4
    rows = study.rows("scratch", "finetune")
    config = study.make("Mine", rows, {"mine": study.column("Mine")}, base=base)
    config.grid = ConfigDict({"learning_rate": (0.05,)})
    config.search.near = ConfigDict()
    return config


def _read(config: ConfigDict) -> inputs.Inputs:
    return inputs.read(space.trials(config))


def _keys(config: ConfigDict, read: inputs.Inputs | None = None) -> list[str]:
    return [trial.key for trial in space.trials(config, (read or _read(config)).identify)]


def _by_row(config: ConfigDict) -> list[tuple[str, str]]:
    identify = _read(config).identify
    return [(trial.row, trial.key) for trial in space.trials(config, identify)]


def test_moved_images_keep_their_trials(images: pathlib.Path) -> None:
    before = _keys(_study(images))
    elsewhere = images.parent / "mount" / "elsewhere"
    shutil.copytree(images, elsewhere)
    shutil.rmtree(images)

    assert _keys(_study(elsewhere)) == before


def test_moved_weights_keep_their_trials(images: pathlib.Path) -> None:
    config = _study(images)
    before = _keys(config)
    bundled = pathlib.Path(inputs.__file__).parents[1] / "weights" / "bundled"
    (weights,) = bundled.glob("*.npz")
    shutil.copy(weights, images.parent / "moved.npz")

    config.base.teacher.init = str(images.parent / "moved.npz")

    assert _keys(config) == before


@pytest.mark.parametrize("change", ["image", "class"])
def test_changed_images_give_new_trials(images: pathlib.Path, change: str) -> None:
    config = _study(images)
    before = _keys(config)

    if change == "image":
        Image.new("RGB", (8, 8)).save(images / "cat" / "0.png")
    else:
        (images / "cat").rename(images / "catfish")

    assert set(_keys(config)).isdisjoint(before)


def test_trials_without_a_teacher_need_no_weights(images: pathlib.Path) -> None:
    config = _study(images)
    config.only = "scratch"
    config.base.teacher.init = "not_there.npz"

    (trial,) = space.trials(config)

    assert "teacher" not in _read(config).of(trial.config)


def test_an_error_about_missing_images_names_the_cell(images: pathlib.Path) -> None:
    config = _study(images / "gone")

    with pytest.raises(SettingError, match=r"scratch, mine: .*gone.*config\.only"):
        _read(config)


def test_unlabelled_images_identify_only_trials_with_a_teacher(images: pathlib.Path) -> None:
    config, more = _study(images), images.parent / "more"
    shutil.copytree(images, more)
    config.base.data.unlabelled = str(more)
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(more / f"{i}.png")
    before, read = dict(_by_row(config)), _read(config)
    identity = inputs.of_study(config, space.trials(config), read)

    Image.new("RGB", (8, 8), (9, 0, 0)).save(more / "9.png")

    after = dict(_by_row(config))
    assert before["scratch"] == after["scratch"]
    assert before["finetune"] != after["finetune"]
    changed = inputs.of_study(config, space.trials(config), _read(config))
    assert identity.settings == changed.settings
    assert identity.inputs != changed.inputs


# A study of an older version.


def _queue(folder: pathlib.Path) -> queue.Queue:
    return queue.open_queue(
        "sqlite", "mine", folder=folder, heartbeat_seconds=1, grace_seconds=9, attempts=1
    )


def _done_before(config: ConfigDict, folder: pathlib.Path, **changes: str) -> str:
    """Finishes the fine-tuning trial as an older version does; returns its key."""
    (trial,) = [trial for trial in space.trials(config) if trial.row == "finetune"]
    digests = _read(config).of(trial.config) | changes
    record: dict[str, Any] = {
        "data": {"fingerprint": digests["data"]},
        "models": {"init_digest": digests["teacher"]},
    }
    with _queue(folder) as shared:
        shared.add([Configuration(trial.key, trial.point, {})])
        claim = shared.claim([trial.key])
        assert claim
        assert claim.done(0.5, record)
    return trial.key


def _keys_after(config: ConfigDict, folder: pathlib.Path) -> list[str]:
    by_place = {trial.key: trial for trial in space.trials(config)}
    with _queue(folder) as shared:
        return _keys(config, inputs.with_kept(_read(config), by_place, shared, folder))


def test_finished_trials_of_an_older_version_are_kept(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _study(images)

    key = _done_before(config, tmp_path)

    keys = _keys_after(config, tmp_path)
    assert key in keys
    assert len(keys) == 2


@pytest.mark.parametrize("change", [{"data": "facade"}, {"teacher": "facade"}])
def test_trials_of_an_older_version_with_other_inputs_start_over(
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, str],
) -> None:
    config = _study(images)

    key = _done_before(config, tmp_path, **change)

    caplog.set_level(logging.WARNING, "absl")
    assert key not in _keys_after(config, tmp_path)
    assert f"Trial {key} of an older version used other images" in caplog.text


def test_trials_of_an_older_version_with_a_loss_that_has_changed_start_over(
    images: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _study(images)
    config.base.student.losses = ("kd_standardised",)

    key = _done_before(config, tmp_path)

    caplog.set_level(logging.WARNING, "absl")
    assert key not in _keys_after(config, tmp_path)
    assert f"Trial {key} of an older version used other images" in caplog.text


def test_a_started_trial_of_an_older_version_is_resumed(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _study(images)
    (trial,) = [trial for trial in space.trials(config) if trial.row == "finetune"]
    with _queue(tmp_path) as shared:
        shared.add([Configuration(trial.key, trial.point, {})])
    begun = {**_read(config).of(trial.config), "input": "resident"}
    results.write(tmp_path / "trials" / trial.key / "inputs.json", begun)

    assert trial.key in _keys_after(config, tmp_path)
