"""What a report names as different from the paper."""

import importlib.util
import pathlib
from typing import Any

import pytest

from remem_jax import settings
from remem_jax.report import protocol


def _config(name: str, *options: str) -> dict[str, Any]:
    """The settings of a config, as results.json has them."""
    path = pathlib.Path(__file__).parents[2] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return settings.deciding(module.get_config(*options))


@pytest.mark.parametrize("loss", ["kd", "dist", "patient"])
def test_the_papers_own_settings_differ_in_nothing(loss: str) -> None:
    assert protocol.deviations(_config("remem", f"cifar100,loss={loss}")) == []


def test_patient_distillation_takes_ten_times_the_steps() -> None:
    config = _config("remem", "cifar100,loss=patient")
    config["student"]["steps"] = 20_000

    (sentence,) = protocol.deviations(config)

    assert sentence == "student.steps is 20,000; the paper has 200,000."


@pytest.mark.parametrize(
    ("group", "name", "value", "sentence"),
    [
        ("data", "image_size", 64, "data.image_size is 64; the paper has 224."),
        ("student", "steps", 300, "student.steps is 300; the paper has 20,000."),
        ("teacher", "mcmi", 0.25, "teacher.mcmi is 0.25; the paper has 0.0."),
        ("teacher", "rho", 0.2, "teacher.rho is 0.2; the paper has one of 0.5, 0.05, 0.005."),
        (
            "student",
            "weights",
            [0.9],
            "student.weights is 0.9; the paper has 0.1, 0.5, 0.9.",
        ),
    ],
)
def test_a_setting_that_is_not_the_papers_is_named(
    group: str, name: str, value: Any, sentence: str
) -> None:
    config = _config("remem")
    config[group][name] = value

    assert protocol.deviations(config) == [sentence]


def test_the_quick_start_differs_in_its_images_and_its_length() -> None:
    found = " ".join(protocol.deviations(_config("quickstart")))

    assert "data.image_size" in found
    assert "student.steps" in found
    assert "teacher.variant" in found
