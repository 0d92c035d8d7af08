"""Templates filled in, with every value escaped: names come from strangers."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from remem_jax.report.figures import drawing

# An underscore inside a word means nothing in Markdown.
_MARKDOWN_MARKS = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def html(template: str, content: Mapping[str, Any]) -> str:
    """A page, in which values are text and nothing but text."""
    return _render(template, content, autoescape=True, finalize=_clean)


def markdown(template: str, content: Mapping[str, Any]) -> str:
    """A Markdown file, in which values are text on one line."""
    return _render(template, content, autoescape=False, finalize=_markdown)


def _render(
    name: str, content: Mapping[str, Any], *, autoescape: bool, finalize: Callable[[Any], Any]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("remem_jax.report", "."),
        autoescape=autoescape,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(content)


def _clean(value: Any) -> Any:
    """A value as text on one line, with a mark for what cannot be printed or encoded."""
    if hasattr(value, "__html__"):  # The template called it safe.
        return value
    return drawing.printable(str(value))


def _markdown(value: Any) -> Any:
    """The same, with nothing in it that Markdown or HTML would take for a mark."""
    if hasattr(value, "__html__"):
        return value
    text = re.sub("[&<>]", lambda found: _ENTITIES[found.group()], drawing.printable(str(value)))
    return _MARKDOWN_MARKS.sub(r"\\\g<0>", text)
