"""SAM's groups of images if `config.teacher.ascent_examples` is each device's share."""

import json
import pathlib
from typing import Any

import jax
import pytest
from absl import logging
from ml_collections import ConfigDict

from configs import quickstart
from remem_jax import mesh, settings
from remem_jax.checks import SettingError
from remem_jax.storage import identity, workdir
from remem_jax.workflow import ascent
from remem_jax.workflow.remem import deviations

BATCH = 64


@pytest.fixture
def config() -> ConfigDict:
    config = quickstart.get_config()
    config.methods = ("finetune", "remem")
    config.teacher.rho, config.teacher.batch_size = 0.05, BATCH
    config.teacher.ascent_examples = -1
    return config


@pytest.fixture
def two() -> jax.sharding.Mesh:
    """A mesh of two devices."""
    return mesh.make_mesh()


@pytest.fixture
def one() -> jax.sharding.Mesh:
    """A mesh of one device."""
    return mesh.make_mesh(jax.devices()[:1])


def started(folder: pathlib.Path, config: ConfigDict, **teacher: Any) -> pathlib.Path:
    """Writes the config of a run that was started with these settings; returns its folder."""
    plain = settings.plain(config)
    plain["teacher"] |= teacher
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


def test_a_new_run_takes_the_share_of_its_devices(
    config: ConfigDict, one: jax.sharding.Mesh, two: jax.sharding.Mesh, tmp_path: pathlib.Path
) -> None:
    assert ascent.resolved(config, two, tmp_path).teacher.ascent_examples == 32
    assert ascent.resolved(config, one, tmp_path).teacher.ascent_examples == 64
    assert config.teacher.ascent_examples == -1


@pytest.mark.parametrize("group", [0, 8])
def test_a_number_of_images_stays(
    config: ConfigDict, two: jax.sharding.Mesh, tmp_path: pathlib.Path, group: int
) -> None:
    config.teacher.ascent_examples = group
    assert ascent.resolved(config, two, tmp_path) is config


def test_a_run_without_sam_stays_as_it_is(
    config: ConfigDict, two: jax.sharding.Mesh, tmp_path: pathlib.Path
) -> None:
    config.methods = ("scratch", "finetune")
    assert ascent.resolved(config, two, tmp_path) is config


def test_a_resumed_run_keeps_its_groups_on_other_devices(
    config: ConfigDict,
    one: jax.sharding.Mesh,
    two: jax.sharding.Mesh,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = ascent.resolved(config, two, tmp_path)
    with workdir.claimed(tmp_path, settings.plain(begun)):
        workdir.begin(tmp_path, settings.plain(begun), identity.Identity({}, {}))
    logging.set_verbosity(logging.INFO)

    with caplog.at_level("INFO", logger="absl"):
        resumed = ascent.resolved(config, one, tmp_path)

    assert resumed.teacher.ascent_examples == 32
    assert "an ascent step of SAM for each 32 images, and continues with it" in caplog.text
    with workdir.claimed(tmp_path, settings.plain(resumed)):
        assert settings.division(resumed.teacher, one).counts(BATCH) == (2, 1)


def test_devices_that_cannot_share_the_groups_are_refused(
    config: ConfigDict, two: jax.sharding.Mesh, tmp_path: pathlib.Path
) -> None:
    config.teacher.batch_size = 66
    started(tmp_path, config, ascent_examples=22)

    with pytest.raises(SettingError, match=r"2 devices cannot continue: use .* divides 3,"):
        ascent.resolved(config, two, tmp_path)


def test_a_folder_of_an_earlier_version_goes_on_with_the_devices_of_now(
    config: ConfigDict,
    two: jax.sharding.Mesh,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started(tmp_path, config)

    with caplog.at_level("WARNING", logger="absl"):
        resumed = ascent.resolved(config, two, tmp_path)

    assert "for each 32 images, which is right if there were 2 devices, as now" in caplog.text
    with workdir.claimed(tmp_path, settings.plain(resumed)):  # The same identity as before.
        assert ascent.record(resumed.teacher, two) == {
            "examples": 32,
            "batch_size": 64,
            "devices": 2,
        }


@pytest.mark.parametrize("changes", [{"ascent_examples": 0}, {"batch_size": 128}])
def test_a_folder_of_another_optimisation_is_refused(
    config: ConfigDict, two: jax.sharding.Mesh, tmp_path: pathlib.Path, changes: dict[str, int]
) -> None:
    started(tmp_path, config, **changes)
    now = ascent.resolved(config, two, tmp_path)

    with (
        pytest.raises(SettingError, match=r"teacher\.(ascent_examples|batch_size) was"),
        workdir.claimed(tmp_path, settings.plain(now)),
    ):
        pass


@pytest.mark.parametrize(
    ("rho", "group", "expected"),
    [(0.0, 0, None), (0.5, 0, (64, 1)), (0.5, 16, (16, 4)), (0.5, -1, (32, 2))],
)
def test_the_record_has_the_images_of_an_ascent_step(
    config: ConfigDict,
    two: jax.sharding.Mesh,
    rho: float,
    group: int,
    expected: tuple[int, int] | None,
) -> None:
    config.teacher.rho, config.teacher.ascent_examples = rho, group
    record = ascent.record(config.teacher, two)
    assert (record and (record["examples"], record["devices"])) == expected


def test_the_report_states_groups_but_not_whole_batches() -> None:
    ascents = [None, {"examples": 64, "batch_size": 512, "devices": 8}] * 2
    ascents += [{"examples": 512, "batch_size": 512, "devices": 1}]

    assert deviations.divided([{"ascent": each} for each in ascents]) == [
        "SAM's ascent step is taken for each 64 images, as on 8 devices that share a batch of 512."
    ]
