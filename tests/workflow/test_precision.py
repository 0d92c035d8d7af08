"""The dtype of a run whose devices decide it."""

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
def on() -> jax.sharding.Mesh:
    return mesh.make_mesh()


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the devices for some that are fast in bfloat16."""
    monkeypatch.setattr(platforms, "compute_dtype", lambda _: "bfloat16")


def begun(folder: pathlib.Path, config: ConfigDict, dtype: str) -> pathlib.Path:
    """A folder of a run that was begun in a type."""
    plain = {**settings.plain(config), "compute_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


def test_on_cpus_a_run_computes_in_float32(config: ConfigDict, on: jax.sharding.Mesh) -> None:
    assert config.compute_dtype == "auto"
    assert precision.resolved(config, on).compute_dtype == "float32"


@pytest.mark.usefixtures("accelerators")
def test_a_named_dtype_is_used(config: ConfigDict, on: jax.sharding.Mesh) -> None:
    config.compute_dtype = "float32"
    assert precision.resolved(config, on).compute_dtype == "float32"


@pytest.mark.usefixtures("accelerators")
def test_settings_are_unchanged(config: ConfigDict, on: jax.sharding.Mesh) -> None:
    found = precision.resolved(config, on)

    assert (config.compute_dtype, found.compute_dtype) == ("auto", "bfloat16")
    assert found.student.to_dict() == config.student.to_dict()


@pytest.mark.usefixtures("accelerators")
def test_a_resumed_run_keeps_its_dtype(
    config: ConfigDict,
    on: jax.sharding.Mesh,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = begun(tmp_path, config, "float32")
    logging.set_verbosity(logging.INFO)

    with caplog.at_level("INFO", logger="absl"):
        found = precision.resolved(config, on, folder)

    assert found.compute_dtype == "float32"
    assert (
        "started in float32 and continues in it; a new run would compute in bfloat16" in caplog.text
    )


@pytest.mark.usefixtures("accelerators")
def test_the_key_of_a_result_includes_the_dtype(config: ConfigDict, on: jax.sharding.Mesh) -> None:
    def key(one: ConfigDict) -> str:
        return identity.Identity(settings.deciding(one), {}).key

    named = quickstart.get_config()
    named.compute_dtype = "bfloat16"
    assert key(precision.resolved(config, on)) == key(named)


@pytest.mark.usefixtures("accelerators")
def test_analyses_compute_in_float32(on: jax.sharding.Mesh) -> None:
    assert precision.resolved(analysis.get_config(), on).compute_dtype == "float32"
