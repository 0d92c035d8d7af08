"""Damaged, truncated or missing checkpoints are never loaded and always reported."""

import logging
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from remem_jax.checks import SettingError
from remem_jax.storage import checkpoints, checksums
from tests import forking


def _tree(value: float) -> dict[str, jax.Array]:
    return {"weight": jnp.full((4, 2), value), "step": jnp.int32(value)}


def _flip(path: pathlib.Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


DAMAGES = pytest.mark.parametrize(
    "damage", [_flip, _truncate, _empty, pathlib.Path.unlink], ids=lambda damage: damage.__name__
)
Damage = Callable[[pathlib.Path], None]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(paths) > 8  # Arrays, metadata and checksums.
    return paths


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with checkpoints of steps 1 and 2 and one saved tree; tests must not change it."""
    folder = tmp_path_factory.mktemp("sound")
    with checkpoints.Checkpoints(folder / "steps", keep=2) as directory:
        for step in (1, 2):
            directory.save(step, _tree(step), note={"seconds": step})
    checkpoints.save_tree(folder / "part" / "tree", _tree(3))
    return folder


@DAMAGES
def test_damage_to_any_file_is_reported_and_the_previous_checkpoint_is_used(
    sound: pathlib.Path, tmp_path: pathlib.Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    for number, file in enumerate(_files(sound / "steps" / "2")):
        copy = shutil.copytree(sound / "steps", tmp_path / str(number))
        damage(copy / "2" / file)
        caplog.clear()

        with checkpoints.Checkpoints(copy, keep=2) as directory:
            newest = directory.newest()
            restored, note = directory.restore(1, _tree(0))

        assert newest == 1, file
        assert (restored["weight"] == 1).all()
        assert note == {"seconds": 1}
        assert str(copy / "2" / file) in caplog.text
        assert sorted(path.name for path in copy.iterdir()) == ["1", "damaged-2"]


@DAMAGES
def test_damage_to_any_file_of_a_requested_step_is_an_error(
    sound: pathlib.Path, tmp_path: pathlib.Path, damage: Damage
) -> None:
    for number, file in enumerate(_files(sound / "steps" / "2")):
        copy = shutil.copytree(sound / "steps", tmp_path / str(number))
        damage(copy / "2" / file)

        with (
            checkpoints.Checkpoints(copy, keep=2) as directory,
            pytest.raises(SettingError, match=str(copy / "2" / file)),
        ):
            directory.restore(2, _tree(0))


@DAMAGES
def test_damage_to_any_file_of_a_tree_is_an_error(
    sound: pathlib.Path, tmp_path: pathlib.Path, damage: Damage
) -> None:
    for number, file in enumerate(_files(sound / "part" / "tree")):
        copy = shutil.copytree(sound / "part" / "tree", tmp_path / str(number))
        damage(copy / file)

        with pytest.raises(SettingError, match=str(copy / file)):
            checkpoints.load_tree(copy, _tree(0))


def test_the_error_names_the_folder_to_remove(sound: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stage = tmp_path / "teachers" / "remem"
    folder = shutil.copytree(sound / "part" / "tree", stage / "step_10" / "params")
    (stage / "result.json").write_text("{}")
    _empty(folder / "manifest.ocdbt")

    with pytest.raises(SettingError, match=f"remove {stage}; the same command makes it again"):
        checkpoints.load_tree(folder, _tree(0))


def test_a_missing_tree_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=f"remove {tmp_path}; the same command"):
        checkpoints.load_tree(tmp_path / "tree", _tree(0))


def test_there_is_no_newest_checkpoint_if_all_are_damaged(
    sound: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(sound / "steps", tmp_path / "steps")
    for step in ("1", "2"):
        _flip(copy / step / "_METADATA")

    with checkpoints.Checkpoints(copy, keep=2) as directory:
        assert directory.newest() is None

    assert "starting from the beginning" in caplog.text


def test_an_undamaged_checkpoint_is_not_reported(
    sound: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(sound / "steps", tmp_path / "steps")

    with checkpoints.Checkpoints(copy, keep=2) as directory:
        assert directory.newest() == 2

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_step_can_be_saved_and_damaged_again(sound: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = shutil.copytree(sound / "steps", tmp_path / "steps")

    for _ in range(3):
        _flip(copy / "2" / "manifest.ocdbt")
        with checkpoints.Checkpoints(copy, keep=2) as directory:
            assert directory.newest() == 1
            directory.save(2, _tree(2), note={"seconds": 0.0})

    assert sorted(path.name for path in copy.iterdir()) == [
        *("1", "2", "damaged-2", "damaged-2-1", "damaged-2-2")
    ]


@pytest.mark.parametrize(
    "name", ["3.saving", "3.old", "3.saving.orbax-checkpoint-tmp", "03", "3.partial", "damaged-3"]
)
def test_a_folder_with_another_name_is_not_a_checkpoint(
    sound: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    copy = shutil.copytree(sound / "steps", tmp_path / "steps")
    shutil.copytree(copy / "2", copy / name)

    with checkpoints.Checkpoints(copy, keep=2) as directory:
        assert directory.newest() == 2


def test_a_checkpoint_of_another_tree_is_an_error(sound: pathlib.Path) -> None:
    others = ({**_tree(0), "more": jnp.zeros(1)}, {"step": jnp.int32(0)})
    with checkpoints.Checkpoints(sound / "steps", keep=2) as directory:
        for other in (*others, {**_tree(0), "weight": jnp.zeros((2, 2))}):
            with pytest.raises(SettingError, match=r"steps/2 cannot be used"):
                directory.restore(2, other)


def test_three_checkpoints_are_kept_if_keep_is_three(tmp_path: pathlib.Path) -> None:
    with checkpoints.Checkpoints(tmp_path, keep=3) as directory:
        for step in range(5):
            directory.save(step, _tree(step), note={"seconds": 0.0})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def test_keeping_a_single_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="keep_checkpoints must be at least 2, got 1"):
        checkpoints.Checkpoints(tmp_path, keep=1)


def test_an_array_overwritten_after_saving_is_restored_exactly(tmp_path: pathlib.Path) -> None:
    weight = np.ones((2_000_000,), np.float32)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, {"weight": weight}, note={"seconds": 0.0})
        weight[:] = 2
        directory.wait()
        restored, _ = directory.restore(1, {"weight": weight})

    np.testing.assert_array_equal(restored["weight"], 1.0)


def _fail(number: int) -> Callable[..., None]:
    def write(*args: object) -> None:
        raise OSError(number, "said by the system")

    return write


def test_a_write_error_is_raised_by_the_next_save_and_names_the_safe_step(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, _tree(1), note={"seconds": 0.0})
        directory.wait()
        monkeypatch.setattr(checksums, "finish", _fail(5))
        directory.save(2, _tree(2), note={"seconds": 0.0})

        with pytest.raises(SettingError, match=r"said by the system.*step 1 is safe") as caught:
            directory.save(3, _tree(3), note={"seconds": 0.0})
        monkeypatch.undo()
        newest = directory.newest()

    assert str(tmp_path) in str(caught.value)
    assert newest == 1


def test_a_write_error_is_raised_at_the_end_of_the_block(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "finish", _fail(28))

    with (
        pytest.raises(SettingError, match="no step is safe"),
        checkpoints.Checkpoints(tmp_path, keep=2) as directory,
    ):
        directory.save(1, _tree(1), note={"seconds": 0.0})


def test_a_write_error_does_not_hide_another_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checksums, "finish", _fail(28))

    def save_and_fail() -> None:
        with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
            directory.save(1, _tree(1), note={"seconds": 0.0})
            raise KeyError("another")

    with pytest.raises(KeyError, match="another"):
        save_and_fail()

    assert "no step is safe" in caplog.text


@pytest.mark.parametrize("again", [False, True])
def test_a_deleted_directory_stops_the_run(tmp_path: pathlib.Path, again: bool) -> None:
    folder = tmp_path / "steps"
    with checkpoints.Checkpoints(folder, keep=2) as directory:
        directory.save(1, _tree(1), note={"seconds": 0.0})
        directory.wait()
        folder.rename(tmp_path / "elsewhere")
        if again:
            folder.mkdir()

        with pytest.raises(SettingError, match=f"{folder} cannot be written .*no step is safe"):
            directory.save(2, _tree(2), note={"seconds": 0.0})


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingError, match="Not a directory"):
        checkpoints.Checkpoints(tmp_path / "file" / "steps", keep=2)


@pytest.fixture(scope="module")
def server() -> Iterator[forking.Server]:
    """A server that forks processes."""
    with forking.Server("tests.storage.damage_child") as server:
        yield server


TOO_LARGE = "raise the limit of a file's size (ulimit -f)"


def test_write_errors_of_the_system_are_reported(
    server: forking.Server, tmp_path: pathlib.Path
) -> None:
    process = server.start("tests.storage.damage_child:write_too_much", str(tmp_path))
    out, log = process.communicate(timeout=200)

    assert process.returncode == 0, log
    assert out.splitlines() == [
        f"{tmp_path}/steps cannot be written (File too large): {TOO_LARGE}. "
        "Step 2 is lost, step 1 is safe: the same command goes on there.",
        f"{tmp_path}/tree cannot be written (File too large): {TOO_LARGE}. "
        "The same command goes on from what is safe.",
    ]
    assert not (tmp_path / "tree").exists()
    with checkpoints.Checkpoints(tmp_path / "steps", keep=2) as directory:
        assert directory.newest() == 3


@pytest.mark.slow
def test_a_kill_at_any_moment_keeps_saved_checkpoints(
    server: forking.Server, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_ = random.Random(0)
    safe = 0
    for _ in range(10):
        process = server.start("tests.storage.damage_child:save_for_ever", str(tmp_path))
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        assert int(line) >= safe  # The program has checked the values that it restored.
        process.stdout.readline()
        time.sleep(random_.uniform(0, 0.1))
        process.kill()
        out, _ = process.communicate()
        lines = [text for text in out.splitlines() if text.isdecimal()]
        safe = max(map(int, (line, *lines)))

        with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
            newest = directory.newest()
        assert newest is not None
        assert newest >= safe
    assert "damaged" not in caplog.text


def _sharded(count: int) -> NamedSharding:
    """Returns a sharding of rows over `count` devices."""
    mesh = jax.make_mesh((count,), ("row",), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("row"))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_checkpoint_is_restored_on_a_different_number_of_devices(
    tmp_path: pathlib.Path, before: int, after: int
) -> None:
    rows = jnp.arange(12.0).reshape(4, 3)
    with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
        directory.save(1, {"rows": jax.device_put(rows, _sharded(before))}, note={"seconds": 0.0})
        directory.wait()
        like = jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=_sharded(after))
        restored, _ = directory.restore(1, {"rows": like})

    assert restored["rows"].sharding == _sharded(after)
    np.testing.assert_array_equal(restored["rows"], rows)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_tree_is_restored_by_a_process_with_other_devices(
    server: forking.Server, tmp_path: pathlib.Path, devices: int
) -> None:
    rows = jax.device_put(jnp.arange(12.0).reshape(4, 3), _sharded(2))
    last = jax.device_put(rows, jax.devices()[1])  # Some processes lack this device.
    checkpoints.save_tree(tmp_path / "tree", {"rows": rows, "whole": last})

    process = server.start(
        "tests.storage.damage_child:restore_on_devices", str(tmp_path / "tree"), devices
    )
    out, log = process.communicate(timeout=200)

    assert process.returncode == 0, log
    assert out.strip() == str([devices, 1])
