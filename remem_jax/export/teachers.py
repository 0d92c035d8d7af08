"""Exports a run's teacher as a plain ViT with the names of other projects; checks the file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import remem_jax
from remem_jax import mesh, models
from remem_jax.checks import one_of, require
from remem_jax.data.images import preprocessing
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import checking, destinations, options, predictors, runs
from remem_jax.export.checking import Limits
from remem_jax.export.images import Images
from remem_jax.storage import results, selected
from remem_jax.weights import (
    augreg,
    catalog,
    described,
    recorded,
    timm,
    timm_architectures,
    timm_names,
)

# The GELU that code computes which loads a format; timm also has the other one.
_GELUS = {"augreg": "tanh", "big_vision": "tanh", "timm": "erf"}
_LAYERS = {"tanh": "gelu_tanh", "erf": "gelu", "quick": "quick_gelu"}  # timm's names.


class Teacher(NamedTuple):
    """The selected teacher of a run.

    Attributes:
        method: Method of the run.
        checkpoint: Plain ViT, with re-weighting folded in and LoRA merged. Its `gelu` is that
            of its training, whatever the names in the file.
        classes: Class names, in the order of the logits.
        preprocessing: Preprocessing of images.
        identity: Hash of the run's file that it was read from.
        run: Key of the run's identity (`storage.identity`); empty for older runs.
    """

    method: str
    checkpoint: augreg.Checkpoint
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    identity: str
    run: str

    @property
    def gelu(self) -> str:
        """GELU that it was trained with: "tanh" or "erf"."""
        return self.checkpoint.options["gelu"]


def open_teacher(run: pathlib.Path, *, method: str = "") -> Teacher:
    """Opens the selected teacher of a finished run.

    Args:
        run: Folder of the run.
        method: Method with a teacher, or METHOD_refit for the teacher that was trained anew; empty
            selects the method whose student is best on validation.

    Raises:
        SettingError: If there is no such run or teacher, or the run is not finished.
    """
    mesh.require_devices()
    record = runs.read_results(run)
    with_teacher = [row for row in record["methods"] if row["teacher"]]
    require(len(with_teacher) > 0, f"No method of {run} has a teacher; set --method.")
    rows = record | {"methods": record["methods"] if method else with_teacher}
    row, name = runs.named_row(rows, run, method)
    require(row["teacher"] is not None, f"{name} of {run} has no teacher; set --method.")
    path = selected.teacher(run, name)
    require(
        path.is_file(),
        f"There is no {path}: a teacher with adapters is not a plain ViT, and is not written.",
    )
    checkpoint = augreg.read(path)
    if path.suffix == selected.NPZ:
        known = {**checkpoint.options, "gelu": "erf" if _is_by_erf(record) else "tanh"}
        checkpoint = checkpoint._replace(options=known)
    return Teacher(
        name,
        checkpoint,
        tuple(record["data"]["class_names"]),
        Preprocessing(
            record["data"].get("image_size", checkpoint.image_size),
            preprocessing.stored_size(record),
            preprocessing.crop(record),
        ),
        results.digest(path),
        runs.key_of(record),
    )


def _is_by_erf(record: Mapping[str, Any]) -> bool:
    """Returns whether the teachers of a run, whose files are .npz, have the GELU by erf.

    Earlier versions wrote all teachers as .npz, and did not record the GELU of the checkpoint that
    teachers with `config.teacher.gelu=""` have: only files of timm have that by erf.
    """
    recorded_gelu = record.get("models", {}).get("teacher_gelu")
    settings = record["config"]["teacher"]
    if recorded_gelu or settings["gelu"]:
        return (recorded_gelu or settings["gelu"]) == "erf"
    init = settings.get("init", "")
    path = catalog.find(init).path if catalog.is_name(init) else init
    return path.endswith(".safetensors")


def export(
    teacher: Teacher, form: str, path: pathlib.Path, images: Images, *, allowed: Limits
) -> dict[str, Any]:
    """Writes a teacher with another project's names and, as PATH.json, the record of its check.

    Args:
        teacher: The teacher.
        form: Format: "augreg" (vit_jax), "big_vision" or "timm".
        path: Path of the file. Replaces only an earlier export.
        images: Images to compare the file and the teacher on.
        allowed: Largest allowed differences.

    Returns:
        The record in PATH.json.

    Raises:
        SettingError: If that project has no such ViT, the path exists and is not an export, the
            file cannot be written, or its outputs differ too much; the new file is then removed,
            and the old one stays.
    """
    one_of("--format", form, options.TEACHER_FORMATS)
    _require_network(teacher.checkpoint, form)
    destinations.require_replaceable(path, folder=False)
    try:
        with destinations.workspace(path) as folder:
            # The file is read by its suffix.
            unchecked = folder / f"unchecked{options.TEACHER_FORMATS[form]}"
            record = _write_and_check(teacher, form, unchecked, images, allowed)
            return destinations.put(unchecked, path, record)
    except OSError as error:
        raise destinations.unwritable(path, error) from error


def _require_network(checkpoint: augreg.Checkpoint, form: str) -> None:
    """Raises `SettingError` unless a project has the network of a teacher."""
    others = sorted(checkpoint.options.keys() - described.OF_NPZ)
    require(
        form == "timm" or not others,
        f"--format={form} has no ViTs with {', '.join(others)}: take --format=timm.",
    )


def _gelu_of(form: str, architecture: str) -> str:
    """Returns the GELU with which a project computes a network of timm's name."""
    if form == "timm" and architecture:
        return timm_architectures.facts(architecture).gelu
    return _GELUS[form]


def _write_and_check(
    teacher: Teacher, form: str, path: pathlib.Path, images: Images, allowed: Limits
) -> dict[str, Any]:
    """Writes a teacher and compares the file with it; returns the record.

    The logits of the file are those that its project computes, with that project's GELU. timm also
    has the other one, which a note of the record names.
    """
    checkpoint = teacher.checkpoint
    theirs = _gelu_of(form, checkpoint.architecture)
    _write(teacher, form, path)
    read = augreg.read(path, heads=checkpoint.size.heads)
    expected = _logits(checkpoint, images, teacher.gelu)
    compared = {
        gelu: checking.compare_logits(_logits(read, images, gelu), expected, images)
        for gelu in {theirs, teacher.gelu}
    }
    reason = "" if theirs == teacher.gelu else _reason(form, teacher.gelu, theirs)
    if form == "timm":
        comparison = compared[teacher.gelu]
        checking.require_close(comparison, allowed, "The timm file")
    else:
        comparison = compared[theirs]
        checking.require_close(comparison, allowed, f"The {form} file", reason)
    return {
        "metadata": _metadata(teacher),
        "bytes": destinations.size(path),
        "check": checking.check_record(comparison, allowed, images),
        **({"note": f"{reason} {_measured(compared[theirs], form)}"} if reason else {}),
    }


def _reason(form: str, gelu: str, theirs: str) -> str:
    """Says that a project has another GELU than the teacher, and what to do."""
    if form == "timm":
        return (
            f"This teacher has the GELU by {gelu}, and timm's default is by {theirs}: give "
            f'timm.create_model act_layer="{_LAYERS[gelu]}".'
        )
    project = "vit_jax" if form == "augreg" else form
    return (
        f"This teacher has the GELU by {gelu}, and {project} computes it by {theirs}: take "
        "--format=timm, which has this GELU."
    )


def _measured(comparison: checking.Comparison, form: str) -> str:
    """Describes the logits of a project whose GELU is not that of the teacher."""
    share = f"{100 * comparison.disagreement:.2f} % of {comparison.images}"
    return (
        f"{'Without it' if form == 'timm' else 'There'}, a logit differs by up to "
        f"{comparison.difference:.2g} (the largest is {comparison.largest:.3g}), and "
        f"{share} have another predicted class."
    )


def _metadata(teacher: Teacher) -> dict[str, str]:
    checkpoint = teacher.checkpoint
    return {
        "model": f"ViT {dict(checkpoint.size._asdict())}",
        "pool": str(checkpoint.options["pool"]),
        **recorded.texts(recorded.of_model(checkpoint.make(classes=1), checkpoint.architecture)),
        "image_size": str(teacher.preprocessing.image_size),
        "image_range": preprocessing.RANGE,
        "resize": teacher.preprocessing.text(),
        "preprocessing": json.dumps(teacher.preprocessing.record()),
        "classes": json.dumps(teacher.classes),
        "method": teacher.method,
        "identity": teacher.identity,
        "run": teacher.run,
        "producer": f"remem_jax {remem_jax.__version__}",
    }


def _write(teacher: Teacher, form: str, path: pathlib.Path) -> None:
    checkpoint, metadata = teacher.checkpoint, _metadata(teacher)
    if form == "timm":
        grid = teacher.preprocessing.image_size // checkpoint.size.pixels
        arrays = timm_names.to_timm(checkpoint.arrays, grid=grid, layout=checkpoint.layout)
        timm.save(path, arrays, metadata)
    else:
        names = "vit_jax" if form == "augreg" else form
        augreg.save(path, checkpoint.arrays, form=names)


def _logits(checkpoint: augreg.Checkpoint, images: Images, gelu: str) -> np.ndarray:
    """Returns the logits of a ViT with a GELU, "tanh" or "erf"."""
    model = checkpoint.make(classes=checkpoint.classes, gelu=gelu)
    variables = augreg.into(checkpoint, model, image_size=None, reset_head=False)
    apply = jax.jit(models.evaluation_apply(model))
    pixels = predictors.to_model_range(images.pixels)
    starts = range(0, len(pixels), options.BATCH_SIZE)
    return np.concatenate([apply(variables, pixels[i : i + options.BATCH_SIZE]) for i in starts])
