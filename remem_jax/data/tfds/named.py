"""Any data set that TFDS has prepared, as `tfds:NAME[/CONFIG][:VERSION]`."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.data.custom import class_names, group_names
from remem_jax.data.images.decoding import CorruptImageError
from remem_jax.data.sources import TEST, TRAIN, VALIDATION, Source
from remem_jax.data.tfds import copies, examples, features

PREFIX = "tfds:"
FORM = f"{PREFIX}NAME[/CONFIG][:VERSION]"
_FORM = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")
# TFDS's names of splits, by what they are used for.
_SPLITS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "val", "valid", "dev", "eval"),
    TEST: ("test", "testing"),
}
_PROBED = 8  # Labels of a split that are read to see whether it has any.


class Choices(NamedTuple):
    """The settings of `config.data` on data sets of TFDS; an empty one is found.

    Attributes:
        train_split: Split to train on, such as "train" or "train[:80%]".
        validation_split: Split to select models on.
        test_split: Split to test on.
        image_feature: Name of the feature with the image.
        label_feature: Name of the feature with the label.
        group_feature: Name of the feature whose value images that are held out together share; ""
            for none.
    """

    train_split: str = ""
    validation_split: str = ""
    test_split: str = ""
    image_feature: str = ""
    label_feature: str = ""
    group_feature: str = ""


FIND = Choices()  # Everything is found.


def is_name(name: object) -> bool:
    """Returns whether a value of `config.data.name` names a data set of TFDS by TFDS's name."""
    return isinstance(name, str) and name.startswith(PREFIX)


def check(setting: str, name: str) -> None:
    """Raises `SettingError` unless a name that begins with "tfds:" has the form of one.

    Args:
        setting: Name of the setting, such as "config.data.name".
        name: Its value.
    """
    if not _FORM.fullmatch(name.removeprefix(PREFIX)):
        raise SettingError(
            f"{setting} must have the form {FORM}, such as tfds:eurosat/rgb:2.0.0; got {name!r}."
        )


def find(name: str, data_dir: str) -> copies.Copy | None:
    """Returns the prepared copy of a data set; None if there is none.

    Without a version in the name, TFDS's newest is preferred to other prepared ones.

    Args:
        name: Value of `config.data.name`.
        data_dir: TFDS's folder; "" is its default.

    Raises:
        SettingError: If TFDS has no such data set, or its metadata are damaged.
    """
    wanted = name.removeprefix(PREFIX)
    with _explained(name, data_dir):
        copy = copies.find(wanted, data_dir)
        if copy is None and ":" not in wanted:
            copy = copies.find(f"{wanted}:*.*.*", data_dir)
        return copy


def builder(name: str, data_dir: str) -> Any:
    """Returns TFDS's builder of a data set; see `find`."""
    with _explained(name, data_dir):
        return copies.builder(name.removeprefix(PREFIX), data_dir)


@contextlib.contextmanager
def _explained(name: str, data_dir: str) -> Iterator[None]:
    """Raises an error that names the setting if TFDS cannot open a data set."""
    try:
        yield
    except copies.UnopenedError as error:
        raise SettingError(
            f"config.data.name is {name!r}, which TFDS cannot open in {copies.folder(data_dir)}: "
            f"{_reason(name, error.reason)}. Correct it ({FORM}), or set config.data.dir to "
            "where it is prepared."
        ) from None


def tfds(
    name: str,
    data_dir: str,
    choices: Choices,
    *,
    find_groups: group_names.Finder | None = None,
) -> Source:
    """Opens a data set that TFDS has prepared, without TensorFlow.

    Splits are found by their names. Without a test split, the validation split is the test split. A
    split whose images have no labels counts as missing.

    Args:
        name: Value of `config.data.name`.
        data_dir: TFDS's folder; "" is its default.
        choices: What the settings give.
        find_groups: Finds groups in the values of the group feature; None if they are the groups.

    Raises:
        SettingError: If it is not prepared, has another format or is damaged; or if its splits,
            image, labels or groups cannot be found.
    """
    check("config.data.name", name)  # TFDS would look for some other forms in the internet.
    copy = find(name, data_dir)
    if copy is None:
        raise SettingError(
            f"{name} is not prepared in {copies.folder(data_dir)}: run tools/prepare_data.py "
            f"{name}, or set config.data.dir to where it is."
        )
    info = copy.builder.info
    pair = features.find(info, choices.image_feature, choices.label_feature)
    expressions, remarks = _expressions(copy, pair, choices)
    if features.is_class_label(info.features[pair.label]):
        count = info.features[pair.label].num_classes
        names = copies.class_names(copy, name.removeprefix(PREFIX), count, pair.label)
        columns = examples.Columns(*pair, {i: i for i in range(count)})
    else:
        names, columns = _classes(copy, pair, expressions.values())
    splits = {
        split: copies.split(copy, expression, f"{info.full_name} {expression}", columns)
        for split, expression in expressions.items()
    }
    if choices.group_feature:
        features.require_group(info, choices.group_feature)
        of_split = {
            split: copies.values(copy, expression, choices.group_feature)
            for split, expression in expressions.items()
        }
        splits = group_names.with_groups(splits, of_split, find_groups)
    if TEST not in splits:
        remarks.append("it has no split to test on: a fifth of each class of train was held out")
    return Source(
        PREFIX + ":".join(info.full_name.rsplit("/", 1)),
        {split: splits[split] for split in (TRAIN, VALIDATION, TEST) if split in splits},
        names,
        registry.TOP1,
        flip=True,
        published=True,
        warnings=tuple(remarks),
    )


def _reason(name: str, reason: str) -> str:
    """Returns TFDS's reason in short, with the names that are like an unknown one."""
    if "not found. Available datasets" not in reason:
        return re.sub(r'^Failed to construct dataset .*?}": ', "", reason).rstrip(".")
    import tensorflow_datasets

    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    alike = difflib.get_close_matches(
        re.split("[/:]", name.removeprefix(PREFIX))[0], sorted(set(known))
    )
    return "TFDS has no such data set" + (f"; it has {', '.join(alike)}" if alike else "")


def _expressions(
    copy: copies.Copy, pair: features.Pair, choices: Choices
) -> tuple[dict[str, str], list[str]]:
    """Returns TFDS's expression of each split there is, and remarks for the report."""
    splits = (TRAIN, VALIDATION, TEST)
    given = {split: getattr(choices, f"{split}_split") for split in splits}
    chosen = {split: expression for split, expression in given.items() if expression}
    for split, expression in chosen.items():
        _require_split(copy, split, expression)
    _require_disjoint(copy, chosen)
    remarks = []
    for split, expression in _found(copy).items():
        if split in chosen:
            continue
        if not _has_labels(copy, expression, pair.label):
            remarks.append(f"its split {expression!r} has no labels, and is not used")
        elif not any(copies.overlap(copy, expression, other) for other in chosen.values()):
            chosen[split] = expression
    if TRAIN not in chosen:
        splits = copy.builder.info.splits
        raise SettingError(
            f"{copy.builder.info.full_name} has the splits {', '.join(splits)}, and none to train "
            "on is found among them: set config.data.train_split, such as "
            f"{next(iter(splits), 'train')}[:80%], and config.data.test_split."
        )
    if TEST not in chosen and VALIDATION in chosen and not given[VALIDATION]:
        chosen[TEST] = chosen.pop(VALIDATION)
        remarks.append(
            f"its split {chosen[TEST]!r} is the test split, since it has no other to test on"
        )
    return chosen, remarks


def _found(copy: copies.Copy) -> dict[str, str]:
    """Returns the splits with images whose names are known, by their use."""
    splits = copy.builder.info.splits
    full = [name for name in splits if splits[name].num_examples]
    found = {
        use: next((name for name in names if name in full), "") for use, names in _SPLITS.items()
    }
    return {use: name for use, name in found.items() if name}


def _require_split(copy: copies.Copy, split: str, expression: str) -> None:
    info = copy.builder.info
    try:
        examples = info.splits[expression].num_examples
    except (AssertionError, KeyError, ValueError):
        examples = 0
    if not examples:
        raise SettingError(
            f"config.data.{split}_split is {expression!r}, which names no images of "
            f"{info.full_name}: it has the splits {', '.join(info.splits)}, and slices of them are "
            "written as train[:80%]."
        )


def _require_disjoint(copy: copies.Copy, given: Mapping[str, str]) -> None:
    names = list(given)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if copies.overlap(copy, given[first], given[second]):
                raise SettingError(
                    f"config.data.{first}_split is {given[first]!r} and "
                    f"config.data.{second}_split is {given[second]!r}, which have images in "
                    "common: set them to different splits or slices."
                )


def _stored_label(records: Any, i: int, label: str) -> int | bytes | None:
    """Returns the label of a record; None if it cannot be read, or is that of no class."""
    try:
        stored = examples.stored_label(examples.parsed(records, i), label)
    except CorruptImageError:
        return None
    is_missing = stored == b"" or (isinstance(stored, int) and stored < 0)
    return None if is_missing else stored


def _has_labels(copy: copies.Copy, expression: str, label: str) -> bool:
    """Returns whether the first images of a split have labels; TFDS stores -1 for none."""
    records = copies.records(copy, expression)
    return any(
        _stored_label(records, i, label) is not None for i in range(min(_PROBED, len(records)))
    )


def _classes(
    copy: copies.Copy, pair: features.Pair, expressions: Collection[str]
) -> tuple[tuple[str, ...], examples.Columns]:
    """Returns the classes of labels without names, which are the distinct labels of all splits."""
    distinct: set[Any] = set()
    images = 0
    for expression in expressions:
        records = copies.records(copy, expression)
        images += len(records)
        distinct |= {_stored_label(records, i, pair.label) for i in range(len(records))}
    stored = sorted(distinct - {None})
    if len(stored) > max(images // 2, 2):
        raise SettingError(
            f"The feature {pair.label!r} of {copy.builder.info.full_name} has {len(stored):,} "
            f"different values in {images:,} images, so that it names no classes: set "
            "config.data.label_feature to the one that does."
        )
    names = tuple(
        each.decode(errors="surrogateescape") if isinstance(each, bytes) else str(each)
        for each in stored
    )
    class_names.require_storable(names, copy.builder.info.full_name)
    return names, examples.Columns(*pair, {each: i for i, each in enumerate(stored)})
