"""CITATION.cff is of this version, and has what the format wants."""

import pathlib

import yaml

import remem_jax

ROOT = pathlib.Path(__file__).parents[2]


def test_the_citation_is_of_this_version_and_licence() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    # These four are required by version 1.2.0 of the format.
    assert all(found[name] for name in ("authors", "cff-version", "message", "title"))
    assert found["version"] == remem_jax.__version__
    assert found["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_paper_is_cited() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]

    assert paper["url"] in (ROOT / "README.md").read_text()
    assert all(author["family-names"] for author in paper["authors"])
