"""The catalogue of pretrained students, compared with timm's registry."""

import math

import numpy as np
import pytest

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import student_catalog
from remem_jax.weights.student_catalog import PUBLISHED
from tests.oracles import peers


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_are_as_in_the_registry_of_timm(name: str) -> None:
    weights = PUBLISHED[name]
    config = peers.timm().get_pretrained_cfg(name)

    assert config.hf_hub_id == weights.repository
    assert config.license == weights.licence
    assert config.input_size == (3, weights.train_pixels, weights.train_pixels)
    tested = config.test_input_size or config.input_size
    assert tested == (3, weights.test_pixels, weights.test_pixels)
    assert config.num_classes == 1000
    assert ("in21k" in name, "in12k" in name) == (
        "21k" in weights.pretraining,
        "12k" in weights.pretraining,
    )
    if weights.normalisation != student_catalog.LITE:
        assert Normalisation(config.mean, config.std) == weights.normalisation


def test_lite_networks_get_pixels_within_one_128th_of_those_of_timm() -> None:
    config = peers.timm().get_pretrained_cfg("tf_efficientnet_lite0.in1k")
    pixels = np.arange(256) / 255
    ours, theirs = (
        (pixels - mean[0]) / std[0]
        for mean, std in (student_catalog.LITE, (config.mean, config.std))
    )

    np.testing.assert_allclose(ours, (np.arange(256) - 127) / 128, atol=1e-12)
    assert math.isclose(abs(ours - theirs).max(), 1 / 128)


def test_students_without_an_entry_have_no_weights_in_timm() -> None:
    published = {name.partition(".")[0] for name in peers.timm().list_models(pretrained=True)}
    without = [name for name in models.STUDENTS if not student_catalog.of_student(name)]

    assert not [name for name in without if models.STUDENTS[name].timm in published]


def test_recommended_weights_are_the_first_of_a_student() -> None:
    assert student_catalog.find("imagenet", "resnet18").name == "resnet18.a1_in1k"
    assert student_catalog.find("resnet18.tv_in1k", "resnet18").licence == "bsd-3-clause"


def test_weights_of_another_student_are_refused() -> None:
    with pytest.raises(SettingError, match=r"weights of mobilenetv2_050.*to 'mobilenet_v2_050'"):
        student_catalog.find("mobilenetv2_050.lamb_in1k", "mobilenet_v2")
    with pytest.raises(SettingError, match=r"no pretrained weights for mobilenet_v2_035.*resnet18"):
        student_catalog.find("imagenet", "mobilenet_v2_035")
