"""Records of a small run, with numbers that are easy to compute with."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from remem_jax import paired


def _metrics(share: float, loss: float = 0.5) -> dict[str, float]:
    return {"top1": share, "mean_per_class": share / 2, "loss": loss}


def _model(validation: float, test: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"validation": _metrics(validation), "test": test}


def _tested(
    share: float, *, agreement: float | None = None, confused: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Returns metrics on test, without those that are None."""
    metrics = {
        "top5": 0.99,
        "calibration_error": 0.03,
        "agreement": agreement,
        "confused": confused,
    }
    return _metrics(share) | {name: value for name, value in metrics.items() if value is not None}


def _pair(true: str, predicted: str, images: int, of: int) -> dict[str, Any]:
    return {"class": true, "taken_for": predicted, "images": images, "of": of}


def _selected(step: int | None, student: int) -> dict[str, Any]:
    has_teacher = step is not None
    return {
        "teacher_step": step,
        "student": student,
        "loss": "kd" if has_teacher else None,
        "learning_rate": 0.1,
        "temperature": 4.0 if has_teacher else None,
        "weight": 0.9 if has_teacher else None,
        "seed": 0,
    }


def _teacher_settings(rho: float, mlp_weight: float) -> dict[str, Any]:
    return {
        "rho": rho,
        "mlp_weight": mlp_weight,
        "attention_weight": 1.0,
        "residual": "two_minus",
    }


def _files(method: str, *, teacher: bool = True) -> dict[str, Any]:
    student = {"path": f"selected/{method}_student.safetensors", "bytes": 45_000_000}
    npz = {"path": f"selected/{method}_teacher.npz", "bytes": 7_600_000}
    return {"student": student, "teacher": npz if teacher else None}


def _inference(parameters: int, one_image: float, batch: float) -> dict[str, Any]:
    return {
        "parameters": parameters,
        "operations": 20.0 * parameters,
        "milliseconds": {"1": one_image, "32": batch},
    }


def _student(method: str, student: int, step: int | None, share: float) -> dict[str, Any]:
    settings = _selected(step, student)
    return {"method": method, **settings, "validation": _metrics(share), "diverged": False}


LABELS = np.repeat([0, 1], [250, 150])
# Test images that each model classifies wrongly.
WRONG = {
    ("scratch", "students"): [*range(40), *range(250, 290)],
    ("finetune", "students"): [*range(20), *range(255, 275)],
    ("remem", "students"): [*range(10), *range(250, 270)],
    ("finetune", "teacher"): [*range(16)],
    ("remem", "teacher"): [*range(28)],
}


def _packed(wrong: list[int]) -> str:
    correct = np.ones(len(LABELS), bool)
    correct[wrong] = False
    return paired.pack(correct)


def _correct(method: str) -> dict[str, Any]:
    teacher = WRONG.get((method, "teacher"))
    return {
        "students": [_packed(WRONG[method, "students"])],
        "teacher": teacher and _packed(teacher),
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """The content of results.json: from scratch, fine-tuning and ReMem, with two students each."""
    confused = [_pair("one", "zero", 20, 150), _pair("zero", "one", 10, 250)]
    return {
        "format": 1,
        "title": "ReMem on digits",
        "config": {
            "student": {"losses": ["kd"], "learning_rate": [0.1, 0.5]},
            "differs": ["The batch has 128 images."],
        },
        "config_fingerprint": "c0ffee",
        "data": {
            "name": "digits",
            "title": "scikit-learn's digits",
            "classes": 2,
            "class_names": ["zero", "one"],
            "metric": "top1",
            "examples": {"train": 1150, "validation": 287, "test": 400},
            "classes_without_images": {"train": [], "validation": [], "test": []},
            "held_out": True,
            "test_labels": paired.pack(LABELS),
            "sizes": {"height": [8, 8, 8], "width": [9, 9, 9], "different": 1},
            "source_size": [8, 9],
            "image_size": 32,
            "official": None,
            "skipped": [],
            "fingerprint": "da7a",
        },
        "methods": [
            {
                "method": "scratch",
                "test_correct": _correct("scratch"),
                "files": _files("scratch", teacher=False),
                "teacher_settings": None,
                "selected": _selected(None, 1),
                "group": {"part": "students/scratch", "member": 1},
                "student": _model(0.85, _tested(0.8, confused=[])),
                "teacher": None,
            },
            {
                "method": "finetune",
                "test_correct": _correct("finetune"),
                "files": _files("finetune"),
                "teacher_settings": _teacher_settings(0.0, 1.0),
                "selected": _selected(100, 0),
                "group": {"part": "students/finetune/step_100", "member": 0},
                "student": _model(0.88, _tested(0.9, agreement=0.91, confused=[])),
                "teacher": _model(0.97, _tested(0.96)),
            },
            {
                "method": "remem",
                "test_correct": _correct("remem"),
                "files": _files("remem"),
                "teacher_settings": _teacher_settings(0.5, 0.8),
                "selected": _selected(200, 1),
                "group": {"part": "students/remem/step_200", "member": 1},
                "student": _model(0.95, _tested(0.925, agreement=0.935, confused=confused)),
                "teacher": _model(0.94, _tested(0.93)),
            },
        ],
        "teachers": [
            {"method": "finetune", "step": 100, "validation": _metrics(0.97)},
            {"method": "remem", "step": 200, "validation": _metrics(0.94)},
        ],
        "students": [
            _student("remem", 0, 200, 0.91),
            _student("remem", 1, 200, 0.95),
            _student("finetune", 0, 100, 0.88),
            _student("finetune", 1, 100, 0.5),
            _student("scratch", 0, None, 0.7),
            _student("scratch", 1, None, 0.85),
        ],
        "models": {
            "teacher": "vit Ti/16",
            "teacher_parameters": 1900000,
            "student": "resnet18",
            "student_parameters": 11227812,
            "init": "ti_16.npz",
            "init_digest": "1417",
        },
        "inference": {
            "image_size": 32,
            "compute_dtype": "float32",
            "device": {"platform": "cpu", "kind": "cpu", "count": 1},
            "threads": 2,
            "student": _inference(11227812, 4.0, 80.0),
            "teacher": _inference(1900000, 5.0, 40.0),
        },
        "seed": 7,
        "seconds": {"teachers/remem": 12.34, "students/remem/step_200": 3700.0},
        "versions": {"remem_jax": "0.1.0", "python": "3.11.7"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
    }


@pytest.fixture
def older(results: dict[str, Any]) -> dict[str, Any]:
    """The same results as recorded by an earlier version."""
    del results["inference"]
    for row in results["methods"]:
        del row["test_correct"], row["files"]
    for name in ("classes_without_images", "held_out", "test_labels", "sizes"):
        del results["data"][name]
    return results


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """The metrics of that run as logged."""
    lines: list[dict[str, Any]] = []
    for step in (100, 200):
        for method, ascent in (("finetune", 0.0), ("remem", 2.0)):
            values = {"loss": 1 / step, "ascent_norm": ascent, "validation": step / 400}
            lines.append({"part": f"teachers/{method}", "step": step, "time": 0.0, **values})
        for stage in ("scratch", "finetune/step_100", "remem/step_200"):
            values = {"loss": [2.0, 1.0], "validation": [step / 400, step / 250]}
            lines.append({"part": f"students/{stage}", "step": step, "time": 0.0, **values})
    return lines


@pytest.fixture
def run(
    tmp_path: pathlib.Path, results: dict[str, Any], rows: list[dict[str, Any]]
) -> pathlib.Path:
    """The folder of the finished run; later changes to `results` are not in it."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path
