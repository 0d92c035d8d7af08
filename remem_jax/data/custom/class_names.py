"""Checks of classes when data are opened: names that can be stored, and enough images."""

import unicodedata
from collections.abc import Collection, Iterable, Mapping

from remem_jax.checks import SettingError, printable
from remem_jax.data.sources import TEST, TRAIN, VALIDATION

# Unicode categories: control characters, surrogates (bytes that are not UTF-8), line separators.
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}
# Characters that change the direction of the text around them.
_BIDIRECTIONAL = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
_LISTED = 5  # Classes listed in a message.


class TooFewImagesError(SettingError):
    """A class has fewer images than a run needs of each class."""


def require_storable(names: Iterable[str], where: str) -> None:
    """Checks that names can be stored and displayed, and that they differ in Unicode.

    Args:
        names: Names of all classes.
        where: File or folder of the classes, for messages.

    Raises:
        SettingError: If a name is blank, or has a line break, another control character or bytes
            that are not UTF-8; or if two are equal after normalisation (NFC).
    """
    first: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise SettingError(
                f"{where} has a class without a name, {name!r}: name it, or set config.data.path."
            )
        if any(unicodedata.category(char) in _REFUSED or char in _BIDIRECTIONAL for char in name):
            raise SettingError(
                f"{where} has the class {_escaped(name)}, with a line break, a control character "
                "or bytes that are not UTF-8: rename it, or set config.data.path."
            )
        same = unicodedata.normalize("NFC", name)
        if same in first:
            raise SettingError(
                f"{where} has the classes {first[same]!a} and {name!a}, which are one "
                "name in Unicode: rename or join them, or set config.data.path."
            )
        first[same] = name


def warnings(images: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """Returns warnings about classes that are unusual, but usable.

    Args:
        images: Number of images by split and class.
    """
    names = sorted({name for counts in images.values() for name in counts})
    alike: dict[str, list[str]] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        alike.setdefault(key, []).append(name)
    messages = [
        f"the classes {_listed(group)} differ only in case or spaces"
        for group in alike.values()
        if len(group) > 1
    ]
    untrained = [name for name in names if not images.get(TRAIN, {}).get(name)]
    if untrained:
        several = len(untrained) > 1
        messages.append(
            f"the class{'es' * several} {_listed(untrained)} {'have' if several else 'has'} no "
            "training image, so that no model can learn "
            f"{'them' if several else 'it'}"
        )
    return tuple(messages)


def require_enough(images: Mapping[str, int], splits: Collection[str], what: str) -> None:
    """Checks that each class has enough training images to draw the missing splits from.

    Args:
        images: Number of training images by class, before any are drawn.
        splits: Splits that the data set has.
        what: Plural noun of what is counted, such as "images".

    Raises:
        TooFewImagesError: If a class has images, but fewer than one for each split to draw.
    """
    uses = {TRAIN: "train", VALIDATION: "validate", TEST: "test"}
    drawn = [use for split, use in uses.items() if split == TRAIN or split not in splits]
    few = [name for name, count in images.items() if 0 < count < len(drawn)]
    if few:
        noun = what.removesuffix("s") if images[few[0]] == 1 else what
        more = f" (and {len(few) - 1:,} other classes have too few)" if len(few) > 1 else ""
        raise TooFewImagesError(
            f"The class {_escaped(few[0])} has {images[few[0]]} {noun}{more}; {len(drawn)} are "
            f"needed, one each to {', '.join(drawn[:-1])} and {drawn[-1]}: add images, leave the "
            "class out, or give splits of your own in config.data.path."
        )


def _listed(names: list[str]) -> str:
    listed = [printable(name) for name in names[:_LISTED]]
    more = [f"{len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return " and ".join(filter(None, [", ".join([*listed, *more][:-1]), [*listed, *more][-1]]))


def _escaped(name: str) -> str:
    """Returns a name in quotes, on one line, shortened for a message."""
    return repr(name if len(name) <= 80 else f"{name[:60]}...")
