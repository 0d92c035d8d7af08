"""Prepares data sets with TFDS as array_record, which runs read without TensorFlow.

    python tools/prepare_data.py food101 caltech101
    python tools/prepare_data.py tfds:beans
    python tools/prepare_data.py imagenet_lt --lists ~/lists
    python tools/prepare_data.py --instructions cars196

Names are the paper's data sets, or any of TFDS as tfds:NAME[/CONFIG][:VERSION].
TFDS needs TensorFlow for this: `pip install 'remem-jax[prepare]'`, here or on another machine, from
which the prepared folders can be copied. Data sets that are already prepared are kept, also as
TFRecord; `remem data` lists them.
"""

from remem_jax.storage import streams

if __name__ == "__main__":  # Before the slow imports.
    streams.begin("prepare_data")

import argparse
import dataclasses
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import tqdm
from absl import flags, logging

from remem_jax import checks
from remem_jax.checks import SettingError
from remem_jax.data import registry
from remem_jax.data.tfds import copies, imagenet_lt, named, obtaining, prepared


def main() -> int:
    """Runs the command line; returns the exit code."""
    flags.FLAGS.mark_as_parsed()  # The log of absl reads its flags.
    logging.set_verbosity(logging.ERROR)  # TFDS warns about each data set that is not prepared.
    arguments = _parser().parse_args()
    unknown = [
        name for name in arguments.names if name not in registry.RECORDS and not named.is_name(name)
    ]
    if unknown:
        known = ", ".join([*registry.RECORDS, named.FORM])
        return _fail(f"Unknown {', '.join(unknown)}; known are {known}.")
    try:
        return max([_prepare_or_explain(name, arguments) for name in arguments.names])
    except KeyboardInterrupt:
        _fail("stopped; no partial data set was left, and complete downloads are kept.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a data set, such as food101")
    parser.add_argument("--dir", default="", help="TFDS folder instead of the default one")
    parser.add_argument("--lists", default="", help="folder with the lists of ImageNet-LT")
    parser.add_argument(
        "--instructions", action="store_true", help="only print how to get the images"
    )
    return parser


def _prepare_or_explain(name: str, arguments: argparse.Namespace) -> int:
    """Prepares one data set, or prints instructions; returns the exit code."""
    try:
        data_dir, lists = (
            given and str(checks.local_path(option, given))
            for option, given in (("--dir", arguments.dir), ("--lists", arguments.lists))
        )
        if named.is_name(name):
            named.check("NAME", name)
            action = _instructions_of_named if arguments.instructions else _prepare_named
            print(action(name, data_dir))
        elif arguments.instructions:
            print(_instructions(name, data_dir))
        else:
            prepare(name, data_dir, lists)
    except SettingError as error:
        return _fail("\n".join([str(error), *getattr(error, "__notes__", [])]))
    return 0


def _fail(message: str) -> int:
    print(f"prepare_data: {message}", file=sys.stderr)
    return 1


def prepare(name: str, data_dir: str, lists: str) -> None:
    """Prepares one data set of the registry, unless it is prepared already.

    Args:
        name: Name in the registry.
        data_dir: Folder of TFDS; empty is the default of TFDS.
        lists: Folder with the lists of ImageNet-LT; empty is the folder of manual downloads.

    Raises:
        SettingError: If it cannot be prepared; the message says why, and its notes what to do.
    """
    state = prepared.state(name, data_dir)
    if state is not None:
        note = ", which is read as it is" if state.format == copies.TFRECORD else ""
        print(f"{name} is prepared already, as {state.format}{note}.")
    elif not (name == imagenet_lt.NAME and _index_imagenet(data_dir, lists)):
        _build(name, data_dir)
    state = prepared.state(name, data_dir)
    if state is None:
        place = copies.builder(registry.RECORDS[name].tfds, data_dir).data_dir
        raise SettingError(f"{place} is there, but not whole; remove it and start again.")
    print(_counted(name, state))


def _build(name: str, data_dir: str) -> None:
    """Downloads and writes the data set with TFDS."""
    record = registry.RECORDS[name]
    _require_modules(name, record.modules)
    manual = _manual(data_dir)
    missing = obtaining.missing(name, manual)
    if missing:
        error = SettingError(
            f"{name} cannot be downloaded, and {manual} lacks {', '.join(missing)}."
        )
        error.add_note(_instructions(name, data_dir))
        raise error
    builder = copies.builder(record.tfds, data_dir)
    if name == "inat2017":
        redirect(builder)
    _download(name, builder, _instructions(name, data_dir))


def _require_modules(name: str, modules: Iterable[str]) -> None:
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    if lacking:
        raise SettingError(
            f"To prepare {name}, TFDS needs {' and '.join(lacking)}: pip install "
            "'remem-jax[prepare]', here or on a machine to copy the prepared folder from."
        )


def _download(name: str, builder: Any, instructions: str) -> None:
    try:
        builder.download_and_prepare(file_format=copies.ARRAY_RECORD)
    except _failures() as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        explained = SettingError(f"{name} cannot be prepared: {what[:400]}")
        explained.add_note(instructions)
        raise explained from error


def _prepare_named(name: str, data_dir: str) -> str:
    """Prepares any data set of TFDS, unless it is prepared already; returns what there is.

    Args:
        name: A name of the form `named.FORM`.
        data_dir: Folder of TFDS; empty is the default of TFDS.

    Raises:
        SettingError: If it cannot be prepared; the message says why, and its notes what to do.
    """
    copy = named.find(name, data_dir)
    if copy is None:
        _require_modules(name, ["tensorflow"])
        builder = named.builder(name, data_dir)
        _download(name, builder, _instructions_of_named(name, data_dir))
        copy = named.find(name, data_dir)
    if copy is None:
        raise SettingError(f"{name} is there, but not whole; remove it and start again.")
    splits = copy.builder.info.splits
    counts = ", ".join(f"{splits[split].num_examples} of {split}" for split in splits)
    return f"{name} is prepared as {copy.format}: {counts}."


def _instructions_of_named(name: str, data_dir: str) -> str:
    builder = named.builder(name, data_dir)
    text = inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "TFDS downloads it.")
    lines = [name, builder.info.homepage, *text.splitlines(), f"Its folder: {_manual(data_dir)}"]
    return "\n  ".join(lines)


def redirect(builder: Any) -> None:
    """Makes TFDS download iNaturalist 2017 from its new address, with the same checksums."""
    from tensorflow_datasets.image_classification import inaturalist

    dead = inaturalist._URL
    for url, info in list(builder.url_infos.items()):
        if url.startswith(dead):
            file = url.removeprefix(dead)
            # With the file name, TFDS also finds the file in the folder of manual downloads.
            moved = dataclasses.replace(info, filename=file)
            builder.url_infos[obtaining.INAT2017_URL + file] = moved
    inaturalist._URL = obtaining.INAT2017_URL


def _failures() -> tuple[type[Exception], ...]:
    """Returns the errors that TFDS raises if it cannot prepare a data set."""
    from tensorflow_datasets.core.download import download_manager, extractor, util

    tfds = (download_manager.NonMatchingChecksumError, util.DownloadError, extractor.ExtractError)
    python = (AssertionError, ImportError, OSError, RuntimeError, ValueError)
    tensorflow = sys.modules.get("tensorflow")
    return (*tfds, *python, *((tensorflow.errors.OpError,) if tensorflow else ()))


def _index_imagenet(data_dir: str, lists: str) -> bool:
    """Writes the index of ImageNet-LT if ImageNet is prepared; returns whether it did.

    Raises:
        SettingError: If the lists of ImageNet-LT are missing, and TFDS cannot download them.
    """
    copy = copies.find(registry.IMAGENET, data_dir)
    if copy is None:
        return False
    place = pathlib.Path(lists) if lists else _manual(data_dir)
    files = [place / file for file in obtaining.LISTS]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        if not obtaining.missing(imagenet_lt.NAME, _manual(data_dir)):
            return False  # The archives are there, so TFDS prepares all and downloads the lists.
        raise SettingError(
            f"{registry.IMAGENET} is prepared, but {place} lacks {' and '.join(absent)}, which say "
            f"which of its images ImageNet-LT has; set --lists to their folder.\n"
            f"{_instructions(imagenet_lt.NAME, data_dir)}"
        )
    examples = [imagenet_lt.read_list(file) for file in files]
    rows = tqdm.trange(copies.count(copy, "train"), desc="ImageNet", unit=" images")
    imagenet_lt.write(copy, data_dir, dict(zip(("train", "test"), examples, strict=True)), rows)
    return True


def _manual(data_dir: str) -> pathlib.Path:
    """Returns the folder in which TFDS looks for files that it cannot download."""
    return copies.folder(data_dir) / "downloads" / "manual"


def _instructions(name: str, data_dir: str) -> str:
    url_infos = copies.builder(registry.RECORDS[name].tfds, data_dir).url_infos or {}
    return obtaining.instructions(name, _manual(data_dir), url_infos)


def _counted(name: str, state: prepared.State) -> str:
    record, (train, test) = registry.RECORDS[name], state.counts
    validation = f", {state.validation} of {record.validation}" if record.validation else ""
    summary = f"{name}: {train} images of {record.train}{validation}, {test} of {record.test}"
    if record.is_official(state.counts, state.validation):
        return f"{summary}, as in the paper."
    return f"{summary}; the paper has {record.examples[0]} and {record.examples[1]}."


if __name__ == "__main__":
    sys.exit(streams.run("prepare_data", main))
