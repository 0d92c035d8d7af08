"""The page shows exactly what the record contains."""

import pathlib
import statistics
from typing import Any

import numpy as np
import pytest

from tools import measure_gpu
from tools.benchmarks import report, rows
from tools.gpu import numerics, page, record, sketch
from tools.gpu.programs import Values

RUN = {
    "date": "2030-01-01", "gpus": ["NVIDIA H200, 143771 MiB, 580"], "cpu": "", "commit": "abc",
    "versions": {"jax": "0.11", "torch": None}, "minutes": 10, "tiny": False, "device": "gpu",
    "lacking": ["matplotlib (for the mini Table 10)"],
    "packed": {
        "weights_named": "augreg:Ti/16",
        "data": {"title": "Caltech-101", "images": {"train": 3060}, "pixels": 96},
    },
}  # fmt: skip


def rendered(**items: Any) -> str:
    """Renders the page of a run with these items; their default status is "done"."""
    entries = {
        name: {"run": 0, "status": record.DONE, "seconds": 1.0, **entry}
        for name, entry in items.items()
    }
    return page.render({"format": 1, "runs": [RUN], "items": entries})


def row_of(text: str, beginning: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {beginning}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_in_the_documentation_matches_its_record() -> None:
    content = record.read(measure_gpu.DOCS / measure_gpu.RECORD)
    assert (measure_gpu.DOCS / measure_gpu.PAGE).read_text() == page.render(content), (
        "Run .venv/bin/python -m tools.measure_gpu --render=docs/measured.json."
    )


def test_the_page_of_an_empty_record_states_that_nothing_was_measured() -> None:
    assert "Nothing has been measured yet" in page.render(record.EMPTY)


def test_tables_have_as_many_cells_as_their_headings() -> None:
    rates = report.of_gpu(
        "step", rows.GPU["step"], [[0.1], [0.2]], [1.0, 2.0], operations=1.0, peak=1e12
    )
    program = {
        "ours": {"exact": {"loss": 1e-6}, "gradient": 1e-5, "median": 1e-5, "worst": 1e-4,
                 "worst_parameter": "head/bias"},
        "cpu": None, "held_bytes": 2**30, "agrees": True,
    }  # fmt: skip
    form = {"output": 1e-2, "tokens": 1e-2, "parameters": 1e-2, "milliseconds": 1.0,
            "temporary_bytes": 2**20}  # fmt: skip
    text = rendered(
        step={"result": rates},
        plan_stored={"status": record.FAILED, "error": "RESOURCE_EXHAUSTED", "result": None},
        numerics_float32={"result": {"gradient": program, "kd_step": {"error": "no"}}},
        attention={"result": {"197": {"ours": form, "plain": form}, "198": {"error": "no"}}},
    )

    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 6  # Runs, numerics, attention, speed, plans, not finished.
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1
    assert row_of(text, "ViT-B/16 fine-tuning")[1:4] == ["2,560", "1,280", "0.50"]
    assert "RESOURCE_EXHAUSTED" in row_of(text, rows.GPU["plan_stored"].name)


def test_the_mini_table_has_means_and_deviations_over_seeds() -> None:
    shares, plain = [0.25, 0.27, 0.32], [0.2, 0.23, 0.31]
    runs, parts = (
        [
            {"seed": seed, "method": method, "metric": "top1", "student": share, "teacher": 0.5}
            for seed, share in enumerate(values)
        ]
        for method, values in (("finetune", plain), ("remem", shares))
    )
    settings = {"student": "resnet18", "batch_size": 128, "rho": 0.05, "mlp_weight": 0.8,
                "image_size": 224, "compute_dtype": "bfloat16"}  # fmt: skip
    result = {"teacher_steps": 100, "student_steps": 300, "settings": settings, "runs": runs}

    text = rendered(table10={"result": result}, table10_parts={"result": {**result, "runs": parts}})

    percent = [100 * share for share in shares]
    expected = f"{statistics.fmean(percent):.2f} ± {np.std(percent, ddof=1):.2f}"
    gain = "+3.33 ± 2.08"  # The mean and deviation of 5, 4 and 1.
    assert row_of(text, "ReMem")[1:] == [expected, gain, "50.00 ± 0.00", "3"]
    assert row_of(text, "Fine-tuning")[2] == "-"
    assert "not the paper's table" in text


def test_interrupted_items_are_listed() -> None:
    text = rendered(sam={"status": record.STOPPED, "error": "stopped after 90 seconds"})
    assert row_of(text, "sam")[1:] == ["stopped", "1", "stopped after 90 seconds"]


def test_a_record_is_rendered_into_the_documentation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_gpu, "DOCS", tmp_path)
    path = tmp_path / "brought.json"
    record.write(path, {"format": 1, "runs": [RUN], "items": {}})

    assert measure_gpu._render(path) == 0

    assert "NVIDIA H200" in (tmp_path / "measured.md").read_text()
    assert record.read(tmp_path / "measured.json") == record.read(path)


@pytest.mark.parametrize("change", [{"tiny": True}, {"device": "cpu"}])
def test_the_documentation_refuses_numbers_of_a_cpu(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(measure_gpu, "DOCS", tmp_path / "docs")
    path = tmp_path / "tried.json"
    record.write(path, {"format": 1, "runs": [RUN, {**RUN, **change}], "items": {}})

    with pytest.raises(ValueError, match="name another page with --page"):
        measure_gpu._render(path)
    measure_gpu._render(path, str(tmp_path / "tried.md"))

    assert not (tmp_path / "docs").exists()
    assert "## Runs" in (tmp_path / "tried.md").read_text()


def test_missing_packages_are_listed() -> None:
    assert "Neither installed nor packed: matplotlib (for the mini Table 10)." in rendered()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tiny": True}, r"size \(--tiny\)"),
        ({"device": "cpu", "gpus": []}, "device"),
        ({"gpus": ["NVIDIA H100, 81559 MiB, 580"]}, "device"),
        ({"packed": {}}, r"folder \(--packed\)"),
    ],
)
def test_a_record_has_one_kind_of_gpu_and_one_folder(
    tmp_path: pathlib.Path, change: dict[str, Any], named: str
) -> None:
    saved = record.Record(tmp_path / "measured.json")
    saved.begin(RUN)
    saved.begin({**RUN, "date": "2030-01-02", "gpus": ["NVIDIA H200, 143771 MiB, 590"]})

    with pytest.raises(ValueError, match=f"is of another {named}; name another --out"):
        saved.begin({**RUN, **change})


def values(loss: float, gradient: dict[str, np.ndarray]) -> Values:
    return Values({"loss": np.asarray(loss, np.float32)}, sketch.of(gradient), None)


@pytest.mark.parametrize(
    ("dtype", "loss", "scale", "agrees"),
    [
        ("float32", 2.0, 1.0, True),
        ("float32", 2.1, 1.0, False),  # The loss is 5 % off.
        ("float32", 2.0, 1.01, False),  # One parameter's gradient is 1 % off.
        ("bfloat16", 2.0, 1.015, True),  # The CPU's gradient is 1 % off.
        ("bfloat16", 2.0, 1.05, False),
        ("bfloat16", 2.006, 1.0, True),  # The CPU's loss is exact by chance.
        ("bfloat16", 2.02, 1.0, False),
    ],
)
def test_a_wrong_gradient_is_detected_and_named(
    rng: np.random.Generator, dtype: str, loss: float, scale: float, agrees: bool
) -> None:
    exact = {"a": rng.normal(size=(8, 8)), "b": rng.normal(size=1000)}
    reference = {
        "float32/gradient": values(2.0, exact),
        "bfloat16/gradient": values(2.0, {**exact, "b": exact["b"] * 1.01}),
    }

    comparison = numerics._compared(
        "gradient", dtype, values(loss, {**exact, "b": exact["b"] * scale}), reference
    )

    assert comparison["agrees"] == agrees
    if scale > 1:
        assert comparison["ours"]["worst_parameter"] == "b"
        assert comparison["ours"]["worst"] == pytest.approx(scale - 1, rel=0.4)
