"""Tables of a student's model card. All is plain text, not escaped yet."""

import statistics
from collections.abc import Mapping
from typing import Any

from remem_jax import tallies
from remem_jax.data import registry
from remem_jax.data.tfds import named
from remem_jax.methods import METHODS
from remem_jax.report import initial_students, tables
from remem_jax.report.card import licences
from remem_jax.report.run import comparisons, data_summary
from remem_jax.report.tables import Results, Table
from remem_jax.storage import identity

# Our metrics: their names on the Hub, and their titles.
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
    """Builds all tables of a card, in order.

    Args:
        results: Contents of a run's results.json.
        method: Name of a method of the run.
    """
    mistaken = confused(results, method)
    return [
        metrics(results, method),
        *([mistaken] if mistaken else []),
        training(results, method),
        images(results, method),
        terms(results, method),
    ]


def row_of(results: Results, method: str) -> Mapping[str, Any]:
    """Returns the row of a method in the results."""
    (row,) = [row for row in results["methods"] if row["method"] == method]
    return row


def saved_student(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the student whose weights are saved: of several seeds, the best on validation."""
    seeds = row.get("seeds")
    return seeds[0] if seeds else row["student"]


def student_settings(results: Results) -> Mapping[str, Any]:
    """Returns the student settings of a run; empty for older runs."""
    return results["config"].get("student", {})


def metrics(results: Results, method: str) -> Table:
    """Builds the table of all metrics of the student and its teacher, on test and validation."""
    row = row_of(results, method)
    models = [
        ("Student", saved_student(row)),
        *([("Teacher", row["teacher"])] if row["teacher"] else []),
    ]
    splits = [split for split in SPLITS if row["student"][split]]
    columns = [(f"{role}, {split}", model[split]) for split in splits for role, model in models]
    rows = []
    for name, (_, title) in METRICS.items():
        form = tables.number if name == "loss" else tables.percent
        cells = tuple(form(values.get(name)) for _, values in columns)
        if set(cells) != {tables.NOTHING}:
            rows.append((title, *cells))
    heads = ("Metric", *(title for title, _ in columns))
    return Table("Evaluation", heads, tuple(rows), note=_notes(results, row))


def _notes(results: Results, row: Mapping[str, Any]) -> str:
    data, metric = results["data"], results["data"]["metric"]
    title, images = tables.METRIC_TITLES[metric], data["examples"]
    splits = [split for split in SPLITS if split in images]
    counted = " and ".join(f"{images[split]:,} {split}" for split in splits)
    notes = [
        f"On {counted} images. The main metric is {title}.",
        data_summary.coverage(results, *splits),
        _standard_error(results, row),
        comparisons.beside_teacher(results, row["method"]) or "",
        *_seeds(row, metric, tables.selection(results)),
        _tried(results, row["method"]),
        f"The calibration error uses {tallies.BINS} bins; the confidences are plain softmax "
        "outputs, without calibration.",
    ]
    return " ".join(note for note in notes if note)


def _standard_error(results: Results, row: Mapping[str, Any]) -> str:
    error = comparisons.standard_error(results, row, seed=0 if row.get("seeds") else None)
    if error is None:
        return ""
    rough = ""
    if results["data"]["metric"] != registry.TOP1 and not row.get("test_correct"):
        rough = " (approximately, since a mean over classes does not weight images equally)"
    return f"Its standard error on test is {comparisons.points(error)} points{rough}."


def _seeds(row: Mapping[str, Any], metric: str, split: str) -> list[str]:
    seeds = row.get("seeds", ())
    shares = [student["test"][metric] for student in seeds]
    if len(shares) < 2 or None in shares:
        return [
            "The student was trained with one seed: the variation between seeds was not measured."
        ]
    return [
        f"Over {len(shares)} seeds of the student, the mean on test is "
        f"{tables.percent(statistics.fmean(shares))} with a sample standard deviation of "
        f"{100 * statistics.stdev(shares):.2f} points; the weights are those of seed "
        f"{seeds[0]['seed']}, the best on {split}."
    ]


def _tried(results: Results, method: str) -> str:
    """Describes how this student was selected."""
    if results["data"].get("refitted"):
        return (
            "Its settings were selected on validation; it was then trained anew with them on train "
            "and validation together, and tested once."
        )
    tried = [row for row in results["students"] if row["method"] == method]
    teachers = sum(row["method"] == method for row in results["teachers"])
    diverged = sum(row["diverged"] for row in tried)
    split = tables.selection(results)
    counts = (
        f"It was selected on {split} from {len(tried):,} students ({diverged:,} of them "
        f"diverged) and {teachers:,} teacher checkpoints, so its {split} metrics are biased upwards"
    )
    if split == "test":
        return f"{counts}."
    test = (
        "all students were evaluated on test too, which did not affect this selection"
        if data_summary.on_test(results)
        else "the test split was read once, for the selected models"
    )
    return f"{counts}; {test}."


def confused(results: Results, method: str) -> Table | None:
    """Builds the table of this student's most frequent errors on test; None if not recorded."""
    errors = saved_student(row_of(results, method))["test"].get("confused")
    if not errors:
        return None
    rows = [
        (pair["class"], pair["taken_for"], f"{pair['images']:,}", f"{pair['of']:,}")
        for pair in errors
    ]
    heads = ("Class", "Predicted as", "Images", "Images of the class")
    return Table("Most frequent errors on test", heads, tuple(rows), numeric=False)


# Student settings that the card lists, except those of `identity.ADDED` that are off.
_TRAINING = {
    "steps": "Steps",
    "batch_size": "Batch size",
    "warmup_steps": "Warm-up steps",
    "optimizer": "Optimiser",
    "momentum": "Momentum",
    "nesterov": "Nesterov momentum",
    "betas": "Betas",
    "epsilon": "Epsilon",
    "weight_decay": "Weight decay",
    "layer_decay": "Decay of the learning rate by layer",
    "body_rate": "Learning rate of the body, as a multiple of the head's",
    "dropout": "Dropout",
    "drop_path": "Stochastic depth",
    "label_smoothing": "Label smoothing",
    "ema": "Decay of the moving average, which these weights are",
    "ema_warmup": "Warm-up of this decay",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "class_balance": "Beta of the class-balanced loss",
    "hard_labels": "Labels in addition to the teacher",
    "flatten": "Divisor of the teacher's logits",
}
# Settings of the training images that the card lists.
_IMAGES = {
    "balanced_sampling": "Class-balanced sampling",
    "augment": "Augmentation policy",
    "color_jitter": "Colour jitter",
    "random_erasing": "Random erasing",
}
_SELECTED = {
    "loss": "Distillation",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "weight": "Weight of the distillation loss",
}
_TEACHER = {
    "rho": "Teacher's rho",
    "mlp_weight": "Teacher's alpha",
    "attention_weight": "Teacher's beta",
    "learning_rate": "Teacher's learning rate",
}


def training(results: Results, method: str) -> Table:
    """Builds the table of the method and settings of the student and its teacher."""
    row, models = row_of(results, method), results["models"]
    rows = [
        ("Method", tables.method_title(method)),
        *initial_students.rows(initial_students.of_method(results, method)),
        *initial_students.architecture_row(results),
        *initial_students.normalisation_row(results),
    ]
    if row["teacher"]:
        rows += [
            ("Teacher", f"{models['teacher']}, {models['teacher_parameters']:,} parameters"),
            *initial_students.teacher_rows(models),
            ("Fine-tuning of the teacher", models.get("tuning", "full")),
            ("Steps of the teacher", tables.number(row["selected"]["teacher_step"])),
            *_named(row["teacher_settings"], _TEACHER),
        ]
    rows += _named(row["selected"], _SELECTED)
    rows += [("Seed of the student", f"{saved_student(row).get('seed', row['selected']['seed'])}")]
    idle = _idle(results, method)
    given = identity.without_additions({"student": student_settings(results)})["student"]
    student = {name: value for name, value in given.items() if name not in idle}
    rows += _named(student, _TRAINING)
    rows += _named(results["config"].get("data", {}), _IMAGES)
    versions = results["versions"]
    rows += [("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    rows += [("Hash of all settings", results["config_fingerprint"])]
    return Table("Training", ("Setting", "Value"), tuple(rows), numeric=False)


def _idle(results: Results, method: str) -> set[str]:
    """Returns the student settings that have no effect in a method."""
    idle, record = set(), METHODS.get(method)
    if student_settings(results).get("optimizer") == "adamw":
        idle |= {"momentum", "nesterov"}
    if record and not record.has_teacher:
        idle |= {"hard_labels", "flatten"}
    if record and record.starts_random:
        idle |= {"layer_decay", "body_rate"}
    return idle


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the values that are present, as rows."""
    return [
        (title, _cell(values[name]))
        for name, title in names.items()
        if values.get(name) is not None
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return tables.cell(value)


def images(results: Results, method: str) -> Table:
    """Builds the table of the data and the classes."""
    data = results["data"]
    unlabelled = data.get("unlabelled") if row_of(results, method)["teacher"] else None
    examples = data["examples"]
    names = data["class_names"]
    none = "as prepared" if named.is_name(data["name"]) else "there is no official data set"
    standing = {True: "as in the official data set", False: "not as in the official data set"}
    rows = [
        ("Data set", f"{data['name']} ({data['title']})"),
        ("Training images", f"{examples['train']:,}"),
        *([("Unlabelled images", _unlabelled(unlabelled))] if unlabelled else []),
        ("Validation images", _validation(data)),
        ("Test images", f"{examples['test']:,}"),
        ("Image sizes", data_summary.sizes(data).removeprefix("of ")),
        ("Number of images", standing.get(data["official"], none)),
        ("Classes", f"{data['classes']:,}"),
        ("Class names", tables.names(names)),
        ("Hash of the data", data["fingerprint"]),
    ]
    return Table("Data and classes", ("Property", "Value"), tuple(rows), numeric=False)


def _unlabelled(recorded: Mapping[str, Any]) -> str:
    """Describes the images without labels that the student learned from."""
    return (
        f"{recorded['examples']:,} unlabelled images, {100 * recorded['share']:.0f} % of each "
        "batch, learned through the teacher alone"
    )


_VALIDATION = {  # Why there are no validation images, by whether the model was refitted.
    False: "none; the test images selected the model",
    True: "none; those that selected the settings are among the training images",
}


def _validation(data: Mapping[str, Any]) -> str:
    """Describes the size and origin of the validation split, as far as recorded."""
    examples = data["examples"]
    if "validation" not in examples:
        return _VALIDATION[bool(data.get("refitted"))]
    images = f"{examples['validation']:,}"
    held = data.get("held_out")
    if held is None:
        return images
    total = examples["train"] + examples["validation"]
    return f"{images}, {f'held out of {total:,} training images' if held else 'a separate split'}"


def terms(results: Results, method: str) -> Table:
    """Builds the table of the licences of the data and weights, as far as known."""
    models, data_name = results["models"], results["data"]["name"]
    entries = [("Training images", data_name, licences.of_data(data_name))]
    if row_of(results, method)["teacher"]:
        if results["data"].get("unlabelled"):
            entries += [("Unlabelled images", "the user's own", licences.of_data("folder"))]
        used = models["init"] or tables.NOTHING
        entries += [("Initial weights of the teacher", used, licences.of_teacher(models))]
    initial = initial_students.of_method(results, method)
    if initial:
        licence = licences.of_recorded(initial)
        entries += [("Initial weights of the student", initial_students.name(initial), licence)]
    rows = [
        (item, source, licence.terms, licence.page or tables.NOTHING)
        for item, source, licence in entries
    ]
    rows += [("This student", method, "not stated", tables.NOTHING)]
    note = (
        "The student has no licence yet. To publish it, choose one that the licences above allow, "
        "put it into a file LICENSE beside this card, and name it in the card's metadata."
    )
    heads = ("Item", "Name", "Licence", "Page")
    return Table("Licences", heads, tuple(rows), numeric=False, note=note)
