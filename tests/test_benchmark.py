"""Runs the benchmark tool as a user does, at tiny sizes, and checks its verdicts."""

import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import pytest

from tests.oracles import peers
from tools.benchmarks import report, rows

ROOT = pathlib.Path(__file__).parents[1]
GRID = rows.GPU_GRID._replace(students=2)


def run(folder: pathlib.Path, *options: str) -> tuple[str, dict[str, Any]]:
    """Runs the tool; returns what it prints and the content of its file."""
    path = folder / "figures.json"
    command = [sys.executable, "-m", "tools.benchmark", "--tiny", "--repeats=2", f"--json={path}"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Measures one row of both sides, and one of students, once for all tests."""
    peers.timm()
    return run(tmp_path_factory.mktemp("cpu"), "--device=cpu", "--rows=forward,lockstep")


@pytest.mark.slow
def test_a_row_contains_both_sides_and_their_ratio(ran: tuple[str, dict[str, Any]]) -> None:
    printed, record = ran
    row = record["rows"][0]
    medians = {side: statistics.median(row[side]["seconds"]) for side in ("ours", "theirs")}
    assert all(len(row[side]["seconds"]) == 2 for side in medians)
    assert row["ratio"] == pytest.approx(medians["ours"] / medians["theirs"])
    assert row["targets"] == {}  # Targets are for other sizes.
    assert f"| {row['name']} |" in printed


@pytest.mark.slow
def test_facts_about_the_machine_are_printed_first_and_saved(
    ran: tuple[str, dict[str, Any]],
) -> None:
    printed, record = ran
    facts = record["facts"]
    assert all(facts[fact] for fact in ("cpu", "cores", "memory_gib", "load_before", "date"))
    assert set(facts["versions"]) == {"python", "jax", "jaxlib", "torch", "timm"}
    assert facts["devices"]["backend"] == "cpu"
    assert facts["cpu"] in printed.splitlines()[0]


@pytest.mark.slow
def test_all_ways_of_training_give_students_the_same_parameters(
    ran: tuple[str, dict[str, Any]],
) -> None:
    _, record = ran
    same = {way: result["same_parameters"] for way, result in record["rows"][1]["ways"].items()}
    assert same == {"together": True, "apart": True, "stored": True}


def test_an_unknown_row_is_refused_with_a_list_of_the_known_ones() -> None:
    command = [sys.executable, "-m", "tools.benchmark", "--device=cpu", "--rows=forwards"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown rows forwards; known: forward, step" in done.stderr


@pytest.mark.parametrize(
    ("ours", "met", "last"),
    [
        (1.3, {"must": False, "aim": False}, "no"),
        (1.2, {"must": True, "aim": False}, "must"),
        (0.9, {"must": True, "aim": True}, "aim"),
    ],
)
def test_on_a_cpu_the_ratio_of_seconds_is_compared_with_targets(
    ours: float, met: dict[str, bool], last: str
) -> None:
    # The ratio is of medians, so the outlier does not matter.
    record = report.of_cpu("forward", rows.CPU["forward"], [[ours], [1.0, 1.0, 9.0]], [5.0, 1.0])

    assert record["ratio"] == pytest.approx(ours)
    assert record["met"] == met
    assert report.steps_line(record)[-2:] == (last, "5.0")


def test_without_peers_there_is_no_ratio_and_no_verdict() -> None:
    record = report.of_cpu("forward", rows.CPU["forward"], [[1.0]], [5.0])

    assert (record["theirs"], record["ratio"], record["met"]) == (None, None, {})
    assert report.steps_line(record)[1:] == ("1000", "-", "-", "1.20", "1.00", "-", "5.0")


def test_on_a_gpu_speed_is_compared_with_targets_and_the_peak() -> None:
    record = report.of_gpu(
        "step", rows.GPU["step"], [[0.064], [0.128]], [60.0, 90.0], operations=25.6, peak=1000.0
    )

    assert record["ours"]["images_per_second"] == pytest.approx(256 / 0.064)
    assert record["utilisation"] == pytest.approx(0.4)  # 25.6 / 0.064 = 400 of 1,000.
    assert record["met"] == {"pass": True, "good": True, "stretch": False}
    assert report.rates_line(record)[1:] == (
        "4,000", "2,000", "0.50", "40.0%", "2,500", "3,500", "4,200", "good", "60.0",
    )  # fmt: skip


def test_students_are_compared_with_separate_runs() -> None:
    clocks = {"together": 1.0, "apart": 2.5, "stored": 3.0}
    seconds = {way: {"wall": [took], "cpu": [took]} for way, took in clocks.items()}
    same = dict.fromkeys(clocks, True)

    record = report.of_students(GRID, {"ways": seconds, "same_parameters": same})

    assert record["ways"]["together"]["wall"]["speed_up"] == pytest.approx(2.5)
    lasts = {way: report.last(result["met"]) for way, result in record["ways"].items()}
    assert lasts == {"together": "good", "apart": "no", "stored": "no"}


def test_lines_have_as_many_cells_as_their_headings() -> None:
    cpu_record = report.of_compiling(rows.CPU["sam"], [7.0, 9.0, 7.5], rows.COMPILING)
    gpu_record = report.of_gpu("step", rows.GPU["step"], [[1.0]], [1.0], operations=1.0, peak=None)

    assert len(report.steps_line(cpu_record)) == len(report.heading("cpu", "cpu"))
    assert len(report.rates_line(gpu_record)) == len(report.heading("gpu", "NVIDIA H200"))
    assert cpu_record["met"] == {"must": True, "aim": False}
