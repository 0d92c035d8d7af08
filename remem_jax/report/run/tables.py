"""Tables of a run's report. All is plain text, not escaped yet."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import initial_students, paper, tables
from remem_jax.report.card import licences
from remem_jax.report.tables import Results, Table


def comparison(results: Results) -> Table:
    """Builds the main table: accuracies and selected hyperparameters of each method."""
    metric = results["data"]["metric"]
    published = paper.records(results)
    beside = ("Paper: student", "Paper: teacher") if published else ()
    splits = tuple(dict.fromkeys(("test", tables.selection(results))))
    measured = tuple(f"{model}, {split}" for split in splits for model in ("Student", "Teacher"))
    chosen = ("Teacher's step", *_student_heads(results), "rho", "alpha", "beta")
    rows = []
    for row in results["methods"]:
        cells = [tables.method_title(row["method"])]
        for split in splits:
            cells += [
                _measured(row["student"], split, metric) + tables.deviation(row, split, metric)
            ]
            cells += [_measured(row["teacher"], split, metric)]
        if published:
            cells += _published(published.get(row["method"]))
        rows.append((*cells, *_chosen(row, _student_names(results))))
    title = "Results" if "validation" in splits else "Results, selected on test (optimistic)"
    return Table(title, ("Method", *measured, *beside, *chosen), tuple(rows))


def _measured(model: Mapping[str, Any] | None, split: str, metric: str) -> str:
    return tables.NOTHING if model is None else tables.percent(model[split][metric])


def on_test(results: Results) -> Table | None:
    """Builds the table of models selected on test; None if not all were evaluated on it."""
    rows = [row for row in results["methods"] if row.get("on_test")]
    if not rows:
        return None
    metric = results["data"]["metric"]
    cells = []
    for row in rows:
        selection = row["on_test"]
        student = _measured(selection["student"], "test", metric)
        cells.append(
            (
                tables.method_title(row["method"]),
                student + tables.deviation(selection, "test", metric),
                _measured(selection["teacher"], "test", metric),
                *_chosen({**row, **selection}, _student_names(results)),
            )
        )
    chosen = ("Teacher's step", *_student_heads(results), "rho", "alpha", "beta")
    note = (
        "These settings were selected on the test split itself, so the accuracies are biased "
        "upwards. The paper does not say on which split it selects; it may have selected on test."
    )
    heads = ("Method", "Student, test", "Teacher, test", *chosen)
    return Table("Selected on test (optimistic)", heads, tuple(cells), note=note)


def _published(record: paper.Record | None) -> list[str]:
    if record is None:
        return [tables.NOTHING, tables.NOTHING]
    return [f"{record.student:.1f}", f"{record.teacher:.1f}"]


def _chosen(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    selected, teacher = row["selected"], row["teacher_settings"] or {}
    values = [selected[name] for name in ("teacher_step", *names)]
    values += [teacher.get(name) for name in ("rho", "mlp_weight", "attention_weight")]
    return [tables.cell(value) for value in values]


# Hyperparameters that identify a student; some are shown only if there are several values.
_STUDENTS = {
    "loss": "Distillation",
    "steps": "Steps",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "weight": "Weight",
    "seed": "Seed",
}


def _student_names(results: Results) -> list[str]:
    tried = {"loss": set(), "steps": set(), "seed": set()}
    for row in results["students"]:
        for name, values in tried.items():
            # Students without a teacher have no distillation loss, those of older runs no steps.
            if row.get(name) is not None:
                values.add(row[name])
    return [name for name in _STUDENTS if name not in tried or len(tried[name]) > 1]


def _student_heads(results: Results) -> list[str]:
    return [_STUDENTS[name] for name in _student_names(results)]


def details(results: Results) -> Table:
    """Builds the table of further metrics; a dash for those that an older run did not measure."""
    shares = ("top1", "top5", "mean_per_class", "calibration_error", "agreement")
    rows = []
    for row in results["methods"]:
        for role in ("student", "teacher"):
            if row[role] is not None:
                metrics = row[role]["test"]
                cells = [tables.percent(metrics.get(name)) for name in shares]
                name = f"{tables.method_title(row['method'])}, {role}"
                rows.append((name, *cells, tables.number(metrics.get("loss"))))
    heads = ("Model", "Top-1", "Top-5", "Mean per class", "Calibration error", "Agreement", "Loss")
    note = (
        "The calibration error is the expected calibration error (ECE) with 15 bins. Agreement is "
        "the share of images for which a student and its teacher predict the same class. All "
        "values are in percent, except for the loss, which is in nats."
    )
    return Table("Further metrics of the selected models, on test", heads, tuple(rows), note=note)


def confused(results: Results) -> Table | None:
    """Builds the table of frequent errors of ReMem's student, or else of the last method's."""
    of_remem = [row for row in results["methods"] if row["method"] == "remem"]
    row = (of_remem or results["methods"])[-1]
    pairs = row["student"]["test"].get("confused")
    if not pairs:
        return None
    title = f"Most frequent errors on test: {tables.method_title(row['method'])}, student"
    rows = [
        (pair["class"], pair["taken_for"], f"{pair['images']:,}", f"{pair['of']:,}")
        for pair in pairs
    ]
    heads = ("Class", "Predicted as", "Images", "Images of the class")
    return Table(title, heads, tuple(rows), numeric=False)


def teachers(results: Results) -> Table | None:
    """Builds the table of all teacher checkpoints, on the split that selects; None without any."""
    if not results["teachers"]:
        return None
    columns, names = _metric_columns(results)
    split = tables.selection(results)
    rows = [
        (
            tables.method_title(row["method"]),
            tables.number(row["step"]),
            *_metrics(row[split], names),
        )
        for row in results["teachers"]
    ]
    return Table(f"All teachers, on {split}", ("Method", "Step", *columns), tuple(rows))


def students(results: Results) -> Table:
    """Builds the table of all students on the split that selects, by method, the best first."""
    columns, names = _metric_columns(results)
    order = [row["method"] for row in results["methods"]]
    metric, split = results["data"]["metric"], tables.selection(results)

    def rank(row: Mapping[str, Any]) -> tuple[int, str, bool, float]:
        method, share = row["method"], row[split][metric]
        position = order.index(method) if method in order else len(order)
        if share is None or not math.isfinite(share):
            return position, method, True, 0.0
        return position, method, False, -float(share)

    student_names = _student_names(results)
    rows = [
        _student(row, student_names, row[split], names)
        for row in sorted(results["students"], key=rank)
    ]
    heads = ("Method", "Teacher's step", "Student", *_student_heads(results))
    return Table(f"All students, on {split}", (*heads, *columns, "Diverged"), tuple(rows))


def _student(
    row: Mapping[str, Any],
    shown: Sequence[str],
    measured: Mapping[str, Any],
    metrics: Sequence[str],
) -> tuple[str, ...]:
    names = ("teacher_step", "student", *shown)
    return (
        tables.method_title(row["method"]),
        *(tables.cell(row[name]) for name in names),
        *_metrics(measured, metrics),
        "diverged" if row["diverged"] else "",
    )


def _metric_columns(results: Results) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns headers and names of the metrics, with the one that selects first."""
    deciding = results["data"]["metric"]
    others = [name for name in tables.METRIC_TITLES if name != deciding]
    titles = [tables.METRIC_TITLES[name].capitalize() for name in (deciding, *others)]
    return (*titles, "Loss"), (deciding, *others, "loss")


def _metrics(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [
        tables.number(values.get(name)) if name == "loss" else tables.percent(values.get(name))
        for name in names
    ]


def origins(results: Results) -> Table:
    """Builds the table of data, models, versions and device, with the hashes that identify them."""
    data, models, device = results["data"], results["models"], results["device"]
    rows = [
        ("Data set", f"{data['name']} ({data['title']})"),
        ("Class names", tables.names(data["class_names"])),
        ("Hash of the data", data["fingerprint"]),
        ("Hash of the settings", results["config_fingerprint"]),
        *_teacher_origins(models),
        ("Student", f"{models['student']}, {models['student_parameters']:,} parameters"),
        *initial_students.rows(models.get("student_init")),
        *initial_students.architecture_row(results),
        *initial_students.normalisation_row(results),
        ("Seed", str(results["seed"])),
        ("Device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        *_plans(results["methods"]),
        *_disk(results.get("disk")),
    ]
    rows += [(f"Version of {name}", version) for name, version in results["versions"].items()]
    return Table("Data, models, versions", ("What", "Value"), tuple(rows), numeric=False)


def _plans(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns the rows on the memory plan of each teacher."""
    return [
        (f"Memory of {method['method']}'s teacher", _plan(plan))
        for method in methods
        if (plan := method.get("plan"))  # Older runs had no plans.
    ]


def _disk(disk: Mapping[str, int] | None) -> list[tuple[str, str]]:
    """Returns the row on the size of the run's folder; none for older runs."""
    if disk is None:
        return []
    kept, removable = (f"{disk[name] / 1e6:,.1f} MB" for name in ("bytes", "removable"))
    return [("Size of the run's folder", f"{kept}; remem clean would free {removable}")]


def _plan(plan: Mapping[str, Any]) -> str:
    recomputed = {
        "nothing": "activations stored",
        "elementwise": "elementwise operations recomputed",
        "blocks": "blocks recomputed",
    }[plan["rematerialise"]]
    parts = f", batches in {plan['accumulate']} microbatches" if plan["accumulate"] > 1 else ""
    about = "" if plan["compiled"] else "about "
    return (
        f"{about}{plan['bytes'] / 2**30:.2f} GiB, {recomputed}{parts}: {plan['operations']:.2f} "
        "times the operations"
    )


def _teacher_origins(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    if models["teacher"] is None:
        return [("Teacher", "none: no method of the run has a teacher")]
    return [
        ("Teacher", f"{models['teacher']}, {models['teacher_parameters']:,} parameters"),
        ("Fine-tuning of the teacher", _tuning(models)),
        *initial_students.teacher_rows(models),
        ("Licence of these weights", licences.of_teacher(models).text),
    ]


def _tuning(models: Mapping[str, Any]) -> str:
    # Older runs did not record it.
    method = models.get("tuning", "full")
    trainable = models.get("teacher_trainable", models["teacher_parameters"])
    return f"{method}, {trainable:,} trainable parameters"


def times(results: Results) -> Table:
    """Builds the table of the time of each stage and of the run."""
    seconds = results["seconds"]
    rows = [(stage, tables.duration(value)) for stage, value in seconds.items()]
    rows.append(("Total", tables.duration(sum(seconds.values()))))
    return Table("Times", ("Stage", "Time"), tuple(rows))
