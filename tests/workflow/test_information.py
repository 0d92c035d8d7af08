"""The information of teachers: joint measurement and resuming after a kill."""

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
from remem_jax.workflow.remem import outcome as remem_outcome
from remem_jax.workflow.remem import pipeline as remem_pipeline
from tests import tiny_run
from tests.workflow.conftest import SIDE, SIZE, Shared, save_vit

pytestmark = pytest.mark.usefixtures("resnet4")
STAGE = "information/measured"
EVALUATED = 287  # The number of validation images.


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Compiles the step once per number of teachers; compilation does not affect resuming."""
    made: dict[str, Any] = {}
    jit_step = context.Run.jit_step

    def once(run: context.Run, step: Any, shapes: Any) -> Any:
        settings = run.config.information.to_json_best_effort(sort_keys=True)
        if (key := f"{step.__qualname__} {settings}") not in made:
            made[key] = jit_step(run, step, shapes)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.Run, "jit_step", once)
        yield


@pytest.fixture(scope="module")
def teachers(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> list[decoders.Teacher]:
    """The teachers of the two shared checkpoints."""
    run = shared.run(tmp_path_factory.mktemp("teachers"))
    return [analysis_pipeline._teacher(run, subject) for subject in inputs.load(run)]


def _measure(run: context.Run, teachers: Sequence[decoders.Teacher]) -> dict[str, Any]:
    return measurement.measure(run, STAGE, lambda: teachers)


@pytest.fixture(scope="module")
def recorded(
    shared: Shared, teachers: list[decoders.Teacher], tmp_path_factory: pytest.TempPathFactory
) -> tuple[context.Run, dict[str, Any], list[str]]:
    """A run, its uninterrupted measurement of both teachers, and the splits that it read."""
    run, read = shared.run(tmp_path_factory.mktemp("uninterrupted")), []

    def evaluation(split: str, batch_size: int) -> Batches:
        read.append(split)
        return run.loader.evaluation(split, batch_size)

    loader = run.loader._replace(evaluation=evaluation)
    return run, _measure(run._replace(loader=loader), teachers), read


@pytest.fixture(scope="module")
def uninterrupted(
    recorded: tuple[context.Run, dict[str, Any], list[str]],
) -> tuple[context.Run, dict[str, Any]]:
    """A run and its uninterrupted measurement."""
    return recorded[:2]


def test_each_evaluation_reads_validation_once(
    recorded: tuple[context.Run, dict[str, Any], list[str]],
) -> None:
    assert recorded[2] == ["validation"] * recorded[0].config.information.evaluations


def _require_same(actual: Any, expected: Any) -> None:
    """Compares two records up to the order of summation."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            _require_same(actual[name], value)
    elif isinstance(expected, list):
        for item, wanted in zip(actual, expected, strict=True):
            _require_same(item, wanted)
    else:
        assert actual == (expected if expected is None else pytest.approx(expected, rel=1e-5))


def test_a_record_contains_statistics_over_its_seeds(
    uninterrupted: tuple[context.Run, dict[str, Any]],
) -> None:
    run, measured = uninterrupted

    for record in measured["teachers"]:
        seeds = record["seeds"]
        assert [seed["seed"] for seed in seeds] == [0, 1]
        assert seeds[0]["excess"] != seeds[1]["excess"]
        for name in ("loss", "floor", "excess", "slope"):
            assert record[name] == pytest.approx(statistics.fmean(seed[name] for seed in seeds))
        deviation = statistics.stdev(seed["excess"] for seed in seeds)
        assert record["deviation"] == pytest.approx(deviation)
        for seed in seeds:
            assert seed["excess"] == pytest.approx(seed["loss"] - seed["floor"])
            (a, b), last = (loss for _, loss in seed["curve"][-2:]), seed["curve"][-1]
            assert (last[0], record["last"]) == (run.config.information.steps, 2)
            assert seed["slope"] == pytest.approx(b - a)
            assert last[1] == pytest.approx(seed["loss"])
        assert record["images"] == EVALUATED
        assert record["info_nce"]["batch"] == 64
        # The bound, at most log(batch), is summed over the blocks of an image.
        assert record["info_nce"]["deviation"] > 0


def test_the_lower_bound_is_the_entropy_of_the_images(
    uninterrupted: tuple[context.Run, dict[str, Any]],
) -> None:
    run, measured = uninterrupted
    (batch,) = run.loader.evaluation("validation", EVALUATED)
    transform = jax.jit(lambda image: run.loader.evaluation_transform(jax.random.key(0), image))
    pixels = np.clip((np.asarray(transform(batch.image), np.float64) + 1) / 2, 0, 1)
    inner = np.where((pixels > 0) & (pixels < 1), pixels, 0.5)
    entropies = -(inner * np.log(inner) + (1 - inner) * np.log(1 - inner))

    lower_bound = np.where((pixels > 0) & (pixels < 1), entropies, 0).mean()

    for record in measured["teachers"]:
        assert record["floor"] == pytest.approx(lower_bound, rel=1e-4)


def test_saved_arrays_are_consistent_with_the_numbers(
    uninterrupted: tuple[context.Run, dict[str, Any]],
) -> None:
    run, measured = uninterrupted

    with np.load(run.workdir / STAGE / measurement.PICTURES) as arrays:
        assert arrays["images"].shape == (4, SIDE, SIDE, 3)
        for number, record in enumerate(measured["teachers"]):
            first = record["seeds"][0]
            assert arrays[f"pixel_excess_{number}"].mean() == pytest.approx(
                first["excess"], rel=1e-3
            )
            assert arrays[f"image_losses_{number}"].mean() == pytest.approx(first["loss"], rel=1e-4)
            assert len(arrays[f"image_losses_{number}"]) == EVALUATED
            # The loss of a saved image is the cross-entropy of its reconstruction.
            image, decoded = arrays["images"][2], arrays[f"reconstructions_{number}"][2]
            loss = -(image * np.log(decoded) + (1 - image) * np.log(1 - decoded)).mean()
            assert arrays[f"image_losses_{number}"][2] == pytest.approx(loss, rel=1e-3)


def _killed_at(name: str) -> Callable[..., None]:
    """Returns a writer that is killed at a file of this name."""
    write = results.write_for_all

    def writing(path: pathlib.Path, content: Any) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write(path, content)

    return writing


def test_a_measurement_killed_after_its_last_step_resumes_to_the_same_numbers(
    shared: Shared,
    uninterrupted: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shared.run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_for_all", _killed_at("result.json"))
        with pytest.raises(KeyboardInterrupt):
            _measure(run, teachers)
    (run.workdir / STAGE / "last.json").unlink()

    measured = _measure(run, teachers)

    _require_same(measured["teachers"], uninterrupted[1]["teachers"])
    assert not (run.workdir / STAGE / training.CHECKPOINTS).exists()


def test_a_stopped_measurement_resumes_to_the_same_numbers(
    shared: Shared,
    uninterrupted: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    run = shared.run(tmp_path)
    run.config.save_every = 100
    with pytest.raises(loop.StoppedError, match="step 1 of 3"):
        _measure(run._replace(stopping=lambda: True), teachers)

    measured = _measure(run, teachers)

    _require_same(measured["teachers"], uninterrupted[1]["teachers"])


def test_a_finished_measurement_is_not_repeated(
    uninterrupted: tuple[context.Run, dict[str, Any]],
) -> None:
    run, measured = uninterrupted

    def load() -> list[decoders.Teacher]:
        raise AssertionError("It was finished before.")

    assert measurement.measure(run, STAGE, load) == measured


def test_each_teacher_has_the_same_results_as_alone(
    shared: Shared,
    uninterrupted: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    (alone,) = _measure(shared.run(tmp_path), teachers[1:])["teachers"]

    _require_same(alone, uninterrupted[1]["teachers"][1])
    assert alone["loss"] != uninterrupted[1]["teachers"][0]["loss"]


def test_each_teacher_has_separate_decoders(
    shared: Shared,
    uninterrupted: tuple[context.Run, dict[str, Any]],
    teachers: list[decoders.Teacher],
    tmp_path: pathlib.Path,
) -> None:
    measured = _measure(shared.run(tmp_path), teachers[::-1])["teachers"]

    _require_same(measured[::-1], uninterrupted[1]["teachers"])


def _never(*_: Any) -> list[decoders.Teacher]:
    raise AssertionError("No work should have started.")


def test_a_batch_larger_than_validation_is_rejected_before_any_work(
    shared: Shared, tmp_path: pathlib.Path
) -> None:
    run = shared.run(tmp_path)
    run.config.information.batch_size = EVALUATED + 1

    with pytest.raises(
        SettingError, match=r"information\.batch_size must be at most 287, the images"
    ):
        measurement.measure(run, STAGE, _never)


def test_a_run_rejects_invalid_information_settings_before_any_work(
    shared: Shared, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _remem_run(shared, tmp_path)
    monkeypatch.setattr(remem_pipeline, "_outcome", _never)
    run.config.information.info_nce.measured, run.config.information.info_nce.grid = True, 4

    with pytest.raises(SettingError, match=r"grid must divide the 2 x 2 grid of tokens; got 4"):
        remem_pipeline.run_remem(run)
    run.config.information.batch_size = EVALUATED + 1
    with pytest.raises(SettingError, match=r"information\.batch_size"):
        remem_pipeline.run_remem(run)


@pytest.mark.parametrize("title", ["b", "a"])
def test_features_of_two_sizes_are_rejected(
    shared: Shared, teachers: list[decoders.Teacher], tmp_path: pathlib.Path, title: str
) -> None:
    """The names of the two teachers may be equal."""
    wide = save_vit(tmp_path / "wide.npz", vit.Size(patch=8, features=24, depth=1, heads=2), 0)
    run = shared.run(tmp_path)
    run.config.models.model_1.teacher.init = str(wide)
    run.config.models.model_1.title = title
    other = analysis_pipeline._teacher(run, inputs.load(run)[1])

    with pytest.raises(SettingError, match=rf"a: \(2, 2, 16\), {title}: \(2, 2, 24\)"):
        _measure(run, [teachers[0], other])


def test_the_feature_size_is_known_if_devices_share_a_batch(
    shared: Shared, tmp_path: pathlib.Path
) -> None:
    devices = mesh.make_mesh(jax.devices()[:2])
    run = shared.run(tmp_path, mesh=devices)
    model: Any = models.make("vit", variant=SIZE, classes=3)
    patches = jax.jit(
        models.teacher_apply(model, ("patches",)), out_shardings=mesh.batch_sharding(devices)
    )
    variables = models.init(model, jax.random.key(0), SIDE)

    size = decoders._feature_size(run, [decoders.Teacher("a", patches, variables)])

    assert size == (SIDE // SIZE.patch, SIZE.features)


def test_only_real_images_are_saved(
    shared: Shared, tmp_path: pathlib.Path, teachers: list[decoders.Teacher]
) -> None:
    """The padding of a batch is not saved."""
    run = shared.run(tmp_path)
    run.config.information.pictures = EVALUATED + 5
    images = np.zeros((EVALUATED + 20, SIDE, SIDE, 3), np.float32)
    reconstruction = mutual_information.Reconstruction(
        1.0, 0.5, 0.5, np.zeros(EVALUATED), np.zeros(EVALUATED), np.zeros((SIDE, SIDE))
    )
    measured = decoders.make(run, teachers[:1])
    mask = jax.numpy.arange(len(images)) < EVALUATED
    held_out = mutual_information.HeldOutBatch(jax.numpy.asarray(images), mask)
    last = measurement._Last(run, measured, measured.first())
    last.add(0, measured.features[0](held_out.images), held_out)

    saved = last.pictures([reconstruction])

    assert len(saved["images"]) == len(saved["reconstructions_0"]) == EVALUATED


def test_the_plan_of_decoders_depends_on_their_memory(
    shared: Shared, teachers: list[decoders.Teacher], tmp_path: pathlib.Path
) -> None:
    run = shared.run(tmp_path)
    step = decoders.planned_step(run, STAGE, teachers)

    held, running = step.needs(memory_plan.Plan())

    states = decoders.make(run, teachers).first()
    arrays = jax.tree.leaves((states, [teacher.variables for teacher in teachers]))
    # An image, its target, and 2 x 2 tokens of 16 features.
    numbers_per_image = 2 * SIDE * SIDE * 3 + 2 * 2 * 16
    assert (
        held
        == sum(leaf.nbytes for leaf in arrays)
        + run.config.information.batch_size * 4 * numbers_per_image
    )
    assert running > 0
    stored = [step.traced(plan).stored for plan in step.plans]
    assert stored == sorted(set(stored), reverse=True)
    assert len(stored) == 3


def _remem_run(shared: Shared, workdir: pathlib.Path) -> context.Run:
    """Makes a run of one method whose teachers are measured."""
    config = tiny_run.get_config()
    config.methods = ("finetune",)
    config.data.image_size = SIDE
    config.teacher.variant, config.teacher.init = "", str(shared.checkpoints[0])
    config.teacher.batch_size = config.student.batch_size = 8
    config.teacher.steps, config.teacher.warmup_steps = (1, 2), 0
    config.student.steps, config.student.warmup_steps, config.student.evaluations = 2, 0, 1
    config.student.learning_rates = (0.1,)
    config.information.seeds = (0,)
    config.information.steps = config.information.evaluations = 2
    config.information.info_nce.measured = False
    return shared.run(workdir, config)


class Observed(NamedTuple):
    """A finished run whose teachers were measured.

    Attributes:
        run: The run.
        labels: The stage and the labels of the first batch of each training.
        keys: Key data of all training augmentations.
    """

    run: context.Run
    labels: list[tuple[Stage, list[int]]]
    keys: list[list[int]]


@pytest.fixture(scope="module")
def observed(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """A finished run whose teachers were measured, with the batches and keys that it used."""
    run = _remem_run(shared, tmp_path_factory.mktemp("measured"))
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

    watched = loader._replace(train=train, distillation=train, train_transform=transform)
    run = run._replace(loader=watched)
    remem_pipeline.run_remem(run)
    jax.effects_barrier()
    return Observed(run, first_labels, keys)


@pytest.fixture(scope="module")
def measured(observed: Observed) -> context.Run:
    """The run alone."""
    return observed.run


@pytest.mark.slow
def test_the_teachers_of_a_run_are_measured_if_requested(measured: context.Run) -> None:
    written = json.loads((measured.workdir / "results.json").read_text())

    assert [teacher["step"] for teacher in written["teachers"]] == [1, 2]
    first, second = (teacher["information"] for teacher in written["teachers"])
    assert first["excess"] != second["excess"]
    assert (first["deviation"], first["info_nce"]) == (None, None)
    assert written["seconds"]["information/finetune"] > 0


@pytest.mark.slow
def test_the_report_of_a_run_shows_the_information_plane(measured: context.Run) -> None:
    names = {path.name for path in (measured.workdir / "figures").iterdir()}

    assert names >= {f"information_plane.{form}" for form in ("png", "svg", "csv")}
    for name in ("report.html", "report.md"):
        text = (measured.workdir / name).read_text()
        assert "Information of the teachers, on validation" in text
    assert "Information plane." in (measured.workdir / "report.html").read_text()


@pytest.mark.slow
def test_teachers_students_and_decoders_shuffle_images_independently(
    observed: Observed,
) -> None:
    orders: dict[str, set[tuple[int, ...]]] = {}
    for stage, labels in observed.labels:
        orders.setdefault(stage, set()).add(tuple(labels[:8]))

    assert set(orders) == {"teacher", "student", "decoder"}
    assert all(len(order) == 1 for order in orders.values())  # Also for students of two teachers.
    assert len(set.union(*orders.values())) == 3


@pytest.mark.slow
def test_augmentation_depends_only_on_the_stage_and_the_step(observed: Observed) -> None:
    stages: list[Stage] = ["teacher", "student", "student", "decoder"]  # Students of two teachers.

    keys = [random_streams.key(0, stage, step) for stage in stages for step in (0, 1)]

    assert sorted(observed.keys) == sorted(jax.random.key_data(key).tolist() for key in keys)


def test_no_teacher_is_measured_unless_requested(
    shared: Shared, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _remem_run(shared, tmp_path)
    run.config.information.seeds = ()
    monkeypatch.setattr(measurement, "measure", _never)
    records, seconds = [{"step": 1}, {"step": 2}], dict[str, float]()
    unused: list[Any] = [None] * len(finetune.Teachers._fields)
    teachers = finetune.Teachers._make(unused)._replace(records=records)

    assert remem_outcome._information(run, teachers, seconds) == [
        (record, {}) for record in records
    ]
    assert seconds == {}
