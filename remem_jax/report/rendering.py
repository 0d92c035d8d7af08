"""Renders the templates of reports, with every value escaped: names are untrusted input."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from remem_jax.report import tables

# Markdown ignores an underscore inside a word.
_MARKDOWN_MARKS = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def html(template: str, content: Mapping[str, Any]) -> str:
    """Renders an HTML page in which every value is plain text."""
    return _render(template, content, autoescape=True, finalize=_clean)


def markdown(template: str, content: Mapping[str, Any]) -> str:
    """Renders a Markdown file in which every value is plain text on one line."""
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
    """Returns a value as one line of text, with a mark in place of unprintable characters."""
    if hasattr(value, "__html__"):  # Marked as safe by the template.
        return value
    return tables.printable(str(value))


def _markdown(value: Any) -> Any:
    """Returns a value as one line of text with Markdown and HTML escaped."""
    if hasattr(value, "__html__"):
        return value
    text = re.sub("[&<>]", lambda match: _ENTITIES[match.group()], tables.printable(str(value)))
    return _MARKDOWN_MARKS.sub(r"\\\g<0>", text)
