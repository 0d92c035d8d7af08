"""Initial checkpoints are validated before the data are read, and are read once."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import analysis
from remem_jax import models, workflow
from remem_jax.checks import SettingError
from remem_jax.models.normalisation import IDENTITY, IMAGENET, Normalisation
from remem_jax.weights import augreg, timm, timm_names
from remem_jax.workflow import context, initial_checkpoints
from remem_jax.workflow.remem import finetune
from tests import tiny_run

Arrays = dict[str, np.ndarray]
KERNEL = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """The arrays of a small ViT for images of 16 pixels."""
    shapes = augreg.names_and_shapes(models.make("vit", variant=tiny_run.TEACHER, classes=3), 16)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _store(path: pathlib.Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


@pytest.fixture
def config(arrays: Arrays, tmp_path: pathlib.Path) -> ConfigDict:
    """The config of a run that starts from these arrays."""
    config = tiny_run.digits()
    config.methods = ("finetune",)
    config.data.image_size = 16
    config.teacher.variant = ""
    config.teacher.init = str(tmp_path / "vit.npz")
    _store(tmp_path / "vit.npz", **arrays)
    return config


@pytest.fixture
def data_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reads the data."""

    def load_data(*arguments: object) -> None:
        pytest.fail("The data were read.")

    monkeypatch.setattr(context, "load_data", load_data)


def _with_nan(arrays: Arrays) -> Arrays:
    kernel = arrays[KERNEL].copy()
    kernel[0, 0] = np.nan
    return arrays | {KERNEL: kernel}


BROKEN: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "NaN": (_with_nan, rf"holds NaN or infinity, in {KERNEL}"),
    "missing": (lambda a: {n: x for n, x in a.items() if n != KERNEL}, f"missing: {KERNEL}"),
    "unexpected": (lambda a: a | {"extra": np.zeros(1, np.float32)}, "unexpected: extra"),
    "mis-shaped": (lambda a: a | {KERNEL: a[KERNEL].T}, f"mis-shaped: {KERNEL}"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_checkpoint_is_rejected_before_the_data_are_read(
    kind: str, config: ConfigDict, arrays: Arrays, tmp_path: pathlib.Path, data_unread: None
) -> None:
    damage, message = BROKEN[kind]
    _store(tmp_path / "vit.npz", **damage(arrays))

    with pytest.raises(SettingError, match=message):
        workflow.run(config, tmp_path / "run")


def test_a_truncated_file_is_rejected_before_the_data_are_read(
    config: ConfigDict, tmp_path: pathlib.Path, data_unread: None
) -> None:
    path = tmp_path / "vit.npz"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(SettingError, match=r"is not a whole \.npz checkpoint"):
        workflow.run(config, tmp_path / "run")


def test_another_variant_is_rejected_before_the_data_are_read(
    config: ConfigDict, tmp_path: pathlib.Path, data_unread: None
) -> None:
    config.teacher.variant, config.data.image_size = "Ti/16", 32

    with pytest.raises(SettingError, match=r"not ViT-Ti/16 .*set config\.teacher\.variant"):
        workflow.run(config, tmp_path / "run")


def test_images_that_do_not_divide_into_patches_are_rejected_before_they_are_read(
    config: ConfigDict, tmp_path: pathlib.Path, data_unread: None
) -> None:
    config.teacher.variant, config.data.image_size = "", 20

    with pytest.raises(
        SettingError, match=r"must be a multiple of 8, the patch size of the checkpoint"
    ):
        workflow.run(config, tmp_path / "run")


def test_the_last_checkpoint_of_an_analysis_is_rejected_before_the_data_are_read(
    arrays: Arrays, config: ConfigDict, tmp_path: pathlib.Path, data_unread: None
) -> None:
    _store(tmp_path / "nan.npz", **_with_nan(arrays))
    config_of_two = analysis.get_config(f"digits,init={config.teacher.init}|{tmp_path}/nan.npz")
    config_of_two.analyses, config_of_two.data.image_size = ("expertness",), 16

    with pytest.raises(SettingError, match=r"nan\.npz holds NaN or infinity"):
        workflow.run(config_of_two, tmp_path / "run")


def test_a_checkpoint_is_read_once(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = augreg.read

    def counted(path: str | pathlib.Path, **options: Any) -> augreg.Checkpoint:
        read.append(str(path))
        return original(path, **options)

    def read_checkpoint(run: context.Run) -> None:
        assert finetune.read_pretrained(run).checkpoint.size.features > 0

    monkeypatch.setattr(augreg, "read", counted)
    monkeypatch.setitem(workflow.WORKFLOWS, "remem", read_checkpoint)

    workflow.run(config, tmp_path / "run")

    assert read == [config.teacher.init]


def test_a_run_without_a_teacher_reads_no_checkpoint(
    config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.methods = ("scratch",)
    (tmp_path / "vit.npz").write_bytes(b"")
    runs: list[context.Run] = []
    monkeypatch.setitem(workflow.WORKFLOWS, "remem", runs.append)

    workflow.run(config, tmp_path / "run")

    assert len(runs) == 1


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (None, IDENTITY),  # Without a description.
        ((), IMAGENET),
        ((0.1, 0.2, 0.3), Normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))),
    ],
)
def test_images_are_normalised_as_settings_or_description_say(
    arrays: Arrays,
    config: ConfigDict,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    mean: tuple[float, ...] | None,
    expected: Normalisation,
) -> None:
    timm.save(tmp_path / "vit.safetensors", timm_names.to_timm(arrays))
    if mean is not None:
        statistics = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
        content = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": statistics}
        (tmp_path / "config.json").write_text(json.dumps(content))
    config.teacher.init = str(tmp_path / "vit.safetensors")
    config.teacher.mean, config.teacher.std = mean or (), (1.0, 1.0, 1.0) if mean else ()

    read = initial_checkpoints.read(config)

    assert read.normalisation == expected
    is_warned = "does not record the mean and the deviation" in caplog.text
    assert is_warned == (expected == IDENTITY)
