"""Renders docs/measured.md from a record."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.methods import METHODS
from tools.benchmarks import report, rows
from tools.gpu import items, record

_GIB = 2**30
_HEAD = """\
<!-- Made by tools/measure_gpu.py --render; do not edit. -->
# Measured on a GPU

One command measures four things in ten minutes on one GPU: whether the GPU computes the same values
as a CPU, the speed compared with torch and timm, the memory of memory plans, and a mini version of
the paper's Table 10. The machine with the GPU needs JAX, Flax, Optax and Orbax, Matplotlib for the
mini Table 10, and torch for the comparison. It needs no network.

    # On any machine: make a folder of at most 60 MiB, with images that TFDS has prepared or your
    # own (--data=folder --data-path=my_images). This takes a few minutes on a CPU.
    .venv/bin/python -m tools.measure_gpu --pack=packed --data=caltech101 --weights=augreg:Ti/16
    # Copy this repository and the folder to the machine with the GPU. Run there:
    python -m tools.measure_gpu --packed=packed --out=measured --minutes=10
    # It stops after this time; the same command resumes with the unfinished items. Copy
    # measured/measured.json back, and write this page:
    .venv/bin/python -m tools.measure_gpu --render=measured/measured.json

Small dependencies are packed as wheels for Python 3.12 on Linux (`--wheels`) and used if they are
not installed; the tool prints what else is missing. TFDS, Grain and Optuna are not needed. Compiled
code is kept in the system's temporary folder or in that of `--compiled`, so a second start compiles
little. Trained models of the mini table are kept next to the record. `--items` chooses what to
measure. `--tiny` tries everything on a CPU in a minute, and `--device=cpu` tries the full size
until the time is over. This page accepts results of neither; `--page` writes them to another page.

Ten minutes are not enough for everything, so the most important items come first. An H100 should
finish, by estimate and not by measurement, the numerics, three or four of the rows compared with
torch, which takes longest to compile, and three seeds of fine-tuning and ReMem. A second start
measures the other rows, SAM alone and re-weighting alone; a third start the rest, if any.
"""
_NOTHING = """\
**Nothing has been measured yet**, because no GPU has been available. The targets for a GPU in
`tools/benchmarks/rows.py` are predictions.
"""
_PROGRAMS = {
    "gradient": "logits and gradient of cross-entropy",
    "sam_step": "SAM step, re-weighted MLPs",
    "kd_step": "KD step, ResNet-18 student",
}
_NUMERICS = ("numerics_float32", "numerics_bfloat16")


def render(content: Mapping[str, Any]) -> str:
    """Returns the page of a record, in Markdown; for an empty one it states that it is empty."""
    if not content["runs"]:
        return f"{_HEAD}\n{_NOTHING}"
    entries = content["items"]
    parts = [
        _HEAD,
        _runs(content["runs"]),
        _numerics(entries),
        _attention(entries),
        _speed(entries),
        _plans(entries),
        _table10(entries, content["runs"]),
        _unfinished(entries),
    ]
    return "\n".join(part for part in parts if part)


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    heading = ("run", "date", "device", "versions", "commit", "minutes", "ended")
    lines = [
        (
            str(i),
            run["date"],
            "; ".join(run["gpus"]) or run["cpu"],
            ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
            run["commit"][:12] or "unknown",
            f"{run['minutes']:g}",
            run.get("ended", "cut short"),
        )
        for i, run in enumerate(runs)
    ]
    notes = ""
    if any(run["device"] != "gpu" for run in runs):
        notes = "**Not measured on a GPU: these numbers only show that the tool runs.**\n\n"
    lacking = sorted({line for run in runs for line in run["lacking"]})
    after = f"\nNeither installed nor packed: {', '.join(lacking)}.\n" if lacking else ""
    return f"## Runs\n\n{notes}{_table(heading, lines)}{after}"


def _numerics(entries: Mapping[str, Any]) -> str:
    """Returns a table of the errors of each program and type, with those of the CPU in bfloat16."""
    lines = []
    for item in _NUMERICS:
        result = _result(entries, item)
        for name, title in _PROGRAMS.items():
            program = result.get(name)
            if program:
                lines.append((item.removeprefix("numerics_"), title, *_errors(program)))
    if not lines:
        return ""
    heading = (
        "type", "program", "values", "gradient", "median", "worst parameter", "CPU: values",
        "CPU: gradient", "agrees", "GiB held",
    )  # fmt: skip
    return (
        "## Numerics\n\nErrors relative to the CPU in float32, for the packed ViT and 8 images. "
        "`values` is the largest error of logits and losses, `gradient` the error of the whole "
        "gradient; `median` and `worst parameter` are errors of the gradients of single "
        "parameters. Errors of gradients are estimated from sketches, to about 10 %. Gradients "
        "below a thousandth of the whole gradient are compared with that thousandth. A step's "
        "gradient is read from its momentum. float32 is computed in float32, not TF32, and agrees "
        "if its errors are at most 0.001; bfloat16 agrees if its errors are at most twice those of "
        "the CPU in bfloat16 (plus 1/256 for values).\n\n"
        f"{_table(heading, lines)}"
    )


def _errors(program: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in program:
        return ("-", "-", "-", f"failed: {program['error']}", "-", "-", "no", "-")
    ours, cpu = program["ours"], program["cpu"]
    held = program["held_bytes"]
    return (
        _small(max(ours["exact"].values())),
        _small(ours["gradient"]),
        _small(ours["median"]),
        f"{_small(ours['worst'])} ({ours['worst_parameter']})",
        _small(max(cpu["exact"].values())) if cpu else "-",
        _small(cpu["gradient"]) if cpu else "-",
        "yes" if program["agrees"] else "**no**",
        _gib(held),
    )


def _attention(entries: Mapping[str, Any]) -> str:
    lines = []
    for tokens, forms in _result(entries, "attention").items():
        if "error" in forms:
            lines.append((tokens, f"failed: {forms['error']}", *["-"] * 5))
            continue
        for form, result in forms.items():
            errors = [_small(result[name]) for name in ("output", "tokens", "parameters")]
            temporary = result["temporary_bytes"]
            mib = "-" if temporary is None else f"{temporary / 2**20:.1f}"
            lines.append((tokens, form, *errors, f"{result['milliseconds']:.2f}", mib))
    if not lines:
        return ""
    heading = ("tokens", "attention", "output", "by tokens", "by parameters", "ms", "MiB")
    return (
        "### Attention in bfloat16\n\nErrors of the output and of its gradients, relative to plain "
        "attention in float32 on the CPU, with milliseconds and temporary memory of a forward and "
        f"backward pass. `plain` stores all scores.\n\n{_table(heading, lines)}"
    )


def _speed(entries: Mapping[str, Any]) -> str:
    records = [
        _result(entries, name)
        for name, row in rows.GPU.items()
        if not row.plan and "ours" in _result(entries, name)
    ]
    parts = []
    if records:
        kind = _result(entries, "device").get("kind", "device")
        heading = (*report.heading("gpu", kind), "ours GiB", "torch GiB")
        lines = [(*report.rates_line(record), *_peaks(record)) for record in records]
        parts.append(_table(heading, lines))
        notes = {record["peers_missing"] for record in records if record.get("peers_missing")}
        notes |= {
            f"torch: {record['theirs_failed']}" for record in records if "theirs_failed" in record
        }
        parts += [f"{note}.\n" for note in sorted(notes)]
    students = _result(entries, "lockstep")
    if students:
        parts.append(_table(report.students_heading(students), report.students_lines(students)))
    if not parts:
        return ""
    return (
        "## Speed\n\nThe rows of `tools/benchmark.py --device=gpu`. Both sides run on this GPU and "
        "take turns; torch uses torch.compile, channels last and a fused optimiser. GiB is the "
        "peak memory of each side. Targets are for an H200.\n\n" + "\n".join(parts)
    )


def _peaks(row: Mapping[str, Any]) -> tuple[str, str]:
    ours, theirs = (row[side] and row[side].get("peak_bytes") for side in ("ours", "theirs"))
    return _gib(ours), _gib(theirs)


def _plans(entries: Mapping[str, Any]) -> str:
    """Returns a table of speed and memory of a teacher's step under each memory plan."""
    lines = []
    for name, row in rows.GPU.items():
        entry = entries.get(name)
        if not row.plan or entry is None:
            continue
        result = entry["result"] or {}
        if "ours" in result:
            rate = f"{result['ours']['images_per_second']:,.0f}"
            utilisation = result["utilisation"]
            used = "-" if utilisation is None else f"{utilisation:.1%}"
            lines.append((result["name"], rate, used, _gib(result["ours"].get("peak_bytes"))))
        else:
            lines.append((row.name, entry["error"], "-", "-"))
    if not lines:
        return ""
    heading = ("memory plan", "images/s", "utilisation", "peak GiB")
    return f"### Memory plans\n\n{_table(heading, lines)}"


def _table10(entries: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    results = [_result(entries, name) for name in items.TABLE10]
    trained = [run for result in results for run in result.get("runs", ())]
    if not trained:
        return ""
    lines = []
    plain = {run["seed"]: run["student"] for run in trained if run["method"] == "finetune"}
    for name, method in METHODS.items():
        seeds = [run for run in trained if run["method"] == name]
        if seeds:
            student, teacher = (
                _mean_and_deviation([100 * run[model] for run in seeds])
                for model in ("student", "teacher")
            )
            gains = [
                100 * (run["student"] - plain[run["seed"]])
                for run in seeds
                if run["seed"] in plain and name != "finetune"
            ]
            gain = _mean_and_deviation(gains, "+") if gains else "-"
            lines.append((method.title, student, gain, teacher, str(len(seeds))))
    result = next(result for result in results if result.get("runs"))
    packed, settings, metric = runs[0]["packed"], result["settings"], trained[0]["metric"]
    data = packed["data"]
    heading = ("method", "student, test", "gain over fine-tuning", "teacher, test", "seeds")
    return (
        "## A mini Table 10\n\n"
        "Re-weighting and SAM, each alone and together (ReMem), with the settings of "
        "`configs/tables/table10.py:mini` and the project's own workflow. **This is not the "
        f"paper's table**: the teacher is small ({packed['weights_named']}) and has "
        f"{result['teacher_steps']} steps; there is one {settings['student']} student with "
        f"{result['student_steps']} steps; the batch size is {settings['batch_size']}; no "
        f"hyperparameter is searched (rho {settings['rho']}, alpha {settings['mlp_weight']}); and "
        f"the {data['images']['train']:,} training images of {data['title']} are JPEGs of "
        f"{data['pixels']} pixels, enlarged to {settings['image_size']}. Each seed changes the "
        "validation split, the crops, the order of images and the student's initialisation. They "
        "are the same for all methods, so gains are computed for each seed. The table shows the "
        f"mean and standard deviation of {metric} over seeds, in %, computed in "
        f"{settings['compute_dtype']}.\n\n{_table(heading, lines)}"
    )


def _mean_and_deviation(values: Sequence[float], sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _unfinished(entries: Mapping[str, Any]) -> str:
    lines = [
        (name, entry["status"], f"{entry['seconds']:.0f}", entry.get("error", ""))
        for name, entry in entries.items()
        if entry["status"] != record.DONE
    ]
    if not lines:
        return ""
    return f"## Not finished\n\n{_table(('item', 'status', 'seconds', 'reason'), lines)}"


def _result(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return entries.get(name, {}).get("result") or {}


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    body = "\n".join(report.line(line) for line in escaped)
    return f"{report.line(heading)}\n{report.rule(heading)}\n{body}\n"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / _GIB:.2f}"
