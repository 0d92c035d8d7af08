"""Sentences of a report on images, splits and classes, and the table of hyperparameters."""

from typing import Any

import pytest

from remem_jax.report import tables
from remem_jax.report.card import model_card
from remem_jax.report.run import page, search


def test_summary_counts_images_and_pixels(results: dict[str, Any]) -> None:
    text = page.summary(results)

    images = "1,150 training, 287 validation and 400 test"
    assert (
        f"{images} images of 8 x 9 pixels in 2 classes, resized to 32 x 32 for the models." in text
    )
    assert "resnet18 with 11,227,812 parameters" in text
    assert "top-1 accuracy" in text
    assert "Of 1,437 training images, 287 were held out to select models." in text


def test_a_validation_split_of_the_data_was_not_held_out(results: dict[str, Any]) -> None:
    results["data"]["held_out"] = False

    assert "held out" not in page.summary(results)
    assert "287, a separate split" in model_card.markdown(results, "remem")


@pytest.mark.parametrize(
    ("sizes", "stored", "words"),
    [
        (
            {"height": [120, 480, 3024], "width": [160, 640, 4032], "different": 97},
            [256, 256],
            "images of 120 to 3,024 pixels in height (median 480) and 160 to 4,032 in width "
            "(median 640) in 2 classes, stored as 256 x 256 and resized to 32 x 32 for the models.",
        ),
        (
            {"height": [480] * 3, "width": [640] * 3, "different": 1},
            [256, 256],
            "images of 480 x 640 pixels in 2 classes, stored as 256 x 256 and resized",
        ),
        (
            {"height": [9, 9, 9], "width": [5, 6, 7], "different": 3},
            None,
            "images of 9 pixels in height (median 9) and 5 to 7 in width (median 6) in 2 classes, "
            "resized",
        ),
        (None, [8, 9], "images of unrecorded sizes in 2 classes, stored as 8 x 9 and"),
    ],
)
def test_the_sizes_are_those_of_the_original_images(
    results: dict[str, Any], sizes: Any, stored: Any, words: str
) -> None:
    results["data"] |= {"sizes": sizes, "source_size": stored}

    assert words in page.summary(results)


def test_a_card_has_the_sizes_of_the_images(results: dict[str, Any]) -> None:
    sizes = {"height": [120, 480, 3024], "width": [160, 640, 4032], "different": 97}
    results["data"]["sizes"] = sizes

    assert "| Image sizes | 120 to 3,024 pixels in height" in model_card.markdown(results, "remem")


def test_reports_state_how_often_test_was_read(
    results: dict[str, Any],
) -> None:
    once = [page.summary(results), model_card.markdown(results, "remem")]
    results["config"]["choose_on_test"] = True
    often = [page.summary(results), model_card.markdown(results, "remem")]

    assert all("the test split was read once" in text for text in once)
    assert not any("read once" in text for text in often)
    assert all("evaluated on test" in text for text in often)


def test_a_run_that_selected_on_test_is_recognised_by_its_rows(results: dict[str, Any]) -> None:
    row = results["methods"][2]
    row["on_test"] = {
        "selected": row["selected"],
        "student": row["student"],
        "seeds": [],
        "teacher": row["teacher"],
    }

    assert "read once" not in page.summary(results)


def test_a_mean_per_class_names_the_classes_it_covers(results: dict[str, Any]) -> None:
    results["data"]["metric"] = "mean_per_class"
    of_all_classes = page.summary(results)
    results["data"] |= {"classes": 15}
    results["data"]["classes_without_images"]["test"] = ["dog"]

    text = page.summary(results)

    words = "The mean per class on test is over 14 of 15 classes: dog has no image there."
    assert words in text
    assert words in model_card.markdown(results, "remem")
    assert "mean per class on test is over" not in of_all_classes


def test_the_table_of_further_metrics_names_the_classes_it_covers(results: dict[str, Any]) -> None:
    results["data"]["classes_without_images"]["test"] = ["zero"]

    content = page._content(results, [], [])

    (note,) = [t.note for t in content["models"] if "selected models" in t.title]
    assert "1 of 2 classes: zero has" in note


def test_the_table_of_hyperparameters_has_the_grid_of_the_run(results: dict[str, Any]) -> None:
    results["students"][0] |= {"loss": "dist", "learning_rate": 0.7, "temperature": 1.0}

    table = search.grids(results)

    assert table.rows == (
        ("From scratch", tables.NOTHING, tables.NOTHING, "0.1", "–", "–", "0", "2"),  # noqa: RUF001
        ("Fine-tuning", "100", "kd", "0.1", "4", "0.9", "0", "2"),
        ("ReMem", "200", "dist", "0.7", "1", "0.9", "0", "1"),
        ("ReMem", "200", "kd", "0.1", "4", "0.9", "0", "1"),
    )


def test_a_single_seed_is_stated(results: dict[str, Any]) -> None:
    sentence = "One value of the teacher's rho, alpha and learning rate is tried per run; the paper"

    remarks = page._content(results, [], [])["differs"]

    assert sum(remark.startswith(sentence) for remark in remarks) == 1


def test_a_sentence_recorded_by_an_older_run_is_not_repeated(older: dict[str, Any]) -> None:
    (sentence,) = [s for s in page._content(older, [], [])["differs"] if "One value" in s]
    older["config"]["differs"] = [sentence]

    remarks = page._content(older, [], [])["differs"]

    assert remarks.count(sentence) == 1
