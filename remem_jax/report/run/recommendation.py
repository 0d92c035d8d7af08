"""Recommends a model of a run: sentences, a table, its file, and the commands that come next.

As in `tables`, all is plain text, not escaped yet.
"""

import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax import paired
from remem_jax.methods import ALONE, SCRATCH
from remem_jax.report import tables
from remem_jax.report.run import budget, choice, comparisons
from remem_jax.report.run.choice import BATCH, ONE_IMAGE, SIZE, STUDENT, TEACHER, Choice, Model
from remem_jax.report.tables import Results, Table

_ADAPTERS = (
    "The teacher leads, but it has adapters, which a plain ViT cannot have, so there is no file of "
    "it."
)
_SMALLER = "To serve something smaller, distil into a smaller student (config.student.model)."
_NO_TEACHER = {
    ALONE: "the same student without a teacher",
    SCRATCH: "the same student from scratch, without a teacher",
}


class Recommendation(NamedTuple):
    """What a report begins with.

    Attributes:
        sentence: Which model to use.
        reasons: Sentences on how it compares with the other one.
        table: Size, latency and accuracy of both.
        file: Path of the recommended file; None if there is none.
        commands: Commands that come next, one line each, for the folder in which the run began.
    """

    sentence: str
    reasons: str
    table: Table
    file: str | None
    commands: tuple[str, ...]


def recommend(results: Results, directory: pathlib.Path) -> Recommendation:
    """Recommends a model of a run.

    Args:
        results: Contents of its results.json.
        directory: Folder of the run, as the commands are to name it.
    """
    chosen = choice.choose(results)
    path = choice.file_of(results, chosen.model)
    return Recommendation(
        _sentence(chosen),
        " ".join(_reasons(results, chosen)),
        table(results, chosen),
        path and tables.printable(str(directory / path)),
        _commands(chosen.model, directory),
    )


def name(model: Model) -> str:
    """Returns a model with its method, such as "the student (ReMem)"."""
    return f"the {model.role} ({tables.method_title(model.row['method'])})"


def _sentence(chosen: Choice) -> str:
    if chosen.model.role == TEACHER:
        return f"The student is not worth it here: use {name(chosen.model)}."
    return f"Use {name(chosen.model)}."


def _reasons(results: Results, chosen: Choice) -> list[str]:
    sentences = []
    if not chosen.other:
        sentences += [_alone(results, chosen.model), budget.left_out(results)]
    elif chosen.accuracy:
        sentences.append(_comparison(results, chosen, chosen.other, chosen.accuracy))
        loss = choice.verdict(chosen.accuracy) < 0
        if chosen.is_forced:
            sentences.append(_ADAPTERS)
        elif chosen.worse or loss:
            matters = _listed([*(["accuracy"] if loss else []), *map(_NOUNS.get, chosen.worse)])
            sentences.append(f"Use {name(chosen.other)} where {matters} matters more.")
        if chosen.model.role == TEACHER:
            sentences.append(_SMALLER)
    return [*filter(None, sentences), *_without_teacher(results, chosen)]


def _alone(results: Results, model: Model) -> str:
    """Returns a sentence on a model that no other one is compared with."""
    share = tables.percent(model.saved["test"][results["data"]["metric"]])
    several = len(results["methods"]) > 1
    best = f"is the best on {tables.selection(results)}"
    which = best if several else "is the only model that was trained"
    return f"It {which}, with {share} % on test."


_NOUNS = {SIZE: "size", ONE_IMAGE: "the latency of single images", BATCH: "throughput"}


def _comparison(results: Results, chosen: Choice, other: Model, accuracy: paired.Difference) -> str:
    """Returns the sentence that compares both models: advantages, equal costs, disadvantages."""
    costs = [choice.costs(results, model) for model in (chosen.model, other)]
    ours, theirs = (each.measured() for each in costs)
    both = [kind for kind in ours if kind in theirs]
    equal = [kind for kind in both if kind not in (*chosen.better, *chosen.worse)]
    correct, gain = _accuracy(results, chosen.model, other, accuracy), choice.verdict(accuracy)
    advantages = [
        *_costs(("smaller", "faster"), chosen.better, ours, theirs),
        *_costs(("about as large", "about as fast"), equal, ours, theirs),
        *([correct] if gain >= 0 else []),
    ]
    disadvantages = [
        *_costs(("larger", "slower"), chosen.worse, ours, theirs),
        *([correct] if gain < 0 else []),
    ]
    text = ", but ".join(filter(None, map(_listed, (advantages, disadvantages))))
    return f"Compared with {name(other)}, it is {text}."


def _costs(
    words: tuple[str, str],
    kinds: Sequence[str],
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
) -> list[str]:
    """Describes a size and latencies by an adjective each, with both values."""
    size, speed = words
    phrases = []
    if SIZE in kinds:
        millions = [f"{values[SIZE] / 1e6:.3g}" for values in (ours, theirs)]
        phrases.append(f"{size} ({millions[0]} against {millions[1]} million parameters)")
    latencies = [
        f"{milliseconds(ours[kind])} against {milliseconds(theirs[kind])} ms for {_BATCHES[kind]}"
        for kind in (ONE_IMAGE, BATCH)
        if kind in kinds
    ]
    return [*phrases, *([f"{speed} ({', '.join(latencies)})"] if latencies else [])]


_BATCHES = {ONE_IMAGE: "one image", BATCH: "a batch of 32"}


def _accuracy(results: Results, first: Model, second: Model, accuracy: paired.Difference) -> str:
    """Describes the difference in test accuracy."""
    metric = results["data"]["metric"]
    shares = [tables.percent(model.saved["test"][metric]) for model in (first, second)]
    facts = [f"{shares[0]} against {shares[1]} %"]
    if math.isfinite(accuracy.p_value):
        facts.append(comparisons.in_words(accuracy))
    points = f"{abs(100 * accuracy.difference):.2f} points"
    if choice.verdict(accuracy):
        compared = "more" if accuracy.difference > 0 else "less"
        return f"{points} {compared} accurate on test ({'; '.join(facts)})"
    return f"as accurate, as far as the test images can tell ({'; '.join(facts)})"


def _without_teacher(results: Results, chosen: Choice) -> list[str]:
    """Says so if the teacher added nothing measurable to the student that is best on validation."""
    metric = results["data"]["metric"]
    rows = {row["method"]: row for row in results["methods"]}
    best = tables.best_on_validation(results["methods"], metric)
    baseline = ALONE if ALONE in rows else SCRATCH
    if best["teacher"] is None or baseline not in rows:
        return []
    if baseline == SCRATCH and results["models"].get("student_init"):
        return []  # Pretraining may be what helped.
    models = [Model(row, STUDENT) for row in (best, rows[baseline])]
    found = choice.difference(results, models[0], models[1])
    if math.isnan(found.p_value) or choice.verdict(found) > 0:
        return []
    student = "it" if chosen.model.role == STUDENT else name(models[0])
    return [
        f"The teacher added nothing to {student} that the test images can show: "
        f"{_NO_TEACHER[baseline]} reaches {tables.percent(models[1].saved['test'][metric])} %."
    ]


def _listed(parts: Sequence[Any]) -> str:
    """Joins phrases by commas and "and"."""
    *first, last = parts or [""]
    return f"{', '.join(first)} and {last}" if first else last


def table(results: Results, chosen: Choice) -> Table:
    """Builds the table of the recommended model and the other one."""
    metric = results["data"]["metric"]
    pair = [chosen.model, *([chosen.other] if chosen.other else [])]
    rows = []
    for model in sorted(pair, key=lambda model: (STUDENT, TEACHER).index(model.role)):
        costs = choice.costs(results, model)
        title = f"{model.role.capitalize()} ({tables.method_title(model.row['method'])})"
        error = choice.standard_error(results, model)
        share = tables.percent(model.saved["test"][metric])
        rows.append(
            (
                f"{title}, recommended" if model is chosen.model else title,
                choice.file_of(results, model) or tables.NOTHING,
                tables.NOTHING if costs.parameters is None else f"{costs.parameters:,}",
                _scaled(costs.bytes, 1e6),
                _scaled(costs.operations, 1e9),
                *(milliseconds(costs.milliseconds.get(kind)) for kind in (ONE_IMAGE, BATCH)),
                f"{share} ± {comparisons.points(error)}" if error is not None else share,
            )
        )
    heads = (
        *("Model", "File", "Parameters", "MB", "GFLOPs, one image", "ms, one image"),
        *("ms, batch of 32", f"{tables.METRIC_TITLES[metric].capitalize()} on test, %"),
    )
    return Table("Recommended model", heads, tuple(rows), note=_note(results), texts=(1,))


def _note(results: Results) -> str:
    """Describes how the numbers of the table were measured."""
    accuracy = "± is the standard error by the choice of test images."
    measured = results.get("inference")
    if not measured:
        return f"The latency was not measured. {accuracy}"
    device, threads = measured["device"], measured["threads"]
    where = f"{threads} threads" if device["platform"] == "cpu" else device["kind"]
    return (
        f"Latency: the median in JAX, compiled, in {measured['compute_dtype']} on {where}, of "
        f"images of {measured['image_size']} x {measured['image_size']} pixels that are in memory; "
        "student and teacher took turns. A product of two numbers and its addition are two FLOPs. "
        f"{accuracy}"
    )


def _scaled(value: float | None, unit: float) -> str:
    return tables.NOTHING if value is None else _three_digits(value / unit)


def milliseconds(value: float | None) -> str:
    """Formats milliseconds with three significant digits."""
    return tables.NOTHING if value is None else _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _commands(model: Model, directory: pathlib.Path) -> tuple[str, ...]:
    """Returns the commands that export the recommended model, and classify images with it."""
    run, method = shlex.quote(str(directory)), shlex.quote(f"--method={model.row['method']}")
    if model.role == TEACHER:
        commands = (f"remem export {run} {method} --format=timm",)
    else:
        commands = (
            f"remem export {run} {method} --format=onnx",
            f"remem predict {run} photographs/",
        )
    return tuple(map(tables.printable, commands))
