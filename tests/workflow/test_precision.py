"""The compute dtype of a run if it depends on the devices."""

import json
import pathlib

import jax
import pytest
from absl import logging
from ml_collections import ConfigDict

from configs import analysis, quickstart
from remem_jax import mesh, platforms, settings
from remem_jax.storage import identity
from remem_jax.workflow import precision


@pytest.fixture
def config() -> ConfigDict:
    return quickstart.get_config()


@pytest.fixture
def devices() -> jax.sharding.Mesh:
    return mesh.make_mesh()


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates devices that are fast in bfloat16."""
    monkeypatch.setattr(platforms, "compute_dtype", lambda _: "bfloat16")


def started(folder: pathlib.Path, config: ConfigDict, dtype: str) -> pathlib.Path:
    """Writes the config of a run that was started in this dtype; returns its folder."""
    plain = {**settings.plain(config), "compute_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


def test_on_cpus_a_run_computes_in_float32(config: ConfigDict, devices: jax.sharding.Mesh) -> None:
    assert config.compute_dtype == "auto"
    assert precision.resolved(config, devices).compute_dtype == "float32"


@pytest.mark.usefixtures("accelerators")
def test_a_named_dtype_is_used(config: ConfigDict, devices: jax.sharding.Mesh) -> None:
    config.compute_dtype = "float32"
    assert precision.resolved(config, devices).compute_dtype == "float32"


@pytest.mark.usefixtures("accelerators")
def test_settings_are_unchanged(config: ConfigDict, devices: jax.sharding.Mesh) -> None:
    resolved = precision.resolved(config, devices)

    assert (config.compute_dtype, resolved.compute_dtype) == ("auto", "bfloat16")
    assert resolved.student.to_dict() == config.student.to_dict()


@pytest.mark.usefixtures("accelerators")
def test_a_resumed_run_keeps_its_dtype(
    config: ConfigDict,
    devices: jax.sharding.Mesh,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = started(tmp_path, config, "float32")
    logging.set_verbosity(logging.INFO)

    with caplog.at_level("INFO", logger="absl"):
        resolved = precision.resolved(config, devices, folder)

    assert resolved.compute_dtype == "float32"
    assert (
        "started in float32 and continues in it; a new run would compute in bfloat16" in caplog.text
    )


@pytest.mark.usefixtures("accelerators")
def test_the_key_of_a_result_includes_the_dtype(
    config: ConfigDict, devices: jax.sharding.Mesh
) -> None:
    def key(config: ConfigDict) -> str:
        return identity.Identity(settings.deciding(config), {}).key

    named = quickstart.get_config()
    named.compute_dtype = "bfloat16"
    assert key(precision.resolved(config, devices)) == key(named)


@pytest.mark.usefixtures("accelerators")
def test_analyses_compute_in_float32(devices: jax.sharding.Mesh) -> None:
    assert precision.resolved(analysis.get_config(), devices).compute_dtype == "float32"
