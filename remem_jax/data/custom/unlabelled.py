"""Opens a folder of images without labels, whatever its layout."""

import os
import pathlib
from collections import Counter

from absl import logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data.custom import folders, walk
from remem_jax.data.images import formats
from remem_jax.data.sources import NO_LABEL, Unlabelled


def folder(path: str, *, largest_share: float) -> Unlabelled:
    """Opens the images in a folder and all of its subfolders, which mean nothing.

    Hidden files, files that are not images, and files left by other programs are skipped and
    counted, as in `folders.folder`.

    Args:
        path: The folder; `~` is the home folder.
        largest_share: See `Unlabelled`.

    Raises:
        SettingError: If there is no such folder, it cannot be listed, or it has no images.
    """
    root = pathlib.Path(os.path.expanduser(path))  # noqa: PTH111  expanduser() of pathlib raises for unknown users.
    if not root.is_dir():
        raise SettingError(
            f"config.data.unlabelled must be a folder of images; there is no folder {path!r}."
        )
    skipped_files: Counter[str] = Counter()
    above = os.path.join(root, "")  # noqa: PTH118
    images = walk.images(walk.entry_of(root), skipped_files, unlisted=_refuse_unlisted, once=True)
    files = [folders.File(image.path.removeprefix(above), "", image.status) for image in images]
    checks.require(
        len(files) > 0,
        f"config.data.unlabelled must be a folder of images; {path} holds none (looked for "
        f"{formats.suffix_list()}).",
    )
    if skipped_files:
        logging.info("%s: %s", path, walk.describe_skipped(skipped_files, ()))
    split = folders.split_of(root, files, [NO_LABEL] * len(files))
    return Unlabelled(split, largest_share, dict(skipped_files))


def _refuse_unlisted(error: OSError) -> None:
    raise SettingError(
        f"config.data.unlabelled has a folder that cannot be listed, {error.filename} "
        f"({error.strerror or error}): make it readable, or set another folder."
    ) from error
