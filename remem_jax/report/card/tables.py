"""What the model card of a student says in tables, as plain text: nothing here is escaped yet."""

import statistics
from collections.abc import Mapping
from typing import Any

from remem_jax import evaluate
from remem_jax.data import registry
from remem_jax.report import tables
from remem_jax.report.card import licences
from remem_jax.report.run import comparisons, data_summary
from remem_jax.report.tables import Results, Table

# Our metrics: what the Hub calls them, or would, and what a reader would.
METRICS = {
    "top1": ("accuracy", "Top-1 accuracy, %"),
    "mean_per_class": ("mean_per_class_accuracy", "Mean per-class accuracy, %"),
    "top5": ("top_5_accuracy", "Top-5 accuracy, %"),
    "calibration_error": ("expected_calibration_error", "Expected calibration error, %"),
    "agreement": ("agreement_with_teacher", "Agreement with the teacher, %"),
    "loss": ("cross_entropy", "Loss, nats"),
}
SPLITS = ("test", "validation")


def of_card(results: Results, method: str) -> list[Table]:
    """All tables of a card, in their order.

    Args:
        results: Of a run's results.json.
        method: One of the run's.
    """
    mistaken = confused(results, method)
    return [
        metrics(results, method),
        *([mistaken] if mistaken else []),
        training(results, method),
        images(results),
        terms(results, method),
    ]


def row_of(results: Results, method: str) -> Mapping[str, Any]:
    """What a method came to."""
    (row,) = [row for row in results["methods"] if row["method"] == method]
    return row


def served(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student whose weights are written: of several seeds, the best on validation."""
    seeds = row.get("seeds")
    return seeds[0] if seeds else row["student"]


def student_settings(results: Results) -> Mapping[str, Any]:
    """The settings of a run's students; empty in the records of an older run."""
    return results["config"].get("student", {})


def metrics(results: Results, method: str) -> Table:
    """All metrics of the student and of its teacher, on test and on validation."""
    row = row_of(results, method)
    models = [("Student", served(row)), *([("Teacher", row["teacher"])] if row["teacher"] else [])]
    columns = [(f"{who}, {split}", one[split]) for split in SPLITS for who, one in models]
    rows = []
    for name, (_, title) in METRICS.items():
        form = tables.number if name == "loss" else tables.percent
        cells = tuple(form(found.get(name)) for _, found in columns)
        if set(cells) != {tables.NOTHING}:
            rows.append((title, *cells))
    heads = ("Metric", *(title for title, _ in columns))
    return Table("What was measured", heads, tuple(rows), note=_notes(results, row))


def _notes(results: Results, row: Mapping[str, Any]) -> str:
    data, metric = results["data"], results["data"]["metric"]
    title, images = tables.METRIC_TITLES[metric], data["examples"]
    notes = [
        f"On {images['test']:,} test and {images['validation']:,} validation images. What counts "
        f"is {title}.",
        data_summary.coverage(results, "test", "validation"),
        _standard_error(results, row),
        comparisons.beside_teacher(results, row["method"]) or "",
        *_seeds(row, metric),
        _tried(results, row["method"]),
        f"The calibration error is over {evaluate.BINS} bins of confidence, of the softmax as it "
        "is: the confidences were not calibrated.",
    ]
    return " ".join(note for note in notes if note)


def _standard_error(results: Results, row: Mapping[str, Any]) -> str:
    error = comparisons.standard_error(results, row, seed=0 if row.get("seeds") else None)
    if error is None:
        return ""
    rough = ""
    if results["data"]["metric"] != registry.TOP1 and not row.get("test_correct"):
        rough = ", roughly, since a mean over classes weighs images unlike"
    return f"Its standard error on test is {comparisons.points(error)} points{rough}."


def _seeds(row: Mapping[str, Any], metric: str) -> list[str]:
    seeds = row.get("seeds", ())
    shares = [one["test"][metric] for one in seeds]
    if len(shares) < 2 or None in shares:
        return ["The student is one run with one seed: what another would change is not measured."]
    return [
        f"Over {len(shares)} seeds of the student the mean on test is "
        f"{tables.percent(statistics.fmean(shares))} with a sample standard deviation of "
        f"{100 * statistics.stdev(shares):.2f} points; the weights are of seed {seeds[0]['seed']}, "
        "the best on validation."
    ]


def _tried(results: Results, method: str) -> str:
    """What this student was chosen from, and where."""
    tried = [row for row in results["students"] if row["method"] == method]
    teachers = sum(row["method"] == method for row in results["teachers"])
    diverged = sum(row["diverged"] for row in tried)
    test = (
        "all students were measured on test too, which chose nothing here"
        if data_summary.on_test(results)
        else "test was read once, for what was chosen"
    )
    return (
        f"It was chosen on validation (students tried: {len(tried):,}, of which diverged: "
        f"{diverged:,}; checkpoints of the teacher: {teachers:,}), so that its numbers on "
        f"validation are rather too high; {test}."
    )


def confused(results: Results, method: str) -> Table | None:
    """The errors that this student makes most often on test; None where they are not known."""
    found = served(row_of(results, method))["test"].get("confused")
    if not found:
        return None
    rows = [
        (pair["class"], pair["taken_for"], f"{pair['images']:,}", f"{pair['of']:,}")
        for pair in found
    ]
    heads = ("Class", "Taken for", "Images", "Of the class")
    return Table("Errors made most often, on test", heads, tuple(rows), numeric=False)


# Of the settings of a run's students, what a reader would ask for.
_TRAINING = {
    "steps": "Steps",
    "batch_size": "Batch size",
    "warmup_steps": "Warm-up steps",
    "momentum": "Momentum",
    "weight_decay": "Weight decay",
    "mixup": "Mixup",
    "hard_labels": "Labels beside the teacher",
    "flatten": "Divisor of the teacher's logits",
}
_SELECTED = {
    "loss": "Distillation",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "weight": "Weight of the teacher",
}
_TEACHER = {
    "rho": "Teacher's rho",
    "mlp_weight": "Teacher's alpha",
    "attention_weight": "Teacher's beta",
    "learning_rate": "Teacher's learning rate",
}


def training(results: Results, method: str) -> Table:
    """By which method, and at which settings, the student and its teacher were trained."""
    row, models = row_of(results, method), results["models"]
    rows = [("Method", tables.method_title(method))]
    if row["teacher"]:
        rows += [
            ("Teacher", f"{models['teacher']}, {models['teacher_parameters']:,} parameters"),
            ("Teacher starts from", models["init"] or "random weights"),
            ("Hash of that file", models["init_digest"] or tables.NOTHING),
            ("Teacher tuned by", models.get("tuning", "full")),
            ("Teacher's steps", tables.number(row["selected"]["teacher_step"])),
            *_named(row["teacher_settings"], _TEACHER),
        ]
    rows += _named(row["selected"], _SELECTED)
    rows += [("Seed of the student", f"{served(row).get('seed', row['selected']['seed'])}")]
    own = dict(student_settings(results))
    if not row["teacher"]:
        own = {name: value for name, value in own.items() if name not in ("hard_labels", "flatten")}
    rows += _named(own, _TRAINING)
    versions = results["versions"]
    rows += [("Made with", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    rows += [("Hash of all settings", results["config_fingerprint"])]
    return Table("How it was trained", ("What", "Value"), tuple(rows), numeric=False)


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of the values that are there, as rows."""
    return [
        (title, _cell(values[name]))
        for name, title in names.items()
        if values.get(name) is not None
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return tables.cell(value)


def images(results: Results) -> Table:
    """The data that it was trained and measured on, and its classes."""
    data = results["data"]
    examples = data["examples"]
    names = data["class_names"]
    standing = {True: "as many as in the official one", False: "not those of the official one"}
    rows = [
        ("Data set", f"{data['name']} ({data['title']})"),
        ("Images of training", f"{examples['train']:,}"),
        ("Images of validation", _validation(data)),
        ("Images of test", f"{examples['test']:,}"),
        ("Sizes of images", data_summary.sizes(data).removeprefix("of ")),
        ("Numbers of images", standing.get(data["official"], "there is no official data set")),
        ("Classes", f"{data['classes']:,}"),
        ("Their names", tables.names(names)),
        ("Hash of the data", data["fingerprint"]),
    ]
    return Table("Data and classes", ("What", "Value"), tuple(rows), numeric=False)


def _validation(data: Mapping[str, Any]) -> str:
    """How many images validation has, and where they are from, as far as that is recorded."""
    examples = data["examples"]
    found = f"{examples['validation']:,}"
    held = data.get("held_out")
    if held is None:
        return found
    every = examples["train"] + examples["validation"]
    return f"{found}, {f'held out of {every:,} of training' if held else 'a split of their own'}"


def terms(results: Results, method: str) -> Table:
    """The licences of all that went into the student, as far as they are known."""
    models, name = results["models"], results["data"]["name"]
    known = [("Images of training", name, licences.of_data(name))]
    if row_of(results, method)["teacher"]:
        used = models["init"] or tables.NOTHING
        known += [
            ("Weights that the teacher starts from", used, licences.of_weights(models["init"]))
        ]
    rows = [(what, which, one.terms, one.page or tables.NOTHING) for what, which, one in known]
    rows += [("This student", method, "not stated", tables.NOTHING)]
    note = (
        "Nobody has given the student a licence yet. Who publishes it chooses one that the others "
        "allow, writes it into a file LICENSE beside this card, and names it in the card's head."
    )
    heads = ("Work", "Name", "Licence", "Page")
    return Table("Licences", heads, tuple(rows), numeric=False, note=note)
