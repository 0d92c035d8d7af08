"""Sentences on the claims of a study, and comparisons over its seeds."""

from typing import Any

import pytest

from remem_jax.report.study import claims, differences
from remem_jax.statistics import power, seeds

ROWS = ("scratch", "finetune", "remem")


def _replicate(seed: int, student: float) -> dict[str, Any]:
    return {"seed": seed, "student": student, "teacher": None}


def _cell(row: str, column: str, shares: tuple[float, ...]) -> dict[str, Any]:
    replicates = [_replicate(seed, share) for seed, share in enumerate(shares)]
    return {"row": row, "column": column, "choice": "validation", "replicates": replicates}


@pytest.fixture
def study() -> dict[str, Any]:
    """A study of two columns and three seeds, with the claim that ReMem helps."""
    return {
        "rows": [{"name": name, "title": name.title(), "group": ""} for name in ROWS],
        "columns": [
            {"name": name, "title": name.upper(), "data": {"metric": "top1"}} for name in "ab"
        ],
        "seeds": [0, 1, 2],
        "margin": 0.5,
        "baseline": "",
        "claims": [
            {"name": "helps", "title": "ReMem helps", "row": "remem", "baseline": "finetune"}
        ],
        "cells": [
            _cell("finetune", "a", (0.80, 0.81, 0.79)),
            _cell("remem", "a", (0.83, 0.84, 0.83)),
            _cell("finetune", "b", (0.80, 0.81, 0.79)),
            _cell("remem", "b", (0.81, 0.79, 0.80)),
        ],
    }


def _answers(study: dict[str, Any]) -> list[str]:
    return [sentence.answer for sentence in claims.sentences(study)]


def test_each_column_has_an_answer_and_then_all_together(study: dict[str, Any]) -> None:
    needed = power.seeds_needed(0.0, 1.0)
    first, second, pooled = _answers(study)

    assert needed is None  # The mean difference in the second column is 0.
    assert first == "ReMem helps, A: it holds here."
    assert second == "ReMem helps, B: 3 seeds cannot tell; more than 1,000 would be needed."
    assert pooled.startswith("ReMem helps, all columns (A, B): ")


def test_all_columns_are_tested_by_the_mean_of_each_seed(study: dict[str, Any]) -> None:
    *_, pooled = differences.verdicts(study)

    # By seed: 3 and 1, 3 and -2, 4 and 1 points.
    expected = seeds.mean([0.02, 0.005, 0.025])
    assert differences.mean_of(pooled) == pytest.approx(expected)
    assert pooled["columns"] == ["a", "b"]
    assert "mean over the columns for each seed" in claims.note(study)


@pytest.mark.parametrize("change", ["one column", "two metrics"])
def test_columns_that_cannot_be_averaged_are_not(study: dict[str, Any], change: str) -> None:
    if change == "one column":
        study["columns"] = study["columns"][:1]
    else:
        study["columns"][1]["data"] = {"metric": "mean_per_class"}

    assert differences.POOLED not in {v["column"] for v in differences.verdicts(study)}
    assert "All columns" not in claims.note(study)


def test_an_undecided_claim_names_how_many_seeds_could(study: dict[str, Any]) -> None:
    study["cells"][3] = _cell("remem", "b", (0.82, 0.80, 0.81))
    _, second, _ = _answers(study)

    gap = seeds.difference([0.82, 0.80, 0.81], [0.80, 0.81, 0.79])
    assert gap.deviation is not None
    needed = power.seeds_needed(gap.mean, gap.deviation)
    assert second == f"ReMem helps, B: 3 seeds cannot tell; about {needed} could."


def test_the_opposite_and_no_difference_are_answers(study: dict[str, Any]) -> None:
    study["cells"][1] = _cell("remem", "a", (0.77, 0.78, 0.77))
    study["cells"][3] = _cell("remem", "b", (0.8001, 0.8099, 0.7900))
    first, second, _ = _answers(study)

    assert first == "ReMem helps, A: it does not hold here: the opposite does."
    assert second == ("ReMem helps, B: it does not hold here: there is no difference that matters.")


def test_one_seed_cannot_tell(study: dict[str, Any]) -> None:
    study["cells"] = [_cell("finetune", "a", (0.8,)), _cell("remem", "a", (0.83,))]
    (first,) = claims.sentences(study)

    assert first.answer == "ReMem helps, A: one seed cannot tell."
    assert first.details == "Remem minus Finetune, in points: +3.00 (n = 1 of 3, no interval)."
    study["cells"].pop()
    (unmeasured,) = claims.sentences(study)
    assert unmeasured.answer == "ReMem helps: not measured yet."


def test_the_numbers_behind_an_answer_are_those_of_the_paired_t_test(
    study: dict[str, Any],
) -> None:
    gap = seeds.difference([0.83, 0.84, 0.83], [0.80, 0.81, 0.79])
    assert gap.low is not None
    assert gap.high is not None

    (first, *_) = claims.sentences(study)

    limits = f"[{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"
    assert f"+{100 * gap.mean:.2f} {limits} (n = 3, sd 0.58, p = " in first.details


def test_a_study_without_claims_has_no_sentences(study: dict[str, Any]) -> None:
    del study["claims"], study["margin"], study["baseline"]  # Like one of an older version.

    assert claims.sentences(study) == []


def test_a_named_baseline_is_compared_with_every_row_of_its_group(study: dict[str, Any]) -> None:
    def pairs() -> list[tuple[str, str]]:
        return [(row["name"], below["name"]) for below, row in differences.comparisons(study)]

    assert pairs() == [("remem", "finetune")]
    study["baseline"] = "scratch"
    assert pairs() == [("finetune", "scratch"), ("remem", "scratch")]
    study["baseline"] = "remem"
    assert pairs() == [("scratch", "remem"), ("finetune", "remem")]
    for row in study["rows"][1:]:
        row["group"] = "Group"
    study["baseline"] = "scratch"  # Alone in its group; the other has its own baseline.
    assert pairs() == [("remem", "finetune")]


def test_differences_are_listed_for_each_choice_and_column(study: dict[str, Any]) -> None:
    study["cells"].append({**study["cells"][0], "choice": "test"})
    study["cells"].append({**study["cells"][1], "choice": "test"})

    rows = differences.over_seeds(study)

    places = [(row["choice"], row["baseline"], row["row"], row["column"]) for row in rows]
    assert places == [
        ("validation", "finetune", "remem", "a"),
        ("validation", "finetune", "remem", "b"),
        ("test", "finetune", "remem", "a"),
    ]
    assert rows[0]["seeds"] == [0, 1, 2]
    expected = seeds.difference([0.83, 0.84, 0.83], [0.80, 0.81, 0.79])
    assert differences.mean_of(rows[0]) == pytest.approx(expected)
