"""Finds the groups of images, such as those of one patient, in names or in values of a field."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from remem_jax.checks import SettingError
from remem_jax.data.sources import Split

# Maps the names of all images to the names of their groups, text; "" is none.
Finder = Callable[[Sequence[str]], np.ndarray]


def by_pattern(pattern: str) -> Finder:
    """Returns a function that finds the groups of images in their names.

    The group is what the pattern's own groups, in parentheses, match; without any, what the whole
    pattern matches. An image whose name does not match is in no group.

    Args:
        pattern: Value of `config.data.group_pattern`, a regular expression that is searched for.

    Raises:
        SettingError: If the pattern is invalid; the function, if it matches no name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingError(
            f"config.data.group_pattern must be a regular expression, got {pattern!r} ({error})."
        ) from None

    def find(names: Sequence[str]) -> np.ndarray:
        groups = [_text(compiled.search(name)) for name in names]
        if names and not any(groups):
            raise SettingError(
                f"config.data.group_pattern is {pattern!r}, which matches the name of no image "
                f"(such as {names[0]!r}): correct it, or leave it empty."
            )
        return np.asarray(groups, object)

    return find


def _text(match: re.Match[str] | None) -> str:
    """Returns the name of a group; "" if nothing was matched."""
    if match is None:
        return ""
    if match.re.groups:
        return "\0".join(part or "" for part in match.groups()) if any(match.groups()) else ""
    return match[0]


def with_groups(
    splits: Mapping[str, Split], names: Mapping[str, Sequence[str]], find: Finder | None
) -> dict[str, Split]:
    """Adds groups to the splits of a data set.

    Args:
        splits: The splits.
        names: For each of them, a text for each example.
        find: Finds the groups in these texts; None if they are the groups.
    """
    groups = [name for split in splits for name in names[split]]
    found = np.asarray(groups, object) if find is None else find(groups)
    ends = np.cumsum([len(names[split]) for split in splits])[:-1]
    return {
        name: split._replace(groups=of_split)
        for (name, split), of_split in zip(splits.items(), np.split(found, ends), strict=True)
    }


def unmatched(groups: np.ndarray) -> tuple[str, ...]:
    """Returns a warning on the images that a pattern finds in no group; none if there are none."""
    images = int(np.sum(groups == ""))
    verb = "is" if images == 1 else "are"
    text = f"{images:,} of {len(groups):,} images {verb} in no group of config.data.group_pattern"
    return (text,) if images else ()
