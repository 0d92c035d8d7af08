"""The tables of a run's page, as plain text: nothing here is escaped yet."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import paper, tables
from remem_jax.report.tables import Results, Table


def comparison(results: Results) -> Table:
    """The main table: what each method reached, and with which settings."""
    metric = results["data"]["metric"]
    published = paper.records(results)
    beside = ("Paper: student", "Paper: teacher") if published else ()
    measured = ("Student, test", "Teacher, test", "Student, validation", "Teacher, validation")
    chosen = ("Teacher's step", *_student_heads(results), "rho", "alpha", "beta")
    rows = []
    for row in results["methods"]:
        cells = [tables.method_title(row["method"])]
        for split in ("test", "validation"):
            cells += [
                _measured(row["student"], split, metric) + tables.deviation(row, split, metric)
            ]
            cells += [_measured(row["teacher"], split, metric)]
        if published:
            cells += _published(published.get(row["method"]))
        rows.append((*cells, *_chosen(row, _student_names(results))))
    return Table("Results", ("Method", *measured, *beside, *chosen), tuple(rows))


def _measured(model: Mapping[str, Any] | None, split: str, metric: str) -> str:
    return tables.NOTHING if model is None else tables.percent(model[split][metric])


def on_test(results: Results) -> Table | None:
    """What the test split would have chosen; None where not all students were measured on it."""
    rows = [row for row in results["methods"] if row.get("on_test")]
    if not rows:
        return None
    metric = results["data"]["metric"]
    cells = []
    for row in rows:
        found = row["on_test"]
        student = _measured(found["student"], "test", metric)
        cells.append(
            (
                tables.method_title(row["method"]),
                student + tables.deviation(found, "test", metric),
                _measured(found["teacher"], "test", metric),
                *_chosen({**row, **found}, _student_names(results)),
            )
        )
    chosen = ("Teacher's step", *_student_heads(results), "rho", "alpha", "beta")
    note = (
        "Here the test split itself has chosen the settings, so the numbers are too high: they are "
        "not what other images would give. The paper does not say on which split it selects; this "
        "is how it may have."
    )
    heads = ("Method", "Student, test", "Teacher, test", *chosen)
    return Table("Chosen on test (optimistic)", heads, tuple(cells), note=note)


def _published(record: paper.Record | None) -> list[str]:
    if record is None:
        return [tables.NOTHING, tables.NOTHING]
    return [f"{record.student:.1f}", f"{record.teacher:.1f}"]


def _chosen(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    selected, teacher = row["selected"], row["teacher_settings"] or {}
    values = [selected[name] for name in ("teacher_step", *names)]
    values += [teacher.get(name) for name in ("rho", "mlp_weight", "attention_weight")]
    return [tables.cell(value) for value in values]


# What tells students apart; loss and seed are shown where there are several.
_STUDENTS = {
    "loss": "Distillation",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "weight": "Weight",
    "seed": "Seed",
}


def _student_names(results: Results) -> list[str]:
    tried = {"loss": set(), "seed": set()}
    for row in results["students"]:
        for name, values in tried.items():
            if row[name] is not None:  # From scratch there is no distillation.
                values.add(row[name])
    return [name for name in _STUDENTS if name not in tried or len(tried[name]) > 1]


def _student_heads(results: Results) -> list[str]:
    return [_STUDENTS[name] for name in _student_names(results)]


def details(results: Results) -> Table:
    """More metrics of what was selected; a dash for those that an older run did not measure."""
    shares = ("top1", "top5", "mean_per_class", "calibration_error", "agreement")
    rows = []
    for row in results["methods"]:
        for role in ("student", "teacher"):
            if row[role] is not None:
                found = row[role]["test"]
                cells = [tables.percent(found.get(name)) for name in shares]
                name = f"{tables.method_title(row['method'])}, {role}"
                rows.append((name, *cells, tables.number(found.get("loss"))))
    heads = ("Model", "Top-1", "Top-5", "Mean per class", "Calibration error", "Agreement", "Loss")
    note = (
        "The calibration error is the expected one over 15 bins of confidence. Agreement is the "
        "share of images that a student puts into the same class as its own teacher. All but the "
        "loss, which is in nats, is in tables.percent."
    )
    return Table("More about the selected models, on test", heads, tuple(rows), note=note)


def confused(results: Results) -> Table | None:
    """What ReMem's student, or else the last method's, confuses; None where nothing is known."""
    ours = [row for row in results["methods"] if row["method"] == "remem"]
    row = (ours or results["methods"])[-1]
    found = row["student"]["test"].get("confused")
    if not found:
        return None
    title = f"Errors made most often, on test: {tables.method_title(row['method'])}, student"
    rows = [
        (pair["class"], pair["taken_for"], f"{pair['images']:,}", f"{pair['of']:,}")
        for pair in found
    ]
    heads = ("Class", "Taken for", "Images", "Of the class")
    return Table(title, heads, tuple(rows), numeric=False)


def teachers(results: Results) -> Table:
    """Every teacher checkpoint on the validation split."""
    columns, names = _metric_columns(results)
    rows = [
        (
            tables.method_title(row["method"]),
            tables.number(row["step"]),
            *_metrics(row["validation"], names),
        )
        for row in results["teachers"]
    ]
    return Table("All teachers, on validation", ("Method", "Step", *columns), tuple(rows))


def students(results: Results) -> Table:
    """Every student on the validation split, best first within its method."""
    columns, names = _metric_columns(results)
    order = [row["method"] for row in results["methods"]]
    metric = results["data"]["metric"]

    def rank(row: Mapping[str, Any]) -> tuple[int, str, bool, float]:
        method, share = row["method"], row["validation"][metric]
        place = order.index(method) if method in order else len(order)
        if share is None or not math.isfinite(share):
            return place, method, True, 0.0
        return place, method, False, -float(share)

    own = _student_names(results)
    rows = [_student(row, own, names) for row in sorted(results["students"], key=rank)]
    heads = ("Method", "Teacher's step", "Student", *_student_heads(results))
    return Table("All students, on validation", (*heads, *columns, "Diverged"), tuple(rows))


def _student(row: Mapping[str, Any], own: Sequence[str], metrics: Sequence[str]) -> tuple[str, ...]:
    names = ("teacher_step", "student", *own)
    return (
        tables.method_title(row["method"]),
        *(tables.cell(row[name]) for name in names),
        *_metrics(row["validation"], metrics),
        "diverged" if row["diverged"] else "",
    )


def _metric_columns(results: Results) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Heads and names of the metrics, the one that decides first."""
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
    """What the run used: data, models, versions, device, and the hashes that identify them."""
    data, models, device = results["data"], results["models"], results["device"]
    rows = [
        ("Data set", f"{data['name']} ({data['title']})"),
        ("Class names", tables.names(data["class_names"])),
        ("Hash of the data", data["fingerprint"]),
        ("Hash of the settings", results["config_fingerprint"]),
        *_teacher_origins(models),
        ("Student", f"{models['student']}, {models['student_parameters']:,} parameters"),
        ("Seed", str(results["seed"])),
        ("Device", f"{device['count']} x {device['kind']} ({device['platform']})"),
        *_plans(results["methods"]),
    ]
    rows += [(f"Version of {name}", version) for name, version in results["versions"].items()]
    return Table("Data, models, versions", ("What", "Value"), tuple(rows), numeric=False)


def _plans(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What each teacher's steps computed again, to fit on the device."""
    return [
        (f"Memory of {method['method']}'s teacher", _plan(plan))
        for method in methods
        if (plan := method.get("plan"))  # Runs of before there were plans have none.
    ]


def _plan(plan: Mapping[str, Any]) -> str:
    again = {
        "nothing": "activations stored",
        "elementwise": "elementwise operations computed again",
        "blocks": "blocks computed again",
    }[plan["rematerialise"]]
    parts = f", batches in {plan['accumulate']} parts" if plan["accumulate"] > 1 else ""
    about = "" if plan["compiled"] else "about "
    return (
        f"{about}{plan['bytes'] / 2**30:.2f} GiB, {again}{parts}: {plan['operations']:.2f} times "
        "the operations"
    )


def _teacher_origins(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    if models["teacher"] is None:
        return [("Teacher", "none: no method of the run has one")]
    return [
        ("Teacher", f"{models['teacher']}, {models['teacher_parameters']:,} parameters"),
        ("Teacher tuned by", _tuning(models)),
        ("Teacher starts from", models["init"] or "random weights"),
        ("Hash of that file", models["init_digest"] or tables.NOTHING),
    ]


def _tuning(models: Mapping[str, Any]) -> str:
    # Runs of before there was a choice say nothing of it.
    method = models.get("tuning", "full")
    trainable = models.get("teacher_trainable", models["teacher_parameters"])
    return f"{method}, {trainable:,} parameters train"


def times(results: Results) -> Table:
    """How long each part of the run took, and all of them."""
    seconds = results["seconds"]
    rows = [(part, tables.duration(value)) for part, value in seconds.items()]
    rows.append(("Total", tables.duration(sum(seconds.values()))))
    return Table("Times", ("Part", "Time"), tuple(rows))
