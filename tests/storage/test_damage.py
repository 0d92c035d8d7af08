"""Checkpoints that were damaged, cut short or lost: never loaded, always told."""

import logging
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from remem_jax.checks import SettingError
from remem_jax.storage import checkpoints, checksums

ROOT = pathlib.Path(__file__).parents[2]


def _tree(value: float) -> dict[str, jax.Array]:
    return {"weight": jnp.full((4, 2), value), "step": jnp.int32(value)}


def _flip(path: pathlib.Path) -> None:
    """Flips one bit in the middle."""
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
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(found) > 8  # Arrays, what describes them, and the checksums.
    return found


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the checkpoints of steps 1 and 2, and one saved tree; not to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    with checkpoints.Checkpoints(folder / "steps", keep=2) as directory:
        for step in (1, 2):
            directory.save(step, _tree(step), note={"seconds": step})
    checkpoints.save_tree(folder / "part" / "tree", _tree(3))
    return folder


@DAMAGES
def test_damage_to_any_file_is_told_and_the_checkpoint_before_is_used(
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
def test_damage_to_any_file_is_an_error_where_the_step_is_asked_for(
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


def test_the_error_says_which_part_to_remove(sound: pathlib.Path, tmp_path: pathlib.Path) -> None:
    part = tmp_path / "teachers" / "remem"
    folder = shutil.copytree(sound / "part" / "tree", part / "step_10" / "params")
    (part / "result.json").write_text("{}")
    _empty(folder / "manifest.ocdbt")

    with pytest.raises(SettingError, match=f"remove {part}; the same command makes it again"):
        checkpoints.load_tree(folder, _tree(0))


def test_a_tree_that_is_not_there_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=f"remove {tmp_path}; the same command"):
        checkpoints.load_tree(tmp_path / "tree", _tree(0))


def test_nothing_is_left_when_all_are_damaged(
    sound: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(sound / "steps", tmp_path / "steps")
    for step in ("1", "2"):
        _flip(copy / step / "_METADATA")

    with checkpoints.Checkpoints(copy, keep=2) as directory:
        assert directory.newest() is None

    assert "starting from the beginning" in caplog.text


def test_a_sound_checkpoint_is_not_reported(
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
def test_a_folder_of_another_name_is_no_checkpoint(
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


def test_three_are_kept_where_three_are_asked_for(tmp_path: pathlib.Path) -> None:
    with checkpoints.Checkpoints(tmp_path, keep=3) as directory:
        for step in range(5):
            directory.save(step, _tree(step), note={"seconds": 0.0})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def test_one_alone_is_never_kept(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="keep_checkpoints must be at least 2, got 1"):
        checkpoints.Checkpoints(tmp_path, keep=1)


def test_what_is_written_over_after_saving_is_restored_as_it_was(tmp_path: pathlib.Path) -> None:
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


def test_an_error_while_writing_comes_at_the_next_save_and_names_what_is_safe(
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


def test_an_error_while_writing_comes_when_the_block_ends(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "finish", _fail(28))

    with (
        pytest.raises(SettingError, match="no step is safe"),
        checkpoints.Checkpoints(tmp_path, keep=2) as directory,
    ):
        directory.save(1, _tree(1), note={"seconds": 0.0})


def test_an_error_while_writing_hides_no_other(
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
def test_a_lost_directory_stops_the_run(tmp_path: pathlib.Path, again: bool) -> None:
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


def _run(program: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


_WRITE_TOO_MUCH = """
    import pathlib, resource, signal, sys
    import jax, jax.numpy as jnp
    from remem_jax import checks
    from remem_jax.storage import checkpoints

    # Real errors of the system, as on a full disk: files may have 100 kB, and no more.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    small, large = jnp.ones(10), jax.random.uniform(jax.random.key(0), (100_000,))
    folder = pathlib.Path(sys.argv[1])
    with checkpoints.Checkpoints(folder / "steps", keep=2) as directory:
        directory.save(1, {"weight": small}, note={"seconds": 0.0})
        directory.save(2, {"weight": large}, note={"seconds": 0.0})
        try:
            directory.wait()
        except checks.SettingError as error:
            print(error)
        directory.save(3, {"weight": small}, note={"seconds": 0.0})
    try:
        checkpoints.save_tree(folder / "tree", {"weight": large})
    except checks.SettingError as error:
        print(error)
"""


TOO_LARGE = "raise the limit of a file's size (ulimit -f)"


def test_what_the_system_does_not_write_is_told(tmp_path: pathlib.Path) -> None:
    process = _run(_WRITE_TOO_MUCH, tmp_path)
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


_SAVE_FOR_EVER = """
    import itertools, pathlib, sys
    import jax.numpy as jnp
    from remem_jax.storage import checkpoints

    with checkpoints.Checkpoints(pathlib.Path(sys.argv[1]), keep=2) as directory:
        newest = directory.newest() or 0
        if newest:
            tree, note = directory.restore(newest, {"weight": jnp.zeros(1000)})
            assert (tree["weight"] == newest).all() and note["seconds"] == newest
        print(newest, flush=True)
        for step in itertools.count(newest + 1):
            tree = {"weight": jnp.full((1000,), float(step))}
            directory.save(step, tree, note={"seconds": float(step)})
            if step > newest + 2:
                print(step - 1, flush=True)  # The save before has been waited for.
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_what_was_saved(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_ = random.Random(0)
    safe = 0
    for _ in range(10):
        process = _run(_SAVE_FOR_EVER, tmp_path)
        assert process.stdout is not None
        found = process.stdout.readline()
        assert found, process.communicate()[1]
        assert int(found) >= safe  # The program has checked what it restored.
        process.stdout.readline()
        time.sleep(random_.uniform(0, 0.1))
        process.kill()
        out, _ = process.communicate()
        lines = [line for line in out.splitlines() if line.isdecimal()]
        safe = max(map(int, (found, *lines)))

        with checkpoints.Checkpoints(tmp_path, keep=2) as directory:
            newest = directory.newest()
        assert newest is not None
        assert newest >= safe
    assert "damaged" not in caplog.text


def _sharded(count: int) -> NamedSharding:
    """Rows divided over so many devices."""
    mesh = jax.make_mesh((count,), ("row",), devices=jax.devices()[:count])
    return NamedSharding(mesh, PartitionSpec("row"))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_checkpoint_is_restored_on_another_number_of_devices(
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


_RESTORE_ON_DEVICES = """
    import pathlib, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
    from remem_jax.storage import checkpoints

    rows = NamedSharding(jax.make_mesh((jax.device_count(),), ("row",)), PartitionSpec("row"))
    like = {
        "rows": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=rows),
        "whole": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    }
    tree = checkpoints.load_tree(pathlib.Path(sys.argv[1]), like)
    for leaf in tree.values():
        np.testing.assert_array_equal(leaf, np.arange(12.0).reshape(4, 3))
    print([len(leaf.devices()) for leaf in tree.values()])
"""


@pytest.mark.parametrize("devices", [1, 4])
def test_a_tree_is_restored_by_a_process_with_other_devices(
    tmp_path: pathlib.Path, devices: int
) -> None:
    rows = jax.device_put(jnp.arange(12.0).reshape(4, 3), _sharded(2))
    last = jax.device_put(rows, jax.devices()[1])  # A device that one process does not have.
    checkpoints.save_tree(tmp_path / "tree", {"rows": rows, "whole": last})

    process = _run(_RESTORE_ON_DEVICES, tmp_path / "tree", devices)
    out, log = process.communicate(timeout=200)

    assert process.returncode == 0, log
    assert out.strip() == str([devices, 1])
