"""What is removed from the folder of a run and from the cache, and what is not."""

import json
import os
import pathlib
from typing import Any

import pytest

from remem_jax.commands import clean
from remem_jax.storage import cleaning, files, locks

ROW = {
    "method": "remem",
    "teacher": {"test": {}},
    "teacher_part": "teachers/remem",
    "selected": {"teacher_step": 20},
}


def write(path: pathlib.Path, content: Any = b"x" * 100_000) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def make_run(folder: pathlib.Path, *, budget: bool = False) -> pathlib.Path:
    """Writes the files of a finished run with two teachers, each with a student."""
    write(folder / ".remem_jax", b"")
    write(folder / "lock", b"")
    for step in (10, 20):
        write(folder / f"teachers/remem/step_{step}/params/array")
        write(folder / f"teachers/remem/step_{step}/record.json", {"step": step})
        write(folder / f"students/remem/step_{step}/best/student_0/array")
        write(folder / f"students/remem/step_{step}/result.json", {})
    write(folder / "teachers/remem/result.json", {})
    write(folder / "selected/remem.json", {})
    write(folder / "selected/remem_student.safetensors")
    write(folder / "selected/remem_teacher.npz")
    write(folder / "profile/trace")
    stages = {"stages": [1, 2]}
    write(folder / "results.json", {"methods": [ROW], **({"budget": stages} if budget else {})})
    if budget:
        write(folder / "budget.json", stages)
    return folder


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_run(tmp_path / "run")


def removed(folder: pathlib.Path, *arguments: str) -> set[str]:
    """Cleans a folder, and returns the outermost files and folders that are gone."""
    before = {path for path in folder.rglob("*")}

    assert clean.main([str(folder), *arguments]) == 0

    gone = {path for path in before if not os.path.lexists(path)}
    return {path.relative_to(folder).as_posix() for path in gone if path.parent not in gone}


STUDENTS = {f"students/remem/step_{step}/best" for step in (10, 20)}


def test_a_run_keeps_what_it_needs(run: pathlib.Path) -> None:
    gone = removed(run)

    assert gone == {*STUDENTS, *(f"teachers/remem/step_{step}/params" for step in (10, 20))}


def test_teachers_for_longer_training_stay_unless_all_is_removed(tmp_path: pathlib.Path) -> None:
    run = make_run(tmp_path / "run", budget=True)

    assert removed(run) == {*STUDENTS, "teachers/remem/step_10/params"}
    assert removed(run, "--all") == {"teachers/remem/step_20/params", "profile"}


def test_a_teacher_with_timms_names_is_saved_too(run: pathlib.Path) -> None:
    (run / "selected/remem_teacher.npz").rename(run / "selected/remem_teacher.safetensors")

    gone = removed(run)

    assert gone == {*STUDENTS, *(f"teachers/remem/step_{step}/params" for step in (10, 20))}


def test_a_teacher_that_is_not_saved_elsewhere_stays(run: pathlib.Path) -> None:
    (run / "selected/remem_teacher.npz").unlink()  # A teacher with adapters has none.

    assert removed(run, "--all") == {*STUDENTS, "teachers/remem/step_10/params", "profile"}


def test_a_run_that_is_not_finished_keeps_its_models(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "results.json").unlink()
    write(run / "students/remem/step_10/checkpoints/40/array")  # It has a result.
    (run / "students/remem/step_20/result.json").unlink()
    for name in ("60", "damaged-50", "80.saving"):
        write(run / f"students/remem/step_20/checkpoints/{name}/array")

    gone = removed(run)

    assert gone == {
        "students/remem/step_10/checkpoints",
        "students/remem/step_20/checkpoints/damaged-50",
        "students/remem/step_20/checkpoints/80.saving",
    }
    assert "not finished" in capsys.readouterr().out


def test_a_run_that_trains_longer_keeps_its_models(tmp_path: pathlib.Path) -> None:
    run = make_run(tmp_path / "run", budget=True)
    write(run / "budget.json", {"stages": [1, 2, 3]})

    assert removed(run) == set()


def test_models_that_are_newer_than_the_results_stay(run: pathlib.Path) -> None:
    new = run / "students/remem/longer_2/best"
    write(new / "student_0/array")
    os.utime(run / "results.json", ns=(1, 1))
    for path in (run / "students/remem/step_10/best", run / "teachers/remem/step_10/params"):
        os.utime(path, ns=(1, 1))

    assert removed(run) == {"students/remem/step_10/best", "teachers/remem/step_10/params"}


def test_students_of_a_method_that_was_not_tested_stay(run: pathlib.Path) -> None:
    (run / "selected/remem.json").unlink()

    assert not removed(run) & STUDENTS


def test_nothing_is_removed_in_a_dry_run(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert removed(run, "--dry-run", "--all") == set()

    assert "would be freed" in capsys.readouterr().out


def test_the_sizes_are_those_of_the_files(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cleaning.size(run)
    items = cleaning.of_run(run)

    freed = cleaning.remove(items)

    assert freed == sum(item.bytes for item in items) == before - cleaning.size(run)
    assert 400_000 <= freed <= 500_000
    assert cleaning.usage(run) == {"bytes": cleaning.size(run), "removable": 0}


def test_links_are_neither_followed_nor_removed(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    foreign = write(tmp_path / "foreign/best/student_0/array").parents[1]
    (run / "students/remem/linked").symlink_to(foreign.parent)
    (run / "students/remem/step_30").mkdir()
    (run / "students/remem/step_30/best").symlink_to(foreign)

    removed(run)

    assert (foreign / "student_0/array").exists()
    assert (run / "students/remem/step_30/best").is_symlink()


def test_a_folder_of_others_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    (run / ".remem_jax").unlink()

    assert clean.main([str(run)]) == 1

    assert "is not the folder of a run or a study" in capsys.readouterr().err
    assert all((run / name).exists() for name in STUDENTS)


def test_a_running_run_is_refused(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locks.held(run / "lock"):
        assert clean.main([str(run)]) == 1

    assert "A process is running in" in capsys.readouterr().err
    assert all((run / name).exists() for name in STUDENTS)


def test_the_trials_of_a_study_are_cleaned(tmp_path: pathlib.Path) -> None:
    study = tmp_path / "study"
    write(study / ".remem_jax", b"")
    make_run(study / "trials/0123abcd")
    write(study / "trials/foreign/students/remem/best/array")

    gone = removed(study)

    assert gone == {
        f"trials/0123abcd/{name}"
        for name in (*STUDENTS, *(f"teachers/remem/step_{step}/params" for step in (10, 20)))
    }


def test_a_folder_or_the_cache_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean.main([]) == 1

    assert "needs the folder of a run, or --cache" in capsys.readouterr().err


# The cache.


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    return files.cache()


def test_the_cache_keeps_weights_and_what_is_not_ours(cache: pathlib.Path) -> None:
    entry, other = cache / "data" / ("a" * 24), cache / "data" / ("b" * 24)
    ours = [
        write(entry / "pixels.bin"),
        write(entry.with_suffix(".lock"), b""),
        write(other.with_suffix(".partial") / "pixels.bin"),
        write(cache / "outputs/0123456789abcdef/outputs.bin"),
        write(cache / "compiled/jit_step-0123-cache"),
        write(cache / "compiled/jit_step-0123-atime", b""),
    ]
    kept = [
        write(cache / "weights/augreg/Ti_16.npz"),
        write(cache / "data/mine.txt"),
        write(cache / "compiled/mine.txt"),
        write(cache / "mine.txt"),
    ]

    assert clean.main(["--cache", "--dry-run"]) == 0
    assert all(path.exists() for path in ours)
    assert clean.main(["--cache"]) == 0

    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in kept)


def test_images_that_are_being_decoded_stay(cache: pathlib.Path) -> None:
    entry = cache / "data" / ("a" * 24)
    write(entry.with_suffix(".partial") / "pixels.bin")
    lock = write(entry.with_suffix(".lock"), b"")

    with locks.held(lock):
        assert clean.main(["--cache"]) == 0

    assert (entry.with_suffix(".partial") / "pixels.bin").exists()
    assert lock.exists()


def test_an_empty_cache_is_no_error(
    cache: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean.main(["--cache"]) == 0

    assert "nothing to remove" in capsys.readouterr().out
    assert not cache.exists()


def test_sparse_files_count_as_what_they_take(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "outputs.bin").open("wb") as file:
        file.truncate(10**9)

    assert cleaning.size(tmp_path / "outputs.bin") < 10**6
