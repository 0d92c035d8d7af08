"""The pages on students and teachers list the whole catalogues."""

from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import student_catalog, teacher_catalog
from tools import make_catalog_table, make_teacher_table


def test_the_table_is_that_of_the_catalogue() -> None:
    assert make_catalog_table.PAGE.read_text() == make_catalog_table.page(), (
        "The catalogue has changed: run .venv/bin/python -m tools.make_catalog_table."
    )
    assert make_catalog_table.table() in make_catalog_table.PAGE.read_text()


def test_the_only_other_normalisation_is_that_of_pixels_from_0_to_1() -> None:
    rows = make_catalog_table.table().splitlines()[2:]
    others = [
        weights.normalisation
        for weights, row in zip(student_catalog.PUBLISHED.values(), rows, strict=True)
        if "| 0, 1 |" in row
    ]
    assert set(others) == {Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


def test_the_table_of_teachers_is_that_of_their_catalogue() -> None:
    text = make_teacher_table.PAGE.read_text()

    assert text == make_teacher_table.page(), (
        "The catalogue has changed: run .venv/bin/python -m tools.make_teacher_table."
    )
    assert all(f"| `{name}`: " in text for name in teacher_catalog.PUBLISHED)
