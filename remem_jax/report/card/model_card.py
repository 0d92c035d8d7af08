"""Writes a model card for each method's student: description, evaluation, and how to load it.

Cards are Markdown with YAML metadata, in the format of the Hugging Face Hub. A card describes the
one student whose weights lie beside it, not the mean over seeds.

Source: Mitchell et al. 2019, https://arxiv.org/abs/1810.03993; huggingface.co/docs/hub/model-cards.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from remem_jax import models
from remem_jax.data.images import preprocessing
from remem_jax.models.normalisation import IDENTITY
from remem_jax.report import initial_students, rendering, tables
from remem_jax.report.card import licences
from remem_jax.report.card import tables as card_tables
from remem_jax.report.run import refit
from remem_jax.report.tables import Results
from remem_jax.storage import files, selected

_WEIGHTS = "_student.safetensors"
_PAPER = "arxiv:2506.23041"


def write(directory: pathlib.Path, results: Results) -> None:
    """Writes selected/METHOD_student.md beside the weights of each method's student.

    Students whose weights were deleted have no card.

    Args:
        directory: Folder of the run.
        results: Contents of its results.json.
    """
    for row in results["methods"]:
        method = row["method"]
        described = {method: results}
        if refit.was_made(row):
            described[selected.REFIT.format(method)] = refit.view(results, method)
        for name, of_models in described.items():
            path = directory / "selected" / f"{name}{_WEIGHTS}"
            if path.is_file():
                files.write_text(path.with_suffix(".md"), markdown(of_models, method, name))


def markdown(results: Results, method: str, name: str = "") -> str:
    """Renders the card of a method's student.

    Args:
        results: Contents of a run's results.json, or a view of them.
        method: Name of a method of the run.
        name: Name of the student in the names of its files; empty is that of the method.
    """
    name = name or method
    data, model = results["data"], results["models"]["student"]
    student = models.STUDENTS.get(model)  # None if this version has lost the student of a run.
    steps, used = preprocessing.of_results(results), initial_students.normalisation(results)
    stem = card_tables.student_settings(results).get("stem", "imagenet")
    architecture = results["models"].get("student_architecture", {})
    content = {
        "head": yaml.safe_dump(
            head(results, method), sort_keys=False, allow_unicode=True, width=math.inf
        ),
        "title": _title(results, method),
        "summary": _summary(results, method),
        "warning": warning(results),
        "method": method,
        "weights": f"{name}{_WEIGHTS}",
        "onnx": f"{name}_student.onnx",
        "model": model,
        "stem": stem,
        "classes": data["classes"],
        "resize": steps.text(),
        "sizes": steps.sizes,
        "mean": list(used.mean),
        "std": list(used.std),
        "normalises": used != IDENTITY,
        "normalisation": initial_students.text(used),
        "image_size": steps.image_size,
        "shorter_side": steps.shorter_side,
        "timm": student.timm if student else "",
        "architecture": _arguments(architecture),
        "timm_options": _arguments(student.timm_options(architecture, steps.image_size))
        if student
        else "",
        "timm_stem": student.small_stem if student and stem == "small" else (),
        "tables": card_tables.of_card(results, method),
        "limits": _limits(results),
    }
    return rendering.markdown("card/model_card.md.jinja", content)


def _arguments(options: Mapping[str, Any]) -> str:
    """Returns keyword arguments of a call in Python, after others."""
    return "".join(f", {name}={value!r}" for name, value in options.items()).replace("'", '"')


def head(results: Results, method: str) -> dict[str, Any]:
    """Returns the metadata of the card, in the Hub's format; every text is on one line.

    No licence is claimed: whoever publishes the student chooses one.

    Args:
        results: Contents of a run's results.json.
        method: Name of a method of the run.
    """
    row, data = card_tables.row_of(results, method), results["data"]
    initial = initial_students.of_method(results, method)
    data_licence = licences.of_data(data["name"])
    teacher_hub = licences.of_teacher(results["models"]).hub if row["teacher"] else ""
    hub, data_type, data_title = data_licence.hub, data_licence.hub or data["name"], data["title"]
    if data["official"] is False:  # Must not be listed with results on the official one.
        hub, data_type, data_title = (
            "",
            f"{data['name']}-not-official",
            f"{data_title} (not the official images)",
        )
    metadata: dict[str, Any] = {
        "license": "other",
        "license_name": "not-stated",
        "license_link": "LICENSE",
        "library_name": "remem_jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "jax", "remem", _PAPER],
    }
    if row["teacher"]:
        metadata["tags"] += ["knowledge-distillation"]
    bases = [
        *([licences.of_recorded(initial).hub] if initial else []),
        teacher_hub,
    ]
    bases = [name for name in bases if name]
    if bases:
        metadata["base_model"] = bases if len(bases) > 1 else bases[0]
    if hub:
        metadata["datasets"] = [hub]
    measured = [_of_split(results, method, split) for split in card_tables.SPLITS]
    dataset = {"name": data_title, "type": data_type}
    metadata["metrics"] = ["accuracy"]
    metadata["model-index"] = [
        {
            "name": f"{results['models']['student']}_{method}",
            "results": [
                {
                    "task": {"type": "image-classification", "name": "Image classification"},
                    "dataset": {**dataset, "split": split},
                    "metrics": metrics,
                }
                for split, metrics in zip(card_tables.SPLITS, measured, strict=True)
                if metrics
            ],
        }
    ]
    return _printable(metadata)


def _printable(content: Any) -> Any:
    if isinstance(content, str):
        return tables.printable(content)
    if isinstance(content, dict):
        return {name: _printable(value) for name, value in content.items()}
    return [_printable(value) for value in content] if isinstance(content, list) else content


def _of_split(results: Results, method: str, split: str) -> list[dict[str, Any]]:
    """Returns the metrics of a split for the metadata; fractions from 0 to 1."""
    metrics = card_tables.saved_student(card_tables.row_of(results, method))[split] or {}
    return [
        {"type": kind, "value": metrics[name], "name": f"{title.partition(',')[0]}, {split}"}
        for name, (kind, title) in card_tables.METRICS.items()
        if metrics.get(name) is not None
    ]


def _title(results: Results, method: str) -> str:
    model, data = results["models"]["student"], results["data"]["title"]
    return f"{model} for {data}: {tables.method_title(method)}"


def _summary(results: Results, method: str) -> str:
    models, data = results["models"], results["data"]
    initial = initial_students.of_method(results, method)
    alone = "trained on labels only" if initial else "trained from scratch on labels only"
    training = (
        f"distilled from a teacher, {models['teacher']} with {models['teacher_parameters']:,} "
        f"parameters, fine-tuned with the method {tables.method_title(method)}; it contains no "
        "weights of the teacher"
        if card_tables.row_of(results, method)["teacher"]
        else alone
    )
    return (
        f"An image classifier for {data['classes']:,} classes: {models['student']} with "
        f"{models['student_parameters']:,} parameters"
        f"{initial_students.phrase(initial)}, {training}."
    )


def warning(results: Results) -> str | None:
    """Returns a warning if the data are not the official ones; else None."""
    if results["data"]["official"] is not False:
        return None
    return (
        "The numbers of images are not those of the official data set. Do not compare these "
        "results with results on the official benchmark."
    )


def _limits(results: Results) -> list[str]:
    """Lists the limits of the model, as sentences."""
    data, size = results["data"], results["data"]["image_size"]
    limits = [
        f"The model was evaluated only on images of {size} x {size} pixels. Each image is resized "
        "as a whole, which does not preserve its aspect ratio.",
        f"It predicts one of {data['classes']:,} classes for every image, even for an image that "
        "shows none of them.",
        "The evaluation holds for images like those of the data set. Other cameras, noise, "
        "compression, adversarial attacks, and differences in accuracy between subgroups were not "
        "tested.",
        f"The teacher and the splits come from one seed ({results['seed']}): the variation between "
        "seeds was not measured.",
    ]
    source = data["source_size"]
    if source:
        limits.append(
            f"For training and evaluation, images were first resized to {source[0]} x {source[1]} "
            "pixels."
        )
    if data["skipped"]:
        limits.append(f"{len(data['skipped']):,} images could not be read and were left out.")
    return limits
