"""What a run takes of memory, before it runs: against what its arrays are known to take."""

import pathlib
from collections.abc import Iterator

import jax
import pytest

from configs import quickstart
from remem_jax import mesh, models
from remem_jax.checks import SettingError
from remem_jax.data import device
from remem_jax.storage import logs
from remem_jax.train import compiling
from remem_jax.weights import augreg
from remem_jax.workflow import classroom as classrooms
from remem_jax.workflow import finetune, parts, plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mixed_dtypes")]
BATCH = 8


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Iterator[parts.Run]:
    """A small run with one method."""
    model = models.make("vit", variant="Pico/8", classes=3)
    augreg.save(tmp_path / "pico.npz", models.init(model, jax.random.key(0), 16)["params"])
    config = quickstart.get_config()
    config.methods = ("finetune",)
    config.data.image_size = 16
    config.teacher.init = str(tmp_path / "pico.npz")
    config.teacher.batch_size = config.student.batch_size = BATCH
    on = mesh.make_mesh(jax.devices()[:1])
    dataset, feed = parts.load_data(config, config.data, on)
    with logs.RunLog(tmp_path) as log:
        yield parts.Run(
            config, tmp_path, dataset, feed, log, lambda: False, compiling.Counter(), on
        )


def test_a_run_takes_what_its_states_do_and_is_refused_where_there_is_less(
    run: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained, classroom = finetune.read_pretrained(run), classrooms.make(run)

    teacher, students = plan.show(run, pretrained, classroom)

    # SGD with momentum keeps two arrays for each parameter; an image of 8 x 8 pixels has 192 bytes.
    params = sum(
        leaf.nbytes
        for leaf in jax.tree.leaves(finetune.start(run, pretrained, "finetune").trainable)
    )
    assert teacher.at_rest == pytest.approx(2 * params + BATCH * 192, rel=1e-3)
    student = sum(leaf.nbytes for leaf in jax.tree.leaves(classroom.first(0)["params"]))
    assert students.at_rest == pytest.approx(2 * 2 * student + params, rel=0.02)  # And statistics.
    assert min(teacher.running, students.running) > 0
    assert students.models == 2
    assert run.dataset.resident_bytes == 1797 * 192

    # As many students at once as fit; no run where not one does, or fewer than are asked for.
    monkeypatch.setattr(device, "memory", lambda: students.at_rest)
    assert [need.models for need in plan.show(run, pretrained, classroom)] == [1, 1]
    run.config.student.group = 2
    with pytest.raises(SettingError, match=r"students/finetune and the data set take.*batch_size"):
        plan.show(run, pretrained, classroom)
    run.config.student.group = 0
    monkeypatch.setattr(device, "memory", lambda: students.held)
    with pytest.raises(SettingError, match=r"A student of students/finetune does not fit"):
        plan.show(run, pretrained, classroom)
