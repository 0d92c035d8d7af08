"""A model card of each method's student: what it is, what was measured, and how to load it.

In Markdown under a head of metadata in YAML, as the Hugging Face Hub takes them. It is of the one
student whose weights lie beside it, not of the mean over seeds.

Source: Mitchell et al. 2019, https://arxiv.org/abs/1810.03993; huggingface.co/docs/hub/model-cards.
"""

import math
import pathlib
from typing import Any

import yaml

from remem_jax import models
from remem_jax.data.images import preprocessing
from remem_jax.report import rendering, tables
from remem_jax.report.card import licences
from remem_jax.report.card import tables as card_tables
from remem_jax.report.run import plots
from remem_jax.report.tables import Results
from remem_jax.storage import files

_WEIGHTS = "_student.safetensors"
_PAPER = "arxiv:2506.23041"


def write(directory: pathlib.Path, results: Results) -> None:
    """Writes selected/METHOD_student.md beside the weights of each method's student.

    Where the weights are not there any more, there is no card.

    Args:
        directory: Of the run.
        results: Of its results.json.
    """
    methods = {row["method"] for row in results["methods"]}
    for path in sorted((directory / "selected").glob(f"*{_WEIGHTS}")):
        method = path.name.removesuffix(_WEIGHTS)
        if method in methods:
            files.write_text(path.with_suffix(".md"), markdown(results, method))


def markdown(results: Results, method: str) -> str:
    """The card of a method's student.

    Args:
        results: Of a run's results.json.
        method: One of the run's.
    """
    data, model = results["data"], results["models"]["student"]
    student = models.STUDENTS.get(model)  # None if this version has lost the student of a run.
    steps = preprocessing.of_results(results)
    stem = card_tables.student_settings(results).get("stem", "imagenet")
    content = {
        "head": yaml.safe_dump(
            head(results, method), sort_keys=False, allow_unicode=True, width=math.inf
        ),
        "title": _title(results, method),
        "summary": _summary(results, method),
        "warning": warning(results),
        "method": method,
        "weights": f"{method}{_WEIGHTS}",
        "onnx": f"{method}_student.onnx",
        "model": model,
        "stem": stem,
        "classes": data["classes"],
        "resize": steps.text(),
        "sizes": steps.sizes,
        "timm": student.timm if student else "",
        "timm_stem": student.small_stem if student and stem == "small" else (),
        "tables": card_tables.of_card(results, method),
        "limits": _limits(results),
    }
    return rendering.markdown("card/model_card.md.jinja", content)


def head(results: Results, method: str) -> dict[str, Any]:
    """The metadata of the card, as the Hub has it; every text is on one line.

    No licence is claimed: that of the student is for whoever publishes it to choose.

    Args:
        results: Of a run's results.json.
        method: One of the run's.
    """
    row, data = card_tables.row_of(results, method), results["data"]
    known = licences.of_data(data["name"])
    teacher = licences.of_weights(results["models"]["init"] if row["teacher"] else "")
    hub, kind, named = known.hub, known.hub or data["name"], data["title"]
    if data["official"] is False:  # It must not stand among results on the official one.
        hub, kind, named = "", f"{data['name']}-not-official", f"{named} (not the official images)"
    found: dict[str, Any] = {
        "license": "other",
        "license_name": "not-stated",
        "license_link": "LICENSE",
        "library_name": "remem_jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "jax", "remem", _PAPER],
    }
    if row["teacher"]:
        found["tags"] += ["knowledge-distillation"]
    if teacher.hub:
        found["base_model"] = teacher.hub
    if hub:
        found["datasets"] = [hub]
    measured = [_of_split(results, method, split) for split in card_tables.SPLITS]
    dataset = {"name": named, "type": kind}
    found["metrics"] = ["accuracy"]
    found["model-index"] = [
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
    return _printable(found)


def _printable(content: Any) -> Any:
    if isinstance(content, str):
        return plots.printable(content)
    if isinstance(content, dict):
        return {name: _printable(value) for name, value in content.items()}
    return [_printable(value) for value in content] if isinstance(content, list) else content


def _of_split(results: Results, method: str, split: str) -> list[dict[str, Any]]:
    """The metrics of a split for the metadata; shares from 0 to 1."""
    found = card_tables.served(card_tables.row_of(results, method))[split]
    return [
        {"type": kind, "value": found[name], "name": f"{title.partition(',')[0]}, {split}"}
        for name, (kind, title) in card_tables.METRICS.items()
        if found.get(name) is not None
    ]


def _title(results: Results, method: str) -> str:
    model, data = results["models"]["student"], results["data"]["title"]
    return f"{model} for {data}: {tables.method_title(method)}"


def _summary(results: Results, method: str) -> str:
    models, data = results["models"], results["data"]
    how = (
        f"distilled from a teacher, {models['teacher']} with {models['teacher_parameters']:,} "
        f"parameters, that was tuned by the method {tables.method_title(method)}; it has no "
        "weights of its teacher"
        if card_tables.row_of(results, method)["teacher"]
        else "trained from scratch, by labels alone"
    )
    return (
        f"An image classifier for {data['classes']:,} classes: {models['student']} with "
        f"{models['student_parameters']:,} parameters, {how}."
    )


def warning(results: Results) -> str | None:
    """What to be warned of where the data are not the official ones."""
    if results["data"]["official"] is not False:
        return None
    return (
        "The numbers of images are not those of the official data set. Do not compare these "
        "results with results on the official benchmark."
    )


def _limits(results: Results) -> list[str]:
    """What it is not, as sentences."""
    data, size = results["data"], results["data"]["image_size"]
    limits = [
        f"Images of {size} x {size} pixels were measured, and no others. Each is resized as a "
        "whole, so that its aspect ratio is lost: what is long and thin comes out square.",
        f"It knows {data['classes']:,} classes and says one of them of any image, also of one "
        "that shows none of them.",
        "What was measured holds for images like those of the data set. Other cameras, noise, "
        "compression, attacks, and whether it errs more on some groups than on others were not "
        "tested.",
        f"Teacher and splits are of one seed ({results['seed']}): what another would change is not "
        "measured.",
    ]
    source = data["source_size"]
    if source:
        limits.append(
            f"In training and in measurement images were stored as {source[0]} x {source[1]} "
            "pixels, and resized from these."
        )
    if data["skipped"]:
        limits.append(f"{len(data['skipped']):,} images could not be read, and were left out.")
    return limits
