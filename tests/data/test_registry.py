"""The table of data sets, compared with TFDS."""

import pathlib
from typing import Any

import pytest
import tensorflow_datasets

from remem_jax import data
from remem_jax.data import registry
from remem_jax.data.tfds import obtaining


def _builder(name: str, data_dir: pathlib.Path) -> Any:
    tfds_name = registry.RECORDS[name].tfds
    return tensorflow_datasets.builder(tfds_name, data_dir=str(data_dir), try_gcs=False)


def _info(name: str, data_dir: pathlib.Path) -> Any:
    return _builder(name, data_dir).info


def test_the_table_contains_the_paper_s_sixteen_data_sets() -> None:
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


@pytest.mark.parametrize("name", registry.RECORDS)
def test_is_official_accepts_only_the_official_counts(name: str) -> None:
    record = registry.RECORDS[name]

    train, test, validation = *record.examples, record.validation_examples

    assert record.is_official((train, test), validation)
    assert not record.is_official((train - 3, test), validation)
    assert not record.is_official((train, test + 3), validation)
    assert not record.is_official((test, train + 3), validation)
    assert not record.is_official((train, test), validation + 1)


@pytest.mark.parametrize(
    ("name", "counts", "official"),
    [
        ("sun397_tfds", (76127, 10875), True),
        ("sun397_tfds", (76128, 10874), False),
        ("caltech101", (3059, 6085), True),
        ("caltech101", (3058, 6086), False),
        ("pets", (3680, 3668), False),
    ],
)
def test_known_omissions_of_tfds_still_count_as_official(
    name: str, counts: tuple[int, int], official: bool
) -> None:
    assert registry.RECORDS[name].is_official(counts) is official


@pytest.mark.parametrize("name", registry.RECORDS)
def test_files_in_the_manual_folder_have_the_names_tfds_expects(
    name: str, tmp_path: pathlib.Path
) -> None:
    infos = _builder(name, tmp_path).url_infos or {}
    known = {info.filename or url.rpartition("/")[2] for url, info in infos.items()}
    named_in_code = {  # Files that TFDS opens in its manual folder without a checksum.
        "imagenet_lt": {"ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"},
        "retinopathy": {"train", "test", "sample", "trainLabels.csv"},
        "resisc45": {"NWPU-RESISC45"},
    }

    assert set(obtaining.WAYS[name].files) <= named_in_code.get(name, known)


@pytest.mark.parametrize("name", registry.RECORDS)
def test_tfds_downloads_all_but_the_manual_ones(name: str, tmp_path: pathlib.Path) -> None:
    wants_files = bool(_builder(name, tmp_path).MANUAL_DOWNLOAD_INSTRUCTIONS)

    assert (registry.RECORDS[name].obtained == registry.MANUAL) == wants_files


@pytest.mark.parametrize("name", registry.RECORDS)
def test_each_data_set_has_a_page_and_a_licence(name: str) -> None:
    record = registry.RECORDS[name]

    assert record.page.startswith("http")
    assert record.licence


def test_only_svhn_must_not_be_mirrored() -> None:
    assert [name for name, record in registry.RECORDS.items() if not record.flip] == ["svhn"]


def test_names_of_data_sets_are_unique() -> None:
    assert len(set(data.NAMES)) == len(data.NAMES)
