"""The table of data sets, against TFDS's own."""

import pathlib
from typing import Any

import pytest
import tensorflow_datasets

from remem_jax import data
from remem_jax.data import registry


def _info(name: str, data_dir: pathlib.Path) -> Any:
    tfds_name = registry.RECORDS[name].tfds
    return tensorflow_datasets.builder(tfds_name, data_dir=str(data_dir), try_gcs=False).info


def test_there_are_the_sixteen_of_the_paper() -> None:
    assert len(registry.RECORDS) == 16


@pytest.mark.parametrize("name", registry.RECORDS)
def test_a_data_set_has_the_classes_of_tfds(name: str, tmp_path: pathlib.Path) -> None:
    label = _info(name, tmp_path).features["label"]

    assert registry.RECORDS[name].classes == label.num_classes


@pytest.mark.parametrize("name", registry.RECORDS)
def test_a_data_set_has_images_in_tfds(name: str, tmp_path: pathlib.Path) -> None:
    feature = _info(name, tmp_path).features["image"]

    assert isinstance(feature, tensorflow_datasets.features.Image)


@pytest.mark.parametrize("name", registry.RECORDS)
def test_a_data_set_names_a_metric(name: str) -> None:
    assert registry.RECORDS[name].metric in (registry.TOP1, registry.MEAN_PER_CLASS)


def test_digits_of_houses_alone_must_not_be_mirrored() -> None:
    assert [name for name, record in registry.RECORDS.items() if not record.flip] == ["svhn"]


def test_no_two_data_sets_have_one_name() -> None:
    assert len(set(data.NAMES)) == len(data.NAMES)
