"""Every message to the user is explained in docs/troubleshooting.md, under its own words."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
WORDS = 7  # Of the longest run of words that a message always has: enough to find it by.
MADE = (
    "SettingError",
    "TooFewImagesError",
    "HeldError",
    "_wrong",
)  # Calls whose last argument of text is a message.


def messages(source: str) -> Iterator[str]:
    """The messages that a module raises, with a NUL for what they say of the case at hand."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        if name == "require" and len(node.args) == 2:
            yield from _texts(node.args[1])
        elif name in MADE and node.args:
            yield from _texts(node.args[-1])


def _texts(node: ast.expr) -> list[str]:
    """What an expression may come to; of an `if`, both."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(_texts(part)[0] for part in node.values)]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return ["\0"]


def key(message: str) -> str:
    """The first words of the longest part of a message that is always the same; "" of none."""
    longest = max(message.split("\0"), key=len).split()
    return " ".join(longest[:WORDS]).strip(" .,;:'\"()") if len(longest) > 1 else ""


def test_the_words_of_a_message_are_found() -> None:
    source = 'require(x, f"{a} lists no images; mend {b}")\nraise SettingError("a" if b else "c d")'

    found = [key(message) for message in messages(source)]

    assert found == ["lists no images; mend", "", "c d"]


MODULES = sorted((ROOT / "remem_jax").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_message_is_explained(path: pathlib.Path) -> None:
    page = PAGE.read_text()

    missing = [key(m) for m in messages(path.read_text()) if key(m) not in page]

    assert not missing, f"docs/troubleshooting.md needs an entry with these words: {missing}"


def test_there_are_messages() -> None:
    assert sum(len([*messages(path.read_text())]) for path in MODULES) > 150
