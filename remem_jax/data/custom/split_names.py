"""Names of folders, and values in lists, that mean splits."""

import re
import unicodedata
from collections.abc import Iterable

from remem_jax.data.sources import TEST, TRAIN, VALIDATION

_WORDS = {
    TRAIN: ("train", "training", "trn"),
    VALIDATION: ("validation", "val", "valid", "validate", "dev", "development"),
    TEST: ("test", "testing", "tests", "tst"),
}
# Ambiguous between two splits.
_UNCLEAR = ("trainvaltest", "trainvalid", "trainval", "traintest", "evaluation", "eval")
_UNCLEAR += ("holdout", "heldout", "unseen")
# Words that may surround a split's name, as in test_set, train-images or ValData.
_FILLERS = (
    "datasets?|data|images?|imgs?|pictures?|pics?|photos?|samples?|examples?|files?|folder|dir|"
    "subset|sets?|splits?|partition|part"
)
_MEANINGS = "|".join(
    f"(?P<{meaning}>{'|'.join(words)})"
    for meaning, words in {**_WORDS, "unclear": _UNCLEAR}.items()
)
_SPLIT = re.compile(f"(?:{_FILLERS})*(?:{_MEANINGS})(?:{_FILLERS})*")
_ANY = "|".join(word for words in _WORDS.values() for word in words)
_AT_AN_END = re.compile(rf"(?P<head>{_ANY})(?P<after>[\W_].*)|(?P<before>.*[\W_])(?P<tail>{_ANY})")
UNCLEAR = "unclear"


def split_of(name: str) -> str | None:
    """Returns the split that a name means, ignoring case; `UNCLEAR`, or None if it means no split.

    Numbers, and words such as set, data and images, may surround it.
    """
    match = _SPLIT.fullmatch("".join(re.findall(r"[^\W\d_]+", _folded(name))))
    return match.lastgroup if match else None


def prefixed(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns two names that look like the splits of one data set, as cars_train and cars_test."""
    names_by_stem: dict[str, dict[str, str]] = {}
    for name in names:
        match = _AT_AN_END.fullmatch(_folded(name))
        if match:
            word, rest = match["head"] or match["tail"], match["before"] or match["after"]
            split = split_of(word) or ""
            names_by_stem.setdefault(rest.strip("_- ."), {}).setdefault(split, name)
    for splits in names_by_stem.values():
        others = [name for split, name in splits.items() if split != TRAIN]
        if TRAIN in splits and others:
            return splits[TRAIN], others[0]
    return None


def known_names() -> str:
    """Returns the known names of splits, for messages."""
    return ", ".join(f"{split} ({', '.join(words[1:3])}, ...)" for split, words in _WORDS.items())


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
