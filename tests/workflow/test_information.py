"""Information of teachers: joint measurement, and resuming after a kill."""

import json
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from remem_jax import mesh, models, random_streams
from remem_jax.analysis import mutual_information
from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.random_streams import Stage
from remem_jax.records import Batch, Batches
from remem_jax.storage import results
from remem_jax.train import loop
from remem_jax.workflow import context, memory_plan, training
from remem_jax.workflow.analysis import inputs
from remem_jax.workflow.analysis import pipeline as analysis_pipeline
from remem_jax.workflow.information import decoders, measurement
from remem_jax.workflow.remem import finetune
from remem_jax.workflow.remem import pipeline as remem_pipeline
from tests import tiny_run
from tests.workflow.conftest import SIDE, SIZE, Lab, save_vit

pytestmark = pytest.mark.usefixtures("resnet4")
PART = "information/measured"
EVALUATED = 287  # Images of validation.


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Readers of as many teachers are compiled once; a function compiled says nothing of a kill."""
    made: dict[str, Any] = {}
    jit_step = context.Run.jit_step

    def once(run: context.Run, step: Any, shapes: Any) -> Any:
        of = run.config.information.to_json_best_effort(sort_keys=True)
        if (key := f"{step.__qualname__} {of}") not in made:
            made[key] = jit_step(run, step, shapes)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.Run, "jit_step", once)
        yield


@pytest.fixture(scope="module")
def teachers(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> list[decoders.Teacher]:
    """The two of the laboratory."""
    run = lab.run(tmp_path_factory.mktemp("teachers"))
    return [analysis_pipeline._teacher(run, one) for one in inputs.load(run)]


def _measure(run: context.Run, teachers: Sequence[decoders.Teacher]) -> dict[str, Any]:
    return measurement.measure(run, PART, lambda: teachers)


@pytest.fixture(scope="module")
def noted(
    lab: Lab, teachers: list[decoders.Teacher], tmp_path_factory: pytest.TempPathFactory
) -> tuple[context.Run, dict[str, Any], list[str]]:
    """Both teachers, measured without a break, and which splits were read."""
    run, read = lab.run(tmp_path_factory.mktemp("uninterrupted")), []

    def evaluation(split: str, batch_size: int) -> Batches:
        read.append(split)
        return run.loader.evaluation(split, batch_size)

    loader = run.loader._replace(evaluation=evaluation)
    return run, _measure(run._replace(loader=loader), teachers), read


@pytest.fixture(scope="module")
def whole(
    noted: tuple[context.Run, dict[str, Any], list[str]],
) -> tuple[context.Run, dict[str, Any]]:
    """The run, and what was measured."""
    return noted[:2]


def test_each_evaluation_reads_validation_once(
    noted: tuple[context.Run, dict[str, Any], list[str]],
) -> None:
    assert noted[2] == ["validation"] * noted[0].config.information.evaluations


def _require_same(found: Any, expected: Any) -> None:
    """Two records, but for what another order of sums changes."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            _require_same(found[name], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            _require_same(one, other)
    else:
        assert found == (expected if expected is None else pytest.approx(expected, rel=1e-5))


def test_a_record_is_the_statistics_of_its_seeds(whole: tuple[context.Run, dict[str, Any]]) -> None:
    run, found = whole

    for record in found["teachers"]:
        seeds = record["seeds"]
        assert [one["seed"] for one in seeds] == [0, 1]
        assert seeds[0]["excess"] != seeds[1]["excess"]
        for name in ("loss", "floor", "excess", "slope"):
            assert record[name] == pytest.approx(statistics.fmean(one[name] for one in seeds))
        spread = statistics.stdev(one["excess"] for one in seeds)
        assert record["deviation"] == pytest.approx(spread)
        for one in seeds:
            assert one["excess"] == pytest.approx(one["loss"] - one["floor"])
            (a, b), last = (loss for _, loss in one["curve"][-2:]), one["curve"][-1]
            assert (last[0], record["last"]) == (run.config.information.steps, 2)
            assert one["slope"] == pytest.approx(b - a)
            assert last[1] == pytest.approx(one["loss"])
        assert record["images"] == EVALUATED
        assert record["info_nce"]["batch"] == 64
        # A sum over the blocks of an image, of a bound that is at most log(batch).
        assert record["info_nce"]["deviation"] > 0


def test_the_lower_bound_is_the_entropy_of_the_images(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    run, found = whole
    (batch,) = run.loader.evaluation("validation", EVALUATED)
    transform = jax.jit(lambda image: run.loader.evaluation_transform(jax.random.key(0), image))
    seen = np.clip((np.asarray(transform(batch.image), np.float64) + 1) / 2, 0, 1)
    some = np.where((seen > 0) & (seen < 1), seen, 0.5)
    entropies = -(some * np.log(some) + (1 - some) * np.log(1 - some))

    floor = np.where((seen > 0) & (seen < 1), entropies, 0).mean()

    for record in found["teachers"]:
        assert record["floor"] == pytest.approx(floor, rel=1e-4)


def test_saved_arrays_are_consistent_with_the_numbers(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    run, found = whole

    with np.load(run.workdir / PART / measurement.PICTURES) as arrays:
        assert arrays["images"].shape == (4, SIDE, SIDE, 3)
        for number, record in enumerate(found["teachers"]):
            first = record["seeds"][0]
            assert arrays[f"pixel_excess_{number}"].mean() == pytest.approx(
                first["excess"], rel=1e-3
            )
            assert arrays[f"image_losses_{number}"].mean() == pytest.approx(first["loss"], rel=1e-4)
            assert len(arrays[f"image_losses_{number}"]) == EVALUATED
            # The loss of a picture that is kept is the cross-entropy of its reconstruction.
            image, decoded = arrays["images"][2], arrays[f"reconstructions_{number}"][2]
            loss = -(image * np.log(decoded) + (1 - image) * np.log(1 - decoded)).mean()
            assert arrays[f"image_losses_{number}"][2] == pytest.approx(loss, rel=1e-3)


def _killed(name: str) -> Callable[..., None]:
    """Writes for all, up to a file of this name."""
    write = results.write_for_all

    def writing(path: pathlib.Path, content: Any) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write(path, content)

    return writing


def test_a_measurement_killed_after_its_last_step_resumes_to_the_same_numbers(
    lab: Lab,
    whole: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = lab.run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_for_all", _killed("result.json"))
        with pytest.raises(KeyboardInterrupt):
            _measure(run, teachers)
    (run.workdir / PART / "last.json").unlink()

    found = _measure(run, teachers)

    _require_same(found["teachers"], whole[1]["teachers"])
    assert not (run.workdir / PART / training.CHECKPOINTS).exists()


def test_a_stopped_measurement_resumes_to_the_same_numbers(
    lab: Lab,
    whole: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    run = lab.run(tmp_path)
    run.config.save_every = 100
    with pytest.raises(loop.StoppedError, match="step 1 of 3"):
        _measure(run._replace(stopping=lambda: True), teachers)

    found = _measure(run, teachers)

    _require_same(found["teachers"], whole[1]["teachers"])


def test_a_finished_measurement_is_only_read(whole: tuple[context.Run, dict[str, Any]]) -> None:
    run, found = whole

    def load() -> list[decoders.Teacher]:
        raise AssertionError("This was done before.")

    assert measurement.measure(run, PART, load) == found


def test_each_teacher_is_measured_as_if_it_were_alone(
    lab: Lab,
    whole: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    (found,) = _measure(lab.run(tmp_path), teachers[1:])["teachers"]

    _require_same(found, whole[1]["teachers"][1])
    assert found["loss"] != whole[1]["teachers"][0]["loss"]


def test_each_teacher_has_separate_decoders(
    lab: Lab,
    whole: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    found = _measure(lab.run(tmp_path), teachers[::-1])["teachers"]

    _require_same(found[::-1], whole[1]["teachers"])


def _never(*_: Any) -> list[decoders.Teacher]:
    raise AssertionError("No work should have begun.")


def test_a_batch_larger_than_validation_is_rejected_before_any_work(
    lab: Lab, tmp_path: pathlib.Path
) -> None:
    run = lab.run(tmp_path)
    run.config.information.batch_size = EVALUATED + 1

    with pytest.raises(
        SettingError, match=r"information\.batch_size must be at most 287, the images"
    ):
        measurement.measure(run, PART, _never)


def test_a_run_rejects_what_it_cannot_measure_before_any_work(
    lab: Lab, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _remem_run(lab, tmp_path)
    monkeypatch.setattr(remem_pipeline, "_outcome", _never)
    run.config.information.info_nce.measured, run.config.information.info_nce.grid = True, 4

    with pytest.raises(SettingError, match=r"grid must divide the 2 x 2 grid of tokens; got 4"):
        remem_pipeline.run_remem(run)
    run.config.information.batch_size = EVALUATED + 1
    with pytest.raises(SettingError, match=r"information\.batch_size"):
        remem_pipeline.run_remem(run)


@pytest.mark.parametrize("title", ["b", "a"])
def test_features_of_two_sizes_are_rejected(
    lab: Lab, teachers: list[decoders.Teacher], tmp_path: pathlib.Path, title: str
) -> None:
    """Also of two teachers of one name."""
    wide = save_vit(tmp_path / "wide.npz", vit.Size(patch=8, features=24, depth=1, heads=2), 0)
    run = lab.run(tmp_path)
    run.config.models.model_1.teacher.init = str(wide)
    run.config.models.model_1.title = title
    other = analysis_pipeline._teacher(run, inputs.load(run)[1])

    with pytest.raises(SettingError, match=rf"a: \(2, 2, 16\), {title}: \(2, 2, 24\)"):
        _measure(run, [teachers[0], other])


def test_features_have_a_size_where_devices_share_a_batch(lab: Lab, tmp_path: pathlib.Path) -> None:
    on = mesh.make_mesh(jax.devices()[:2])
    run = lab.run(tmp_path, mesh=on)
    model: Any = models.make("vit", variant=SIZE, classes=3)
    patches = jax.jit(
        models.teacher_apply(model, ("patches",)), out_shardings=mesh.batch_sharding(on)
    )
    variables = models.init(model, jax.random.key(0), SIDE)

    found = decoders._feature_size(run, [decoders.Teacher("a", patches, variables)])

    assert found == (SIDE // SIZE.patch, SIZE.features)


def test_no_more_pictures_are_kept_than_there_are_images(
    lab: Lab, tmp_path: pathlib.Path, teachers: list[decoders.Teacher]
) -> None:
    """What only fills up a batch is no image."""
    run = lab.run(tmp_path)
    run.config.information.pictures = EVALUATED + 5
    images = np.zeros((EVALUATED + 20, SIDE, SIDE, 3), np.float32)
    found = mutual_information.Reconstruction(
        1.0, 0.5, 0.5, np.zeros(EVALUATED), np.zeros(EVALUATED), np.zeros((SIDE, SIDE))
    )
    own = decoders.make(run, teachers[:1])
    mask = jax.numpy.arange(len(images)) < EVALUATED
    shown = mutual_information.HeldOutBatch(jax.numpy.asarray(images), mask)
    last = measurement._Last(run, own, own.first())
    last.add(0, own.features[0](shown.images), shown)

    kept = last.pictures([found])

    assert len(kept["images"]) == len(kept["reconstructions_0"]) == EVALUATED


def test_decoders_are_planned_by_their_memory(
    lab: Lab, teachers: list[decoders.Teacher], tmp_path: pathlib.Path
) -> None:
    run = lab.run(tmp_path)
    step = decoders.planned_step(run, PART, teachers)

    held, running = step.needs(memory_plan.Plan())

    states = decoders.make(run, teachers).first()
    kept = jax.tree.leaves((states, [one.variables for one in teachers]))
    # Images, their targets, and 2 x 2 tokens of 16 features.
    of_one = 2 * SIDE * SIDE * 3 + 2 * 2 * 16
    assert (
        held == sum(leaf.nbytes for leaf in kept) + run.config.information.batch_size * 4 * of_one
    )
    assert running > 0
    stored = [step.traced(plan).stored for plan in step.plans]
    assert stored == sorted(set(stored), reverse=True)
    assert len(stored) == 3


def _remem_run(lab: Lab, workdir: pathlib.Path) -> context.Run:
    """A run of one method whose teachers are measured."""
    config = tiny_run.get_config()
    config.methods = ("finetune",)
    config.data.image_size = SIDE
    config.teacher.variant, config.teacher.init = "", str(lab.checkpoints[0])
    config.teacher.batch_size = config.student.batch_size = 8
    config.teacher.steps, config.teacher.warmup_steps = (1, 2), 0
    config.student.steps, config.student.warmup_steps, config.student.evaluations = 2, 0, 1
    config.student.learning_rates = (0.1,)
    config.information.seeds = (0,)
    config.information.steps = config.information.evaluations = 2
    config.information.info_nce.measured = False
    return lab.run(workdir, config)


class Watched(NamedTuple):
    """A finished run whose teachers were measured.

    Attributes:
        run: The run.
        labels: Of the first batch of each training: the stage, and the labels.
        keys: Data of the keys of all training views.
    """

    run: context.Run
    labels: list[tuple[Stage, list[int]]]
    keys: list[list[int]]


@pytest.fixture(scope="module")
def watched(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A finished run whose teachers were measured, and what it saw."""
    run = _remem_run(lab, tmp_path_factory.mktemp("measured"))
    loader, first_labels, keys = run.loader, [], []

    def train(batch_size: int, first_step: int, *, stage: Stage) -> Iterator[Batch]:
        for number, batch in enumerate(loader.train(batch_size, first_step, stage=stage)):
            if not number:
                first_labels.append((stage, batch.label.tolist()))
            yield batch

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        words = jax.random.key_data(key)
        jax.debug.callback(lambda words: keys.append(words.tolist()), words)
        return loader.train_transform(key, images)

    run = run._replace(loader=loader._replace(train=train, train_transform=transform))
    remem_pipeline.run_remem(run)
    jax.effects_barrier()
    return Watched(run, first_labels, keys)


@pytest.fixture(scope="module")
def measured(watched: Watched) -> context.Run:
    """The run."""
    return watched.run


@pytest.mark.slow
def test_the_teachers_of_a_run_are_measured_if_requested(measured: context.Run) -> None:
    found = json.loads((measured.workdir / "results.json").read_text())

    assert [one["step"] for one in found["teachers"]] == [1, 2]
    first, second = (one["information"] for one in found["teachers"])
    assert first["excess"] != second["excess"]
    assert (first["deviation"], first["info_nce"]) == (None, None)
    assert found["seconds"]["information/finetune"] > 0


@pytest.mark.slow
def test_the_report_of_a_run_shows_the_information_plane(measured: context.Run) -> None:
    names = {path.name for path in (measured.workdir / "figures").iterdir()}

    assert names == {f"information_plane.{form}" for form in ("png", "svg", "csv")}
    for name in ("report.html", "report.md"):
        text = (measured.workdir / name).read_text()
        assert "Information of the teachers, on validation" in text
    assert "Information plane." in (measured.workdir / "report.html").read_text()


@pytest.mark.slow
def test_teachers_students_and_decoders_have_independent_orders_of_images(
    watched: Watched,
) -> None:
    orders: dict[str, set[tuple[int, ...]]] = {}
    for stage, labels in watched.labels:
        orders.setdefault(stage, set()).add(tuple(labels[:8]))

    assert set(orders) == {"teacher", "student", "decoder"}
    assert all(len(own) == 1 for own in orders.values())  # Students of two teachers.
    assert len(set.union(*orders.values())) == 3


@pytest.mark.slow
def test_augmentation_depends_only_on_the_stage_and_the_step(watched: Watched) -> None:
    stages: list[Stage] = ["teacher", "student", "student", "decoder"]  # Of two teachers.

    keys = [random_streams.key(0, stage, step) for stage in stages for step in (0, 1)]

    assert sorted(watched.keys) == sorted(jax.random.key_data(key).tolist() for key in keys)


def test_no_teacher_is_measured_unless_requested(
    lab: Lab, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _remem_run(lab, tmp_path)
    run.config.information.seeds = ()
    monkeypatch.setattr(measurement, "measure", _never)
    records, seconds = [{"step": 1}, {"step": 2}], dict[str, float]()
    unused: list[Any] = [None] * len(finetune.Teachers._fields)
    teachers = finetune.Teachers._make(unused)._replace(records=records)

    assert remem_pipeline._information(run, teachers, seconds) == [(one, {}) for one in records]
    assert seconds == {}
