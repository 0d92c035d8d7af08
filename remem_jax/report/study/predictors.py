"""What a teacher's information and other measures predict about its students.

The paper's Eq. 1 states that a student's accuracy depends on its teacher's error and on the
information that the teacher keeps. Here, over all teachers that a study trained, each measure of a
teacher is correlated with the accuracy of its best student.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remem_jax.report import tables
from remem_jax.report.figures import drawing, scatter
from remem_jax.report.study import results_table
from remem_jax.statistics import correlation

NOTE = (
    "Spearman's rank correlation between a measure of a teacher and the accuracy of its best "
    "student, both on validation, over all teachers that were trained with all steps: every "
    "checkpoint of every trial. Teachers are ranked against those of the same seed, which have the "
    "same validation images, whose students were trained in the same way; groups of fewer than "
    "three do not count, and the correlations of the others are averaged. The 95 % interval is a "
    "percentile bootstrap that draws whole recipes (a teacher's settings, with all checkpoints and "
    "seeds), because their teachers depend on each other; with fewer than "
    f"{correlation.LEAST_CLUSTERS} recipes there is none. The paper expects more information to be "
    "good for students at equal accuracy of the teacher (Eq. 1). The partial correlation is that "
    "of what is left of both ranks after a linear regression on the ranks of the teacher's "
    "accuracy, in groups of at least four. No correlation over teachers that differ in other ways "
    "is evidence of a cause."
)


class Predictor(NamedTuple):
    """A measure of a teacher.

    Attributes:
        name: Its name in the record.
        title: Its title in tables and figures, with its unit.
        field: Field of a teacher that it is computed from.
        factor: What the field is multiplied by.
        offset: What is added to that.
        given: Name of a measure that the correlation holds fixed; "" for none. Figures do not show
            it.
    """

    name: str
    title: str
    field: str
    factor: float = 1.0
    offset: float = 0.0
    given: str = ""

    def of(self, teacher: Mapping[str, Any]) -> float | None:
        """Returns the measure of a teacher; None if it was not measured or is not finite."""
        value = teacher.get(self.field)
        return self.offset + self.factor * value if drawing.is_finite(value) else None


PREDICTORS = (
    Predictor("information", "Information, nats per sub-pixel", "excess", factor=-1.0),
    Predictor(
        "information_at_accuracy",
        "Information, at equal accuracy of the teacher (partial)",
        "excess",
        factor=-1.0,
        given="accuracy",
    ),
    Predictor("accuracy", "Teacher's accuracy, %", "error", factor=-100.0, offset=100.0),
    Predictor("calibration_error", "Teacher's calibration error", "calibration_error"),
    Predictor("temperature", "Calibrating temperature", "temperature"),
    Predictor("sharpness", "Sharpness, nats", "sharpness"),
)


def correlations(study: results_table.Study) -> list[dict[str, Any]]:
    """Returns the rank correlation of each measure with the students' accuracy, by column.

    Returns:
        For each column and each measure that has a correlation: "column", "predictor", and the
        fields of `correlation.Correlation`, whose blocks are seeds and ways to train students, and
        whose clusters are recipes of teachers.
    """
    rows = []
    for column, teachers in _by_column(study).items():
        for predictor in PREDICTORS:
            measures = [predictor, *(p for p in PREDICTORS if p.name == predictor.given)]
            found = [t for t in teachers if all(p.of(t) is not None for p in measures)]
            x, *given = [[measure.of(t) or 0.0 for t in found] for measure in measures]
            result = correlation.within_blocks(
                x,
                [t["student"] for t in found],
                [t["block"] for t in found],
                [t["recipe"] for t in found],
                given=given[0] if given else None,
            )
            if result.value is not None:
                names = {"column": column, "predictor": predictor.name}
                rows.append({**names, **result._asdict()})
    return rows


def table(study: results_table.Study) -> tables.Table | None:
    """Builds the table of correlations; None if nothing can be correlated."""
    columns = {column["name"]: column["title"] for column in study["columns"]}
    titles = {predictor.name: predictor.title for predictor in PREDICTORS}
    lines = tuple(
        (
            columns.get(row["column"], row["column"]),
            titles[row["predictor"]],
            f"{row['value']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}"
            if row["low"] is not None and row["high"] is not None
            else "none",
            *(str(row[name]) for name in ("points", "clusters", "blocks")),
        )
        for row in correlations(study)
    )
    if not lines:
        return None
    heads = (
        "Column",
        "Measure",
        "Rank correlation",
        "95 % interval",
        "Teachers",
        "Recipes",
        "Groups",
    )
    title = "What a teacher's measures predict about its best student"
    return tables.Table(title, heads, lines, note=NOTE, texts=(1,))


def figures(study: results_table.Study) -> list[drawing.Drawing]:
    """Draws the students' accuracy against each measure, one figure for each column."""
    drawn = []
    titles = {row["name"]: row["title"] for row in study["rows"]}
    columns = {column["name"]: column["title"] for column in study["columns"]}
    by_column = _by_column(study)
    for number, (column, teachers) in enumerate(by_column.items()):
        panels = [
            p for p in PREDICTORS if not p.given and any(p.of(t) is not None for t in teachers)
        ]
        points = [
            {
                "series": titles.get(teacher["row"], teacher["row"]),
                "seed": teacher["seed"],
                "step": teacher["step"],
                "student": teacher["student"],
                **{panel.name: panel.of(teacher) for panel in panels},
            }
            for teacher in teachers
        ]
        drawing_of_column = scatter.students(
            points,
            [(panel.name, panel.title) for panel in panels],
            title=f"Teachers and their best students: {columns.get(column, column)}",
            name="predictors" + (f"_{number}" if number else ""),
        )
        drawn += [] if drawing_of_column is None else [drawing_of_column]
    return drawn


def _by_column(study: results_table.Study) -> dict[str, Sequence[dict[str, Any]]]:
    """Returns the teachers of fully trained trials that have students, by column."""
    by_column: dict[str, list[dict[str, Any]]] = {}
    for trial in study["trials"]:
        if trial["fraction"] != 1:
            continue
        # Older studies have only the teachers whose information was measured.
        teachers = trial.get("checkpoints") or trial.get("teachers") or ()
        own = f"{trial['row']} {sorted(trial['settings'].items())}"
        recipes = trial.get("recipes") or {"teacher": own, "student": ""}
        names = {"block": (trial["seed"], recipes["student"]), "recipe": recipes["teacher"]}
        by_column.setdefault(trial["column"], []).extend(
            {**teacher, **names, "row": trial["row"], "seed": trial["seed"]}
            for teacher in teachers
            if drawing.is_finite(teacher.get("student"))
        )
    return {column: teachers for column, teachers in by_column.items() if teachers}
