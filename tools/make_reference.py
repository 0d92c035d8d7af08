"""Writes docs/configuration.md: every setting with its default and its comment, and all presets.

    python -m tools.make_reference

Settings and comments come from configs/settings.py, the changes of each preset from its file, and
methods from remem_jax/methods.py. The comment of a setting is on its line or on the lines above. A
test checks that the page is up to date.
"""

import argparse
import ast
import io
import pathlib
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import analysis, own, quickstart, remem, settings, study
from remem_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
_LONG = 60  # Maximum characters of a value; longer ones are truncated.
_ORDER = (  # Groups of settings in the order of the page; "" are settings of no group.
    *("", "budget", "data", "teacher", "student", "information"),
    *("flatness", "images", "sensitivity", "expertness", "criticality"),
    *("grid", "search", "model", "train", "probe"),
)
_HEAD = """# Configuration

<!-- Made by tools/make_reference.py from configs/; change the configs, and run it again. -->

Every setting can be given on the command line: `--config.teacher.rho=0.05`. Strings need no quotes,
but tuples do: `--config.teacher.steps="(100, 500)"`, and with one value `"(500,)"`. True is
`--config.fsdp` or `--config.fsdp=True`. The data set and options of a config file follow after a
colon: `configs/remem.py:flowers102,variant=S/16`.

`configs/settings.py` has all settings, with the defaults below. The other files of `configs/` are
presets: they start from these defaults, and their [changes](#presets) are at the end of this page.
Values are checked before a run starts ([the messages](troubleshooting.md)).

The mark after a description shows where the default comes from: [text] is the paper, [source] a
work that the paper cites, [derived] a consequence of the paper's text, and [choice] our choice,
because our copy of the paper's text does not have the value. A setting with [free] does not make a
run differ from the paper's.
"""


def comments(path: pathlib.Path, function: str = "") -> dict[str, str]:
    """Returns the comment of each setting that a config file assigns, by name without `config.`.

    Args:
        path: The config file.
        function: Reads the assignments of this function only.
    """
    source = path.read_text(encoding="utf-8")
    by_line = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    texts: dict[str, str] = {}
    for node in ast.walk(_body(ast.parse(source), function)):
        if not isinstance(node, ast.Assign):
            continue
        same_line = [by_line[at][0] for at in _lines(node) if at in by_line]
        for target in node.targets:
            for name in _names(target):
                text = " ".join([*_above(by_line, node.lineno), *same_line])
                texts[name] = texts.get(name) or text
    return texts


def _body(module: ast.Module, function: str) -> ast.AST:
    """Returns a function of a module, or the whole module if none is named."""
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    return functions.get(function, module)


def _lines(node: ast.Assign) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _above(by_line: Mapping[int, tuple[str, bool]], line: int) -> list[str]:
    """Returns the comment lines that end just above a line."""
    above: list[str] = []
    while (before := by_line.get(line - 1)) and before[1]:
        above.insert(0, before[0])
        line -= 1
    return above


def _names(target: ast.expr) -> list[str]:
    """Returns the settings that an assignment sets."""
    if isinstance(target, ast.Tuple):
        return [name for element in target.elts for name in _names(element)]
    whole = ast.unparse(target)
    return [whole.removeprefix("config.")] if whole.startswith("config.") else []


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns the values of all settings, by name without `config.`."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        values |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _settings(names: Iterable[str], values: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Returns the table of these settings, in the order of configs/settings.py."""
    places = {name: i for i, name in enumerate(texts)}
    ordered = sorted(names, key=lambda name: places.get(name, len(places)))
    rows = ([f"`config.{name}`", _value(values[name]), texts.get(name, "")] for name in ordered)
    return table(("setting", "default", "description"), rows)


def _value(value: Any) -> str:
    if isinstance(value, ConfigDict):
        return f"{len(value)} of them" if len(value) else "none"
    text = '""' if value == "" else str(value)
    return f"`{text[:_LONG]}...`" if len(text) > _LONG else f"`{text}`"


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns settings by group; the group "" holds those without one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
    return dict(sorted(groups.items(), key=lambda item: _ORDER.index(item[0])))


def reference() -> str:
    """Returns the whole page."""
    sections = (_runs, _budgets, _methods, _analyses, _studies, _presets)
    return _HEAD + "".join(section() for section in sections)


def _section(
    title: str, intro: str, ungrouped: str, values: Mapping[str, Any], function: str = ""
) -> str:
    texts = comments(pathlib.Path(str(settings.__file__)), function)
    page = f"\n## {title}\n\n{intro}"
    for group, names in _groups(values).items():
        page += f"\n### {f'config.{group}' if group else ungrouped}\n\n"
        page += _settings(names, values, texts)
    return page


def _runs() -> str:
    intro = 'All workflows share the settings of `config.data` and those under "The run".\n'
    return _section("Runs", intro, "The run", leaves(settings.run()))


def _budgets() -> str:
    intro = (
        "`configs/own.py`, the config of `remem distil`, has the settings of a run and this one. "
        "[What is\nplanned](distil.md#what-is-planned).\n"
    )
    return _section("Runs with a time budget", intro, "", _beyond_runs(settings.distil()), "distil")


def _methods() -> str:
    rows = (
        [
            f"`{name}`",
            method.title,
            *(
                _effect(method.has_teacher, value)
                for value in (method.rho, method.alpha, method.beta)
            ),
        ]
        for name, method in METHODS.items()
    )
    page = "\n## Methods\n\nThe values of `config.methods`, defined in `remem_jax/methods.py`.\n\n"
    return page + table(("method", "title", "rho", "alpha", "beta"), rows)


def _effect(has_teacher: bool, value: float | None) -> str:
    if not has_teacher:
        return "no teacher"
    return "as set" if value is None else str(value)


def _beyond_runs(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that runs do not have."""
    shared = leaves(settings.run())
    return {name: value for name, value in leaves(config).items() if name not in shared}


def _analyses() -> str:
    intro = (
        "`configs/analysis.py` takes a data set and the options `init` and `analyses`, each with "
        "one or several\nvalues separated by `|`. `config.data`, `config.teacher` and "
        "`config.information` are as in a run.\n"
    )
    values = _beyond_runs(settings.analysis()) | {"models": ConfigDict()}
    return _section("Analyses", intro, "The analysis", values)


def _studies() -> str:
    intro = (
        "`config.base` has all settings of a run (`--config.base.data.path=...`). "
        "`configs/study.py` and\n`configs/rivals.py` take the same data set and options as "
        "`configs/remem.py`.\n\n"
        "`config.grid.GROUP.NAME` has the values of `config.base.GROUP.NAME` that are searched, as "
        'in\n`--config.grid.student.weight_decay="(1e-4, 1e-3)"`; so has `config.grid.NAME` for '
        "settings without a\ngroup. All are `()`, which is not searched, but for those listed "
        "below ([other axes](tables.md#other-axes)).\n"
    )
    config = settings.study(ConfigDict())
    values = leaves(config) | {name: config[name] for name in ("rows", "columns", "base")}
    return _section("Studies", intro, "The study", values, "study")


def _presets() -> str:
    presets = (
        (remem, settings.run()),
        (own, settings.distil()),
        (quickstart, settings.run()),
        (analysis, settings.analysis()),
        (study, settings.study(study.get_config().base)),
    )
    return "\n## Presets\n" + "".join(_preset(module, base) for module, base in presets)


def _preset(module: Any, base: ConfigDict) -> str:
    """Returns what a preset changes, with the comments of its file."""
    path = pathlib.Path(module.__file__)
    config, texts, defaults = module.get_config(), comments(path), leaves(base)
    if "base" in config:
        del config.base
    values = {
        name: value
        for name, value in leaves(config).items()
        if not name.startswith(("models.", "rows.", "columns."))
        and (name not in defaults or value != defaults[name])
    }
    places = {name: i for i, name in enumerate(texts)}
    rows = (
        [f"`config.{name}`", _value(defaults.get(name)), _value(value), texts.get(name, "")]
        for name, value in sorted(values.items(), key=lambda item: places.get(item[0], 999))
    )
    page = f"\n### configs/{path.name}\n\n{(module.__doc__ or '').partition(chr(10))[0]}\n"
    if not values:
        return f"{page}It changes no defaults; only its options do.\n"
    return f"{page}\n{table(('setting', 'default', 'here', 'reason'), rows)}"


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
