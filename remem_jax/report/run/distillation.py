"""States what distillation gained over the same student without a teacher.

As in `comparisons`, all is plain text, not escaped yet.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.methods import ALONE, SCRATCH
from remem_jax.report import tables
from remem_jax.report.run import comparisons
from remem_jax.report.tables import Results

LEVEL = 0.05  # A gain counts if its p-value is below this.
_BASELINES = {
    ALONE: "the same student without a teacher, from the same pretrained weights",
    SCRATCH: "the student trained from scratch, without a teacher",
}
_UNKNOWN = (
    "What it gained over the pretrained student alone was not measured: add alone to "
    "config.methods."
)


def gain(results: Results) -> str | None:
    """Describes what the best distilled student gained on test over those without a teacher.

    The best one is selected on validation, or without such images on test. A difference that the
    test images cannot tell from none (p of at least `LEVEL`) is not called a gain.

    Args:
        results: Contents of a run's results.json.

    Returns:
        Sentences; None if no student has a teacher, or none lacks one.
    """
    metric = results["data"]["metric"]
    rows = {row["method"]: row for row in results["methods"]}
    distilled = [row for row in rows.values() if row["teacher"] is not None]
    baselines = [name for name in _BASELINES if name in rows]
    if not distilled:
        return None
    best = tables.best_on_validation(distilled, metric)
    clauses = [_clause(results, best, rows[name]) for name in baselines]
    sentences = []
    if clauses:
        title = tables.method_title(best["method"])
        choice = f", the best on {tables.selection(results)}" if len(distilled) > 1 else ""
        sentences.append(f"On test, distillation ({title}{choice}) {'; it '.join(clauses)}.")
    if results["models"].get("student_init") and ALONE not in rows:
        sentences.append(_UNKNOWN)
    return " ".join(sentences) or None


def _clause(results: Results, distilled: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Returns the part of the sentence about one baseline, without its subject."""
    metric, name = results["data"]["metric"], _BASELINES[baseline["method"]]
    high, low = (row["student"]["test"][metric] for row in (distilled, baseline))
    difference = comparisons.between(results, distilled["method"], baseline["method"])
    facts = [f"{tables.percent(high)} against {tables.percent(low)} %"]
    if difference:
        facts.append(comparisons.in_words(difference))
    facts += _over_seeds(distilled, baseline, metric)
    points, details = f"{abs(100 * (high - low)):.2f} points", "; ".join(facts)
    if high <= low:
        far = "equally accurate" if points == "0.00 points" else f"{points} below"
        return f"gained nothing over {name}: {far} ({details})"
    if difference and not difference.p_value < LEVEL:
        return (
            f"gained nothing that the test images can show over {name}: {points} above ({details})"
        )
    return f"gained {points} over {name} ({details})"


def _over_seeds(
    distilled: Mapping[str, Any], baseline: Mapping[str, Any], metric: str
) -> list[str]:
    """Describes the standard error of the difference over the seeds that both students have."""
    high, low = (_by_seed(row.get("seeds", ()), metric) for row in (distilled, baseline))
    differences = [high[seed] - low[seed] for seed in high if seed in low]
    if len(differences) < 2:
        return []
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return [f"over {len(differences)} seeds {comparisons.points(error)}"]


def _by_seed(students: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    return {student["seed"]: student["test"][metric] for student in students}
