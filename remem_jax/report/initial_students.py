"""Describes the weights that students and teachers start from, and how students normalise."""

import pathlib
from collections.abc import Mapping
from typing import Any

from remem_jax.methods import METHODS
from remem_jax.models.normalisation import IDENTITY, Normalisation
from remem_jax.report import tables
from remem_jax.report.tables import Results
from remem_jax.weights import catalog


def of_method(results: Results, method: str) -> Mapping[str, Any] | None:
    """Returns the record of a method's initial weights; None if its student starts at random."""
    known = METHODS.get(method)  # None for a method of another version.
    is_random = known is not None and known.starts_random
    return None if is_random else results["models"].get("student_init")


def normalisation(results: Results) -> Normalisation:
    """Returns the normalisation of the students' images; older runs had none."""
    recorded = results["models"].get("student_normalisation")
    return Normalisation(*map(tuple, recorded.values())) if recorded else IDENTITY


def name(record: Mapping[str, Any]) -> str:
    """Returns the name of initial weights: the repository, or the file without its folders."""
    init = record["init"]
    if record["repository"] or catalog.has(init):
        return record["repository"] or init
    return pathlib.PurePath(init).name


def rows(record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns the rows of a table of properties.

    Args:
        record: Record of the initial weights; None for students that all start at random.
    """
    if record is None:
        return []
    commit, pretraining = record["commit"], record["pretraining"]
    source = f"commit {commit[:12]}" if commit else "a local file"
    if catalog.has(record["init"]):
        source = "of the catalogue"
    return [
        ("Initial weights of the student", f"{name(record)} ({source})"),
        ("Hash of the student's initial weights", record["digest"]),
        *([("Pretraining of the student", pretraining)] if pretraining else []),
    ]


def teacher_rows(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows on the initial weights of the teacher.

    Args:
        models: `models` of the results.
    """
    recorded = models.get("teacher_weights") or {}  # Older runs had none.
    commit, pretraining = recorded.get("commit"), recorded.get("pretraining")
    source = f"{recorded['repository']} (commit {commit[:12]})" if commit else models["init"]
    return [
        ("Initial weights of the teacher", source or "random weights"),
        ("Hash of these weights", models["init_digest"] or tables.NOTHING),
        *([("Pretraining of the teacher", pretraining)] if pretraining else []),
    ]


def architecture_row(results: Results) -> list[tuple[str, str]]:
    """Returns the row on the pooling and the GELU of a ViT; none for other students."""
    used = results["models"].get("student_architecture")
    if not used:
        return []
    pools = {"cls": "[CLS]", "gap": "the mean of its tokens", "map": "attention"}
    sentence = f"pooled by {pools.get(used['pool'], used['pool'])}, GELU by {used['gelu']}"
    return [("Architecture of the student", sentence)]


def normalisation_row(results: Results) -> list[tuple[str, str]]:
    """Returns the row on the student's own normalisation; none for the pipeline's, [-1, 1]."""
    used = normalisation(results)
    return [] if used == IDENTITY else [("Normalisation in the student", text(used))]


def text(used: Normalisation) -> str:
    """Returns a normalisation for readers, rounded."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in used)
    return f"mean {mean} and deviation {std}, of pixels from 0 to 1"


def phrase(record: Mapping[str, Any] | None) -> str:
    """Returns how a student starts, such as ", from the pretrained weights NAME"; "" at random."""
    return f", from the pretrained weights {tables.printable(name(record))}" if record else ""
