"""Groups of images that are held out together, from every kind of source."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image
from sklearn import neighbors

from remem_jax import data
from remem_jax.checks import SettingError
from remem_jax.data import groups, sources
from remem_jax.data.tfds import named
from tests.data.inspection import photographs

PATIENTS, IMAGES = 60, 6  # Images of each patient.
TILES = photographs.clear_tiles(64)


class Written:
    """Images of patients: their pixels, labels, and file names with the patient's number."""

    def __init__(self, rng: np.random.Generator) -> None:
        # What a patient looks like tells nothing about the class: only memory can.
        looks = rng.integers(0, 236, (PATIENTS, 8, 8, 3))
        classes = np.repeat([0, 1], PATIENTS // 2)
        self.patients = np.repeat(np.arange(PATIENTS), IMAGES)
        noise = rng.integers(0, 20, (PATIENTS * IMAGES, 8, 8, 3))
        self.images = (looks[self.patients] + noise).astype(np.uint8)
        self.labels = classes[self.patients]
        self.names = [
            f"{('well', 'ill')[label]}/patient{patient:02}_{i}.png"
            for i, (patient, label) in enumerate(zip(self.patients, self.labels, strict=True))
        ]

    def write(self, root: pathlib.Path, prefix: Callable[[int], str] = lambda i: "") -> None:
        """Writes the images as files."""
        for i, (name, image) in enumerate(zip(self.names, self.images, strict=True)):
            path = root / f"{prefix(i)}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

    def patient(self, image: Any) -> int:
        """Returns the patient of an image of a run."""
        pixels = image if isinstance(image, np.ndarray) else _decoded(image)
        return int(self.patients[(self.images == pixels).all((1, 2, 3))][0])


def _decoded(image: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.fixture
def written(rng: np.random.Generator) -> Written:
    """Sixty patients with six images each."""
    return Written(rng)


def _load(source: sources.Source, *, near_duplicates: bool = False, **rules: Any) -> data.Dataset:
    return data.load(
        source,
        data.Storage("resident", 64, 1.0, "", 2),
        data.Rules(**{"validation": 0.2, "seed": 0} | rules, near_duplicates=near_duplicates),
        corrupt_limit=0,
    )


def _patients(written: Written, dataset: data.Dataset) -> dict[str, set[int]]:
    return {
        name: {written.patient(subset.image(i)) for i in range(len(subset.rows))}
        for name, subset in dataset.splits.items()
    }


def _require_apart(of_split: dict[str, set[int]]) -> None:
    everyone = [patient for patients in of_split.values() for patient in patients]
    assert len(everyone) == len(set(everyone))


def _folder(written: Written, root: pathlib.Path) -> sources.Source:
    written.write(root)
    return data.open_source("folder", path=str(root), data_dir="", group_pattern=r"patient(\d+)_")


def _csv(written: Written, root: pathlib.Path) -> sources.Source:
    written.write(root)
    rows = [
        f"{name},{name.split('/')[0]},{patient}"
        for name, patient in zip(written.names, written.patients, strict=True)
    ]
    (root / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    return data.open_source("list", path=str(root / "list.csv"), data_dir="")


def _json_lines(written: Written, root: pathlib.Path) -> sources.Source:
    written.write(root)
    rows = [
        json.dumps({"path": name, "label": name.split("/")[0], "group": int(patient)})
        for name, patient in zip(written.names, written.patients, strict=True)
    ]
    (root / "list.jsonl").write_text("\n".join(rows))
    return data.open_source("list", path=str(root / "list.jsonl"), data_dir="")


def _listed_by_pattern(written: Written, root: pathlib.Path) -> sources.Source:
    written.write(root)
    rows = [f"{name},{name.split('/')[0]}" for name in written.names]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))
    path = str(root / "list.csv")
    return data.open_source("list", path=path, data_dir="", group_pattern=r"patient\d+")


with tensorflow_datasets.core.registered.skip_registration():

    class _Clinic(tensorflow_datasets.core.GeneratorBasedBuilder):
        """A builder of a user, whose records name their patients."""

        VERSION = tensorflow_datasets.core.Version("1.0.0")
        name = "clinic"
        written: Written
        kind: str

        def _info(self) -> Any:
            kinds = tensorflow_datasets.features
            patient = kinds.Text() if self.kind == "text" else kinds.Scalar(np.int64)
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=kinds.FeaturesDict(
                    {
                        "image": kinds.Image(shape=(8, 8, 3)),
                        "label": kinds.ClassLabel(names=["well", "ill"]),
                        "patient": patient,
                    }
                ),
            )

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            from tests.data import tiny_tfds

            rows = zip(self.written.images, self.written.labels, self.written.patients, strict=True)
            for i, (image, label, patient) in enumerate(rows):
                value = f"visit {i} of {patient:02}" if self.kind == "text" else int(patient)
                example = {"image": tiny_tfds.png(image), "label": int(label), "patient": value}
                yield f"{i:04}", example


def _tfds(written: Written, root: pathlib.Path, kind: str, pattern: str = "") -> sources.Source:
    with tensorflow_datasets.core.registered.skip_registration():
        builder = type("Clinic", (_Clinic,), {"written": written, "kind": kind, "name": "clinic"})
    builder(data_dir=str(root)).download_and_prepare(file_format="array_record")
    return data.open_source(
        "tfds:clinic",
        path="",
        data_dir=str(root),
        choices=named.Choices(group_feature="patient"),
        group_pattern=pattern,
    )


def _tfds_numbers(written: Written, root: pathlib.Path) -> sources.Source:
    return _tfds(written, root, "number")


def _tfds_texts(written: Written, root: pathlib.Path) -> sources.Source:
    return _tfds(written, root, "text", r"of (\d+)$")


KINDS = (_folder, _csv, _json_lines, _listed_by_pattern, _tfds_numbers, _tfds_texts)


@pytest.mark.parametrize("open_source", KINDS)
def test_no_patient_is_in_two_splits(
    written: Written,
    tmp_path: pathlib.Path,
    open_source: Callable[[Written, pathlib.Path], sources.Source],
) -> None:
    dataset = _load(open_source(written, tmp_path))

    of_split = _patients(written, dataset)
    _require_apart(of_split)
    assert dataset.held_out == ("test", "validation")
    # A fifth of 60 patients, and a fifth of the others.
    assert {name: len(patients) for name, patients in of_split.items()} == {
        "train": 38,
        "validation": 10,
        "test": 12,
    }
    assert groups.record(dataset.groups) == {
        "named": PATIENTS,
        "named_images": PATIENTS * IMAGES,
        "duplicates": 0,
        "duplicate_images": 0,
    }


def test_no_patient_of_arrays_is_in_train_and_validation(
    written: Written, tmp_path: pathlib.Path
) -> None:
    arrays = {"train_image": written.images, "train_label": written.labels}
    arrays |= {"test_image": written.images[:1], "test_label": written.labels[:1]}
    np.savez(
        tmp_path / "a.npz",
        allow_pickle=False,
        classes=np.asarray(["well", "ill"]),
        train_group=written.patients,
        **arrays,
    )

    source = data.open_source("arrays", path=str(tmp_path / "a.npz"), data_dir="")
    of_split = _patients(written, _load(source))

    assert not of_split["train"] & of_split["validation"]
    assert len(of_split["validation"]) == 12


def _nearest(dataset: data.Dataset, split: str) -> float:
    """Returns the accuracy on a split of scikit-learn's nearest neighbour in train."""
    assert dataset.pixels is not None
    model = neighbors.KNeighborsClassifier(1)
    train, other = dataset.pixels["train"], dataset.pixels[split]
    model.fit(np.reshape(train.image, (len(train.label), -1)), train.label)
    return model.score(np.reshape(other.image, (len(other.label), -1)), other.label)


def test_validation_is_optimistic_unless_groups_stay_together(
    written: Written, tmp_path: pathlib.Path
) -> None:
    # The last third of the patients is the test split, as in a new hospital.
    def split(i: int) -> str:
        return "test/" if written.patients[i] % 3 == 0 else "train/"

    written.write(tmp_path, split)
    plain = data.open_source("folder", path=str(tmp_path), data_dir="")
    grouped = data.open_source(
        "folder", path=str(tmp_path), data_dir="", group_pattern=r"patient\d+"
    )

    leaking, honest = _load(plain), _load(grouped)

    assert _nearest(leaking, "validation") > 0.99
    # Chance, on test and on validation: 48 and 120 images of 8 and 20 patients.
    assert _nearest(leaking, "test") < 0.75
    assert _nearest(honest, "validation") < 0.75
    _require_apart(_patients(written, honest))


def test_groups_that_own_splits_divide_are_named(written: Written, tmp_path: pathlib.Path) -> None:
    written.write(tmp_path, lambda i: "test/" if i % IMAGES == 0 and i < 30 else "train/")

    source = data.open_source(
        "folder", path=str(tmp_path), data_dir="", group_pattern=r"patient\d+"
    )

    assert _load(source).warnings == (
        "5 groups of images are in both train and test, as the data set divides them",
    )


def test_images_without_a_group_are_counted(written: Written, tmp_path: pathlib.Path) -> None:
    written.write(tmp_path)
    for i in range(3):
        Image.fromarray(written.images[i]).save(tmp_path / "ill" / f"unknown {i}.png")

    source = _folder(written, tmp_path)

    assert source.warnings == ("3 of 363 images are in no group of config.data.group_pattern",)


@pytest.mark.parametrize(
    ("pattern", "name", "group"),
    [
        (r"patient(\d+)", "a/patient07_1.png", "07"),
        (r"patient\d+", "a/patient07_1.png", "patient07"),
        (r"^a/(\d+)_(left|right)", "a/7_left.png", "7\0left"),
        (r"(\d+)_left|(\d+)_right", "a/7_right.png", "\0007"),
        (r"(\d+)?x", "a/x.png", ""),
    ],
)
def test_the_group_is_what_the_parentheses_match(pattern: str, name: str, group: str) -> None:
    find = data.group_names.by_pattern(pattern)

    assert find([name, "1_left_patient1x a/1_left 1x"])[0] == group


def test_an_invalid_pattern_is_refused() -> None:
    with pytest.raises(SettingError, match=r"config\.data\.group_pattern must be a regular"):
        data.open_source("folder", path="", data_dir="", group_pattern="(")


def test_a_pattern_that_matches_nothing_is_refused(
    written: Written, tmp_path: pathlib.Path
) -> None:
    written.write(tmp_path)

    with pytest.raises(SettingError, match=r"matches the name of no image \(such as '.*png'\)"):
        data.open_source("folder", path=str(tmp_path), data_dir="", group_pattern="subject")


def test_a_list_has_groups_by_a_column_or_by_a_pattern(
    written: Written, tmp_path: pathlib.Path
) -> None:
    _csv(written, tmp_path)

    with pytest.raises(SettingError, match=r"list\.csv has a column of groups"):
        data.open_source(
            "list", path=str(tmp_path / "list.csv"), data_dir="", group_pattern="patient"
        )


def test_one_group_of_all_images_is_refused(written: Written, tmp_path: pathlib.Path) -> None:
    written.write(tmp_path)
    source = data.open_source("folder", path=str(tmp_path), data_dir="", group_pattern="patient")

    with pytest.raises(SettingError, match=r"No test image of .* without dividing a group"):
        _load(source)


def test_an_unknown_group_feature_is_refused(written: Written, tmp_path: pathlib.Path) -> None:
    _tfds_numbers(written, tmp_path)
    choices = named.Choices(group_feature="doctor")

    with pytest.raises(SettingError, match=r"set it to one of label, patient"):
        data.open_source("tfds:clinic", path="", data_dir=str(tmp_path), choices=choices)


# Near duplicates.


def _write_tiles(root: pathlib.Path, copies: dict[int, int], *, classes: int = 2) -> None:
    """Writes 40 tiles, and so many more encodings of some of them."""
    for i, tile in enumerate(TILES[:40]):
        place = root / f"class {i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(1 + copies.get(i, 0)):
            (place / f"{i:02}_{copy}.jpg").write_bytes(photographs.jpeg(tile, 95 - 10 * copy))


def _tiles(dataset: data.Dataset) -> dict[str, set[str]]:
    """Returns the numbers of the tiles of each split."""
    return {
        name: {pathlib.Path(subset.name(i)).name[:2] for i in range(len(subset.rows))}
        for name, subset in dataset.splits.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_stay_together(tmp_path: pathlib.Path, seed: int) -> None:
    copies = dict.fromkeys(range(16), 1) | {20: 3}
    _write_tiles(tmp_path, copies)
    source = data.open_source("folder", path=str(tmp_path), data_dir="")

    apart = _tiles(_load(source, near_duplicates=False, seed=seed))
    dataset = _load(source, near_duplicates=True, seed=seed)

    assert apart["train"] & (apart["validation"] | apart["test"])
    together = _tiles(dataset)
    assert sum(map(len, together.values())) == 40
    assert dataset.repeated is not None
    assert len(dataset.repeated.tests) == 0
    assert groups.record(dataset.groups) == {
        "named": 0,
        "named_images": 0,
        "duplicates": 17,
        "duplicate_images": 36,
    }


def test_near_duplicates_join_named_groups(tmp_path: pathlib.Path) -> None:
    _write_tiles(tmp_path, {0: 1, 2: 1})
    # Tile 0 and tile 4 are of one group, and so are a copy of tile 0 and tile 6.
    source = data.open_source("folder", path=str(tmp_path), data_dir="")
    split = source.splits["train"]
    names = [pathlib.Path(split.name(i)).name for i in range(split.examples)]
    members = {"00_0": "a", "04_0": "a", "00_1": "b", "06_0": "b"}
    of_image = np.asarray([members.get(name[:4], "") for name in names], object)
    source = source._replace(splits={"train": split._replace(groups=of_image)})

    for seed in range(5):
        of_split = _tiles(_load(source, near_duplicates=True, seed=seed))
        (place,) = [name for name, tiles in of_split.items() if "00" in tiles]
        assert {"04", "06"} <= of_split[place]


def test_a_class_of_near_duplicates_is_divided_and_named(tmp_path: pathlib.Path) -> None:
    _write_tiles(tmp_path, {0: 1})
    camera = tmp_path / "camera"
    camera.mkdir()
    for copy in range(10):
        (camera / f"50_{copy}.jpg").write_bytes(photographs.jpeg(TILES[50], 95 - 5 * copy))
    source = data.open_source("folder", path=str(tmp_path), data_dir="")

    dataset = _load(source, near_duplicates=True)

    assert all(np.any(subset.labels == 0) for subset in dataset.splits.values())
    assert dataset.warnings == (
        "nearly all images of camera are near duplicates of each other, so that held-out images "
        "have near duplicates in train",
    )
    record = groups.record(dataset.groups)
    assert record is not None
    assert record["duplicates"] == 1


def test_published_data_sets_are_divided_as_they_are(tmp_path: pathlib.Path) -> None:
    _write_tiles(tmp_path, dict.fromkeys(range(16), 1))
    source = data.open_source("folder", path=str(tmp_path), data_dir="")._replace(published=True)

    assert _load(source, near_duplicates=True).groups is None


def test_near_duplicates_are_searched_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    _write_tiles(tmp_path / "images", {0: 1})
    source = data.open_source("folder", path=str(tmp_path / "images"), data_dir="")
    first = _load(source, near_duplicates=True)
    monkeypatch.setattr(groups.duplicates, "groups", None)

    second = _load(source, near_duplicates=True)

    assert second.fingerprint == first.fingerprint
    assert groups.record(second.groups) == groups.record(first.groups)


def test_without_groups_the_images_are_those_of_earlier_versions(tmp_path: pathlib.Path) -> None:
    _write_tiles(tmp_path, {})
    source = data.open_source("folder", path=str(tmp_path), data_dir="")

    with_search, without = (_load(source, near_duplicates=on) for on in (True, False))

    assert with_search.fingerprint == without.fingerprint
    assert with_search.groups is None
