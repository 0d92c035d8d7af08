"""Lists teachers and students: what they cost, and where their weights are.

remem models
remem models efficientnet_lite0
remem models --teachers --json
"""

import argparse
import difflib
import json
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from remem_jax.checks import SettingError
from remem_jax.export import command

if TYPE_CHECKING:
    from remem_jax.weights.available import Model

_STUDENT = "{:23} {:>8} {:>7} {:>6} {:>5}  {:22}  {:12}  {}".format
_TEACHER = "{:22} {:>9} {:>7} {:>6}  {:30}  {:10}  {}".format
_RECOMMENDED = "{:52} {:>7} {:>8} {:>6}  {:10}  {:22}  {}".format
_WEIGHTS = "{:47} {:>5} {:>6} {:>7}  {:22}  {:12}  {}".format
_LEGEND = """\
params: parameters with a head of 1,000 classes. GFLOPs: of one image's forward pass at these
pixels, two for a multiplication and an addition. top-1: on ImageNet, in percent. commercial: is
commercial use allowed, to our knowledge; read the licence.
`remem models NAME` has all weights of a network ("1 more"), licences, and how to use it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return command.run(lambda: _list(arguments), stopped="stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="remem models",
        description="Lists the teachers and students that there are: parameters, operations, "
        "pixels, pretraining, licence, and whether the weights are on this machine.",
    )
    parser.add_argument("name", nargs="?", default="", help="a network or weights, for its details")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--students", action="store_true", help="students only")
    which.add_argument("--teachers", action="store_true", help="teachers only")
    parser.add_argument("--json", action="store_true", help="as JSON, with all weights")
    return parser


def _list(arguments: argparse.Namespace) -> None:
    from remem_jax.weights import available  # Imported after the options, because of JAX.

    students = [] if arguments.teachers else available.students()
    teachers = [] if arguments.students else available.teachers()
    chosen = [*students, *teachers]
    if arguments.name:
        chosen = _named(arguments.name, chosen)
    if arguments.json:
        text = json.dumps([_record(model) for model in chosen], indent=2)
    elif arguments.name:
        text = "\n\n".join(_details(chosen))
    else:
        tables = [_students(students)] if students else []
        tables += _tables_of_teachers(teachers)
        text = "\n\n".join(["\n".join(table) for table in tables] + [_LEGEND])
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _named(name: str, listed: Sequence["Model"]) -> list["Model"]:
    """Returns what a name stands for: a network with all of its weights, or weights.

    Raises:
        SettingError: If it stands for nothing; the message lists similar names.
    """
    from remem_jax.weights import available, hub

    on_hub = hub.parse(name)
    wanted = on_hub.repository if on_hub else name
    found = [model for model in listed if wanted in (model.network, model.weights)]
    if found:
        return found
    if name.startswith("augreg:"):
        return [available.teacher(name)]
    known = {text for model in listed for text in (model.network, model.weights) if text}
    close = difflib.get_close_matches(name, sorted(known), n=5)
    other = "; other repositories on the Hub are not listed, and can be used" if on_hub else ""
    raise SettingError(
        f"There is no teacher or student {name!r}{_similar(close)}: `remem models` lists "
        f"all{other}."
    )


def _similar(names: Sequence[str]) -> str:
    return f" (similar: {', '.join(names)})" if names else ""


def _record(model: "Model") -> dict[str, Any]:
    """Returns a model as JSON values, without nesting."""
    record = model._asdict()
    return record | record.pop("cost")._asdict()


def _students(models: Sequence["Model"]) -> Iterator[str]:
    """Yields the lines of the table of students, with the first weights of each."""
    yield _STUDENT(
        *("student", "params", "GFLOPs", "pixels", "top-1", "pretraining", "licence", "weights")
    )
    seen: set[str] = set()
    for model in models:
        if model.network in seen:
            continue
        seen.add(model.network)
        others = sum(each.network == model.network for each in models) - 1
        yield _STUDENT(
            model.network,
            *_costs(model),
            _percent(model),
            model.pretraining,
            model.licence,
            _place(model) + (f"; {others} more" if others else ""),
        ).rstrip()


def _tables_of_teachers(models: Sequence["Model"]) -> list[Iterator[str]]:
    """Returns the table of the recommended teachers, and that of the others, if there are any."""
    recommended = [model for model in models if model.commercial]
    others = [model for model in models if not model.commercial]
    tables = [_recommended(recommended)] if recommended else []
    return tables + ([_teachers(others)] if others else [])


def _recommended(models: Sequence["Model"]) -> Iterator[str]:
    heads = ("recommended teacher", "params", "GFLOPs", "pixels", "commercial", "weights")
    yield _RECOMMENDED(*heads, "licence")
    for model in models:
        cells = (*_costs(model), model.commercial, _place(model), model.licence)
        yield _RECOMMENDED(model.weights, *cells)


def _teachers(models: Sequence["Model"]) -> Iterator[str]:
    yield _TEACHER(*("teacher", "params", "GFLOPs", "pixels", "pretraining", "licence", "weights"))
    for model in models:
        yield _TEACHER(
            model.weights, *_costs(model), model.pretraining, model.licence, _place(model)
        )


def _details(found: Sequence["Model"]) -> Iterator[str]:
    """Yields a paragraph on a student, and one on a teacher or a table of several."""
    students = [model for model in found if model.role == "student"]
    if students:
        yield "\n".join(_of_student(students))
    teachers = [model for model in found if model.role == "teacher"]
    if len(teachers) > 1:
        yield from ("\n".join(table) for table in _tables_of_teachers(teachers))
    elif teachers:
        yield "\n".join(_of_teacher(teachers[0]))


def _of_student(found: Sequence["Model"]) -> Iterator[str]:
    from remem_jax import models
    from remem_jax.weights import student_catalog

    first, student = found[0], models.STUDENTS[found[0].network]
    yield f"{first.network}, a student"
    yield from _facts_on_cost(first)
    sizes = f"multiples of {student.patch} pixels" if student.patch > 1 else "any size"
    yield _fact("images", f"{sizes}; stems: {', '.join(student.stems)}")
    yield _fact("in timm", student.timm or "no")
    recommended = student_catalog.of_student(first.network)[:1]
    is_first = [first.weights] == [each.name for each in recommended]
    weights = "" if is_first else f" --student-weights={shlex.quote(first.weights)}"
    yield _fact("use", f"remem distil IMAGES --student={first.network}{weights}")
    if not first.weights:
        yield _fact("weights", f"{first.place}: it starts from random ones")
        return
    yield _fact("licence", _terms(first))
    yield ""
    heads = ("weights", "top-1", "pixels", "GFLOPs", "pretraining", "licence", "file")
    yield _WEIGHTS(*heads)
    for model in found:
        _, gflops, pixels = _costs(model)
        cells = (_percent(model), pixels, gflops, model.pretraining)
        yield _WEIGHTS(model.weights, *cells, model.licence, _place(model))


def _of_teacher(model: "Model") -> Iterator[str]:
    name = f"timm's {model.network}" if model.commercial else f"ViT-{model.network}"
    yield f"{model.weights}, a teacher: {name}"
    yield from _facts_on_cost(model)
    yield _fact("trained on", "; ".join(filter(None, (model.pretraining, model.note))))
    yield _fact("weights", _place(model))
    yield _fact("use", f"remem distil IMAGES --teacher={model.weights}")
    yield _fact("licence", _terms(model))


def _facts_on_cost(model: "Model") -> Iterator[str]:
    yield _fact("parameters", f"{model.cost.parameters:,} with a head of 1,000 classes")
    yield _fact("GFLOPs", f"{model.cost.gflops} at {model.pixels} pixels")


def _fact(name: str, text: str) -> str:
    """Returns a name and a text on lines of the same indentation."""
    return textwrap.fill(
        text, 98, initial_indent=f"  {name:12}", subsequent_indent=" " * 14, break_on_hyphens=False
    )


def _terms(model: "Model") -> str:
    """Returns the terms of the licence, as a model card has them."""
    from remem_jax.report.card import licences
    from remem_jax.weights import student_catalog

    is_of_bucket = model.role == "teacher" and not model.commercial
    if is_of_bucket:
        return licences.of_weights(model.weights).terms
    student = student_catalog.PUBLISHED.get(model.weights)
    record = {
        "init": model.weights,
        "repository": student.repository if student else model.weights,
        "licence": model.licence,
        "pretraining": model.pretraining,
    }
    return licences.of_recorded(record).text


def _costs(model: "Model") -> tuple[str, str, str]:
    """Returns the cells for parameters, operations and pixels."""
    millions = f"{model.cost.parameters / 1e6:,.1f} M"
    return millions, f"{model.cost.gflops:,.2f}", str(model.pixels)


def _percent(model: "Model") -> str:
    return "" if model.top1 is None else f"{model.top1:.1f}"


def _place(model: "Model") -> str:
    """Describes where the weights are, with their size if they are not here."""
    from remem_jax.weights import available

    if model.place != available.AWAY:
        return model.place
    size = "" if model.mebibytes is None else f", {model.mebibytes:,.0f} MiB"
    return f"{model.place}{size}"
