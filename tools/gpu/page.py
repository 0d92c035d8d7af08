"""docs/measured.md: what a record says, as a page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.benchmarks import report, rows
from tools.gpu import items, record

_GIB = 2**30
_HEAD = """\
<!-- Made by tools/measure_gpu.py --render; do not edit. -->
# Measured on a GPU

What one command measures in ten minutes on one GPU: whether it computes what a CPU does, how fast
it is beside torch and timm, what memory plans take, and a mini version of the paper's Table 10. The
machine with the GPU needs JAX, Flax, Optax and Orbax for it, Matplotlib for the mini Table 10, and
torch for the comparison; no network.

    # On any machine: a folder of at most 60 MiB, with images that TFDS has prepared (or your own,
    # --data=folder --data-path=my_images); a CPU needs some minutes.
    .venv/bin/python -m tools.measure_gpu --pack=packed --data=caltech101 --weights=augreg:Ti/16
    # This repository and the folder go to the machine with the GPU. There:
    python -m tools.measure_gpu --packed=packed --out=measured --minutes=10
    # It ends in time; the same command goes on with what is not done. measured/measured.json comes
    # back, and makes this page:
    .venv/bin/python -m tools.measure_gpu --render=measured/measured.json

Small dependencies travel as wheels for Python 3.12 on Linux (`--wheels`), and are used where they
are not installed; what is missing beside them is said. TFDS, Grain and Optuna are not needed. What
is compiled is kept in the system's temporary folder, or that of `--compiled`, so that a second
start compiles little, and what the mini table has trained beside the record. `--items` names what
to measure. `--tiny` tries all of it on a CPU in a minute, `--device=cpu` at full size, as far as
the time goes; this page refuses the numbers of both (`--page` names another).

Ten minutes are too few for everything. In order of importance, and as one H100 is expected to do
it (nothing of this is measured): numerics, three or four of the rows beside torch, whose compiling
takes longest, and three seeds of fine-tuning and ReMem. A second start has the other rows, SAM
alone and re-weighting alone; a third what may be left.
"""
_NOTHING = """\
**Nothing has been measured yet**: no GPU has been at hand. The targets for a GPU in
`tools/benchmarks/rows.py` are predictions.
"""
_PROGRAMS = {
    "gradient": "logits and gradient of cross-entropy",
    "sam_step": "SAM step, re-weighted MLPs",
    "kd_step": "KD step, ResNet-18 student",
}
_METHODS = {
    "finetune": "Fine-tuning",
    "reweight": "Re-weighting MLPs only",
    "sam": "SAM only",
    "remem": "Re-weighting and SAM (ReMem)",
}
_NUMERICS = ("numerics_float32", "numerics_bfloat16")


def render(content: Mapping[str, Any]) -> str:
    """The page of a record, in Markdown; of an empty one, that nothing was measured."""
    if not content["runs"]:
        return f"{_HEAD}\n{_NOTHING}"
    found = content["items"]
    parts = [
        _HEAD,
        _runs(content["runs"]),
        _numerics(found),
        _attention(found),
        _speed(found),
        _plans(found),
        _table10(found, content["runs"]),
        _unfinished(found),
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
        notes = (
            "**Not measured on a GPU: these numbers say that the tool runs, and nothing else.**\n\n"
        )
    lacking = sorted({line for run in runs for line in run["lacking"]})
    after = f"\nNeither installed nor packed: {', '.join(lacking)}.\n" if lacking else ""
    return f"## Runs\n\n{notes}{_table(heading, lines)}{after}"


def _numerics(found: Mapping[str, Any]) -> str:
    """Errors of each program and type; those of the CPU's own bfloat16 beside the GPU's."""
    lines = []
    for item in _NUMERICS:
        result = _result(found, item)
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
        "## Numerics\n\nRelative errors against the CPU in float32, the packed ViT on 8 images: of "
        "logits and losses (the largest), of the whole gradient, and of the gradients of single "
        "parameters (estimated from sketches, to about 10 %; those below a thousandth of the whole "
        "gradient against that). A step's gradient is what its "
        "momentum holds. float32 is computed in float32, not TF32, and agrees up to 0.001; "
        "bfloat16 agrees where its errors are at most twice those of the CPU in bfloat16 (plus "
        "1/256 for values).\n\n"
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


def _attention(found: Mapping[str, Any]) -> str:
    lines = []
    for tokens, forms in _result(found, "attention").items():
        if "error" in forms:
            lines.append((tokens, f"failed: {forms['error']}", *["-"] * 5))
            continue
        for form, one in forms.items():
            errors = [_small(one[name]) for name in ("output", "tokens", "parameters")]
            temporary = one["temporary_bytes"]
            mib = "-" if temporary is None else f"{temporary / 2**20:.1f}"
            lines.append((tokens, form, *errors, f"{one['milliseconds']:.2f}", mib))
    if not lines:
        return ""
    heading = ("tokens", "attention", "output", "by tokens", "by parameters", "ms", "MiB")
    return (
        "### Attention in bfloat16\n\nRelative errors of the output and of its gradients against "
        "plain attention in float32 on the CPU; milliseconds and temporary memory of a forward and "
        f"backward pass. `plain` stores all scores.\n\n{_table(heading, lines)}"
    )


def _speed(found: Mapping[str, Any]) -> str:
    records = [
        _result(found, name)
        for name, row in rows.GPU.items()
        if not row.plan and "ours" in _result(found, name)
    ]
    parts = []
    if records:
        kind = _result(found, "device").get("kind", "device")
        heading = (*report.heading("gpu", kind), "ours GiB", "torch GiB")
        parts.append(_table(heading, [(*report.rates_line(one), *_peaks(one)) for one in records]))
        said = {one["peers_missing"] for one in records if one.get("peers_missing")}
        said |= {f"torch: {one['theirs_failed']}" for one in records if "theirs_failed" in one}
        parts += [f"{line}.\n" for line in sorted(said)]
    students = _result(found, "lockstep")
    if students:
        parts.append(_table(report.students_heading(students), report.students_lines(students)))
    if not parts:
        return ""
    return (
        "## Speed\n\nThe rows of `tools/benchmark.py --device=gpu`; both sides on this card, turn "
        "by turn; torch compiled, channels last, fused optimiser. GiB are the peak of each side. "
        "Targets are for an H200.\n\n" + "\n".join(parts)
    )


def _peaks(row: Mapping[str, Any]) -> tuple[str, str]:
    ours, theirs = (row[side] and row[side].get("peak_bytes") for side in ("ours", "theirs"))
    return _gib(ours), _gib(theirs)


def _plans(found: Mapping[str, Any]) -> str:
    """What a teacher's step takes, by what it stores; what did not fit says so."""
    lines = []
    for name, row in rows.GPU.items():
        entry = found.get(name)
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


def _table10(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    results = [_result(found, name) for name in items.TABLE10]
    trained = [run for result in results for run in result.get("runs", ())]
    if not trained:
        return ""
    lines = []
    plain = {run["seed"]: run["student"] for run in trained if run["method"] == "finetune"}
    for method, title in _METHODS.items():
        own = [run for run in trained if run["method"] == method]
        if own:
            shares = [[100 * run[of] for run in own] for of in ("student", "teacher")]
            more = [
                100 * (run["student"] - plain[run["seed"]]) for run in own if run["seed"] in plain
            ]
            gain = _spread(more, "+") if more and method != "finetune" else "-"
            lines.append((title, _spread(shares[0]), gain, _spread(shares[1]), str(len(own))))
    result = next(result for result in results if result.get("runs"))
    packed, settings, metric = runs[0]["packed"], result["settings"], trained[0]["metric"]
    data = packed["data"]
    heading = ("method", "student, test", "less fine-tuning's", "teacher, test", "seeds")
    return (
        "## A mini Table 10\n\n"
        "What re-weighting and SAM do alone, through `configs/tables/table10.py:mini` and the "
        "project's own workflow. **This is not the paper's table**: a small teacher "
        f"({packed['weights_named']}), {result['teacher_steps']} steps of the teacher and "
        f"{result['student_steps']} of one {settings['student']} student at batch "
        f"{settings['batch_size']}, nothing searched (rho {settings['rho']}, alpha "
        f"{settings['mlp_weight']}), and {data['images']['train']:,} training images of "
        f"{data['title']}, packed as JPEGs of {data['pixels']} pixels and enlarged to "
        f"{settings['image_size']}. Each seed draws the validation split, the crops, the order and "
        "the student anew, the same for all methods, so that differences are taken seed by seed. "
        f"Mean and standard deviation of {metric} over seeds, in %; "
        f"{settings['compute_dtype']}.\n\n{_table(heading, lines)}"
    )


def _spread(values: Sequence[float], sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _unfinished(found: Mapping[str, Any]) -> str:
    lines = [
        (name, entry["status"], f"{entry['seconds']:.0f}", entry.get("error", ""))
        for name, entry in found.items()
        if entry["status"] != record.DONE
    ]
    if not lines:
        return ""
    return f"## Not finished\n\n{_table(('item', 'status', 'seconds', 'why'), lines)}"


def _result(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return found.get(name, {}).get("result") or {}


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    body = "\n".join(report.line(line) for line in escaped)
    return f"{report.line(heading)}\n{report.rule(heading)}\n{body}\n"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / _GIB:.2f}"
