"""Writes docs/configuration.md: every setting, its default, and the comment beside it.

    python -m tools.make_reference

All of it comes from configs/*.py: values from the configs, texts from the comments that stand
beside a setting or on the lines above it. A test holds the page to it.
"""

import argparse
import ast
import io
import pathlib
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import analysis, information, pretrain, quickstart, remem, study

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
_LONG = 60  # Characters of a value that a table has room for.
_HEAD = """# Configuration

<!-- Made by tools/make_reference.py from configs/*.py; change those, and run it again. -->

Every setting can be given on the command line: `--config.teacher.rho=0.05`. Texts are bare,
several values are a tuple in quotes: `--config.teacher.steps="(100, 500)"`, of one value
`"(500,)"`. True is `--config.fsdp` or `--config.fsdp=True`. After the file, behind a colon, come
its data set and options: `configs/remem.py:flowers102,variant=S/16`.

Behind a number, [text] means that it stands in the paper, [source] in the work that the paper
cites; [derived], that it follows from the text; [choice], that it is ours, because the paper's
value is lost. What values are allowed is checked before a run begins
([the messages](troubleshooting.md)).
"""


def comments(path: pathlib.Path) -> dict[str, str]:
    """The comment of each setting that a config file assigns, by its name without `config.`."""
    source = path.read_text(encoding="utf-8")
    by_line = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        beside = [by_line[at][0] for at in _lines(node) if at in by_line]
        for target in node.targets:
            for name in _names(target):
                text = " ".join([*_above(by_line, node.lineno), *beside])
                found[name] = found.get(name) or text
    return found


def _lines(node: ast.Assign) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _above(by_line: Mapping[int, tuple[str, bool]], line: int) -> list[str]:
    """The lines of comment that end just above a line."""
    found: list[str] = []
    while (before := by_line.get(line - 1)) and before[1]:
        found.insert(0, before[0])
        line -= 1
    return found


def _names(target: ast.expr) -> list[str]:
    """Settings that an assignment sets."""
    if isinstance(target, ast.Tuple):
        return [name for one in target.elts for name in _names(one)]
    whole = ast.unparse(target)
    return [whole.removeprefix("config.")] if whole.startswith("config.") else []


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Values of all settings, by their names without `config.`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def table(
    names: Iterable[str], columns: Mapping[str, Mapping[str, Any]], texts: Mapping[str, str]
) -> str:
    """A table of settings, with a column of defaults for each config."""
    head, places = ["setting", *columns, ""], {name: i for i, name in enumerate(texts)}
    rows = [
        [f"`config.{name}`", *(_value(own, name) for own in columns.values()), texts.get(name, "")]
        for name in sorted(names, key=lambda name: places.get(name, len(places)))
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def _value(own: Mapping[str, Any], name: str) -> str:
    if name not in own:
        return ""
    value = own[name]
    if isinstance(value, ConfigDict):
        return f"{len(value)} of them"
    text = '""' if value == "" else str(value)
    if name.endswith("differs"):
        return f"(sentences: {len(value)})"
    if len(text) > _LONG:
        return f"`{text[:_LONG]}...`"
    return f"`{text}`"


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Settings by the group that they are in; "" are those of none."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
    return found


def reference() -> str:
    """The whole page."""
    return _HEAD + "".join((_runs(), _information(), _studies(), _analyses(), _pretraining()))


def _texts(*modules: Any) -> dict[str, str]:
    """Comments of several config files; the first that has one of a setting has the word."""
    found: dict[str, str] = {}
    for module in modules:
        for name, text in comments(pathlib.Path(module.__file__)).items():
            found[name] = found.get(name) or text
    return found


def _runs() -> str:
    columns = {
        "remem.py": leaves(remem.get_config()),
        "quickstart.py": leaves(quickstart.get_config()),
    }
    texts = _texts(remem, quickstart)
    page = "\n## Runs: configs/remem.py and configs/quickstart.py\n\n"
    page += (
        "`configs/remem.py` takes a data set and the options `variant`, `student` and `loss`; the "
    )
    page += "defaults are those\nof `configs/remem.py:cifar100`.\n"
    for group, names in _groups(columns["remem.py"]).items():
        if group == "information":
            continue
        page += (
            f"\n### {f'config.{group}' if group else 'The run'}\n\n{table(names, columns, texts)}"
        )
    return page


def _information() -> str:
    configs = {"remem.py": remem, "quickstart.py": quickstart, "analysis.py": analysis}
    columns = {
        name: leaves(module.get_config().information, "information.")
        for name, module in configs.items()
    }
    own = comments(pathlib.Path(str(information.__file__)))
    texts = {f"information.{name}": text for name, text in own.items()}
    page = "\n## Information: configs/information.py, in all configs\n\n"
    return page + table(columns["remem.py"], columns, texts)


def _studies() -> str:
    config = study.get_config()
    base = config.base
    del config.base
    found = {name: value for name, value in leaves(config).items() if not _is_cell(name)}
    found |= {"rows": config.rows, "columns": config.columns}
    page = "\n## Studies: configs/study.py, configs/rivals.py, configs/tables/\n\n"
    page += "`config.base` has all settings of a run, above (`--config.base.data.path=...`).\n"
    page += f"Defaults are those of `configs/study.py:{base.data.name}`.\n"
    for group, names in _groups(found).items():
        page += f"\n### {f'config.{group}' if group else 'The study'}\n\n"
        page += table(names, {"study.py": found}, _texts(study))
    return page


def _is_cell(name: str) -> bool:
    return name.partition(".")[0] in ("rows", "columns")


def _analyses() -> str:
    found, texts = leaves(analysis.get_config()), _texts(analysis)
    of_runs = leaves(remem.get_config())
    own = {
        name: value
        for name, value in found.items()
        if name not in of_runs and name.partition(".")[0] not in ("models", "information")
    }
    page = "\n## Analyses: configs/analysis.py\n\n"
    page += (
        "`configs/analysis.py` takes a data set and the options `init` and `analyses`, each of one "
        "or of\nseveral, joined by `|`. It has the settings of `config.data`, `config.teacher` and "
        "`config.information`,\ntoo; `config.models` has those of each model. Defaults are those "
        "of `configs/analysis.py:caltech101`.\n"
    )
    for group, names in _groups(own).items():
        page += f"\n### {f'config.{group}' if group else 'The analysis'}\n\n"
        page += table(names, {"analysis.py": own}, texts)
    return page


def _pretraining() -> str:
    found, texts = leaves(pretrain.get_config()), _texts(pretrain)
    page = "\n## How the bundled teacher was made: configs/pretrain.py\n\n"
    return page + table(found, {"pretrain.py": found}, texts)


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written.")


if __name__ == "__main__":
    main()
