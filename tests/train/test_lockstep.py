"""Students trained in lockstep share one teacher pass."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models, optim
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.data.loaders import resident
from remem_jax.models import projection
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.train import lockstep, state, steps, student_losses, teacher_queue

LABELS = student_losses.LABELS.name
pytestmark = pytest.mark.usefixtures("mixed_dtypes")
GRID = (
    Hyperparameters(0.1, 1.0, 0.5, 0),
    Hyperparameters(0.5, 4.0, 0.9, 0),
    Hyperparameters(0.1, 2.0, 0.0, 0),
)


class Setup(NamedTuple):
    """A tiny teacher, students of every loss and from scratch, and data, compiled once.

    Attributes:
        augment: The compiled augmentation.
        compute_targets: The compiled teacher.
        student_steps: The compiled step of a student, by loss.
        first_states: Makes the state of a student at step 0, by loss.
        split: The data.
    """

    augment: Any
    compute_targets: Any
    student_steps: dict[str, Any]
    first_states: dict[str, Any]
    split: resident.Split

    def train(
        self,
        teacher: Any,
        grid: tuple[Hyperparameters, ...],
        *,
        losses: tuple[str, ...] = (),
        get_targets: Any = None,
    ) -> tuple[lockstep.States, list[Any]]:
        """Takes three steps of a grid of students, each with its loss; "kd" if none are given.

        Returns:
            The states, and the losses at each step.
        """
        losses = losses or ("kd",) * len(grid)
        students = [
            (self.student_steps[loss], point) for loss, point in zip(losses, grid, strict=True)
        ]
        get_targets = get_targets or self.live(teacher)
        step = lockstep.make_step(self.augment, get_targets, students, first_step=0)
        states = tuple(self.first_states[loss]() for loss in losses)
        values = []
        for batch in self.batches():
            states, metrics = step(states, batch)
            values.append([float(value) for value in metrics["loss"]])
        return states, values

    def first(self) -> Any:
        """Returns the initial state of a student that learns no features."""
        return self.first_states["kd"]()

    def live(self, teacher: Any) -> Any:
        """Returns targets that the teacher computes at each step."""
        return lambda step, images: self.compute_targets(teacher, images)

    def batches(self) -> Iterator[Any]:
        """Yields the first three batches."""
        split, rng = self.split, np.random.default_rng(4)
        for _ in range(3):
            rows = rng.integers(0, len(split.label), 4)
            image, label = jnp.asarray(split.image), jnp.asarray(split.label)
            yield Batch(image[rows], label[rows], jnp.ones(4, bool))


@pytest.fixture(scope="module")
def setup(resnet4: str) -> Setup:
    model = models.make(resnet4, classes=3)
    variables = models.init(model, jax.random.key(0), 16)
    tx = optim.sgd(
        optim.warmup_cosine(peak=1.0, steps=10, warmup_steps=1),
        momentum=0.9,
        nesterov=True,
        weight_decay=0.0,
        clip_norm=None,
    )
    transform = augment.make_train_transform(size=16, crop_area=(0.5, 1.0), flip=True)
    rng = np.random.default_rng(0)
    split = resident.Split(
        jnp.asarray(rng.integers(0, 256, (9, 8, 8, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, 3, 9), jnp.int32),
    )

    def compute_targets(variables: Any, images: jax.Array) -> Outputs:
        logits = jnp.mean(images, axis=(1, 2)) @ variables["kernel"]
        quarters = images.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).reshape(-1, 4, 3)
        patches = quarters @ variables["kernel"]
        return Outputs(logits, patches, cls=logits, pooled=logits, layers=(patches, 2 * patches))

    losses = {**student_losses.LOSSES, LABELS: student_losses.LABELS}

    def targets(loss: student_losses.StudentLoss) -> tuple[projection.Target, ...]:
        return tuple(projection.Target(field, side=2, width=3, layers=2) for field in loss.features)

    def step(loss: student_losses.StudentLoss) -> Any:
        apply = models.student_apply(model, targets(loss))
        bound = functools.partial(loss, hard_labels=True)
        student_step = steps.make_student_step(apply, tx, loss=bound, key=jax.random.key(2))
        return jax.jit(student_step, donate_argnums=0)

    def first(loss: student_losses.StudentLoss) -> Any:
        added = variables
        if loss.features:
            layers = models.projected(model, targets(loss), 16)
            added = projection.add(added, jax.random.key(3), layers)
        return teacher_queue.add(added, 6, 3) if loss.has_queue else added

    return Setup(
        jax.jit(
            lockstep.make_augment(transform, classes=3, key=jax.random.key(1), mixing=Mixing())
        ),
        jax.jit(compute_targets),
        {name: step(loss) for name, loss in losses.items()},
        {name: functools.partial(state.create, first(loss), tx) for name, loss in losses.items()},
        split,
    )


TEACHER = {"kernel": jnp.asarray(np.random.default_rng(3).normal(0, 5, (3, 3)), jnp.float32)}


@pytest.fixture(scope="module")
def together(setup: Setup) -> dict[str, Any]:
    """The states of students of all losses, trained together."""
    losses = tuple(student_losses.LOSSES)
    with jax.numpy_dtype_promotion("standard"):  # Module fixtures run before `mixed_dtypes`.
        states, _ = setup.train(TEACHER, GRID[:1] * len(losses), losses=losses)
    return dict(zip(losses, states, strict=True))


@pytest.mark.parametrize("loss", student_losses.LOSSES)
def test_students_trained_together_equal_students_trained_alone(
    setup: Setup, together: dict[str, Any], loss: str
) -> None:
    (alone,), _ = setup.train(TEACHER, GRID[:1], losses=(loss,))

    jax.tree.map(np.testing.assert_array_equal, together[loss], alone)


@pytest.mark.parametrize("loss", student_losses.LOSSES)
def test_every_loss_affects_its_student(setup: Setup, together: dict[str, Any], loss: str) -> None:
    (scratch,), _ = setup.train(None, GRID[:1], losses=(LABELS,), get_targets=no_targets)

    with_loss, from_labels = (s.params["fc"]["kernel"] for s in (together[loss], scratch))

    assert np.isfinite(with_loss).all()
    assert not np.allclose(with_loss, from_labels)


def test_students_from_scratch_need_no_targets_and_use_the_step_of_weight_0(setup: Setup) -> None:
    (scratch,), values = setup.train(None, GRID[2:], losses=(LABELS,), get_targets=no_targets)
    (weightless,), expected = setup.train(TEACHER, GRID[2:])

    np.testing.assert_allclose(values, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scratch.params, weightless.params
    )


def no_targets(step: int, images: jax.Array) -> None:
    """Returns the targets of students without a teacher."""


def test_stored_targets_give_the_same_students(setup: Setup) -> None:
    live, stored = setup.live(TEACHER), {}

    def storing(step: int, images: jax.Array) -> Outputs:
        targets = live(step, images)
        stored[step] = jax.tree.map(np.asarray, targets)
        return targets

    def reading(step: int, images: jax.Array) -> Outputs:
        return jax.tree.map(jnp.asarray, stored[step])

    first, _ = setup.train(TEACHER, GRID[:2], get_targets=storing)
    later, _ = setup.train({}, GRID[:2], get_targets=reading)

    jax.tree.map(np.testing.assert_array_equal, first, later)


def test_hyperparameters_change_the_student(setup: Setup) -> None:
    students, _ = setup.train(TEACHER, GRID)

    heads = [np.asarray(student.params["fc"]["kernel"]) for student in students]

    assert not np.allclose(heads[0], heads[1])
    assert not np.allclose(heads[0], heads[2])


def test_at_weight_0_the_teacher_has_no_influence(setup: Setup) -> None:
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TEACHER)

    (student,), _ = setup.train(TEACHER, GRID[2:])
    (of_broken_teacher,), _ = setup.train(broken, GRID[2:])

    jax.tree.map(np.testing.assert_array_equal, student.params, of_broken_teacher.params)


def test_a_grid_shares_one_compiled_step(setup: Setup) -> None:
    setup.train(TEACHER, GRID)
    assert setup.student_steps["kd"]._cache_size() == 1


def test_a_lost_student_is_not_trained_further_and_others_are_unchanged(
    setup: Setup,
) -> None:
    batches = list(setup.batches())
    expected_students, losses = setup.train(TEACHER, GRID[:2])
    lost: set[int] = set()
    members = [(setup.student_steps["kd"], point) for point in GRID[:2]]
    step = lockstep.make_step(setup.augment, setup.live(TEACHER), members, first_step=0, lost=lost)

    students, _ = step((setup.first(), setup.first()), batches[0])
    lost.add(0)
    lost_state = students[0]
    for batch, (_, expected) in zip(batches[1:], losses[1:], strict=True):
        students, metrics = step(students, batch)
        assert students[0] is lost_state
        assert np.isnan(metrics["loss"][0])
        assert metrics["fault"][0] > 0
        assert float(metrics["loss"][1]) == expected

    jax.tree.map(np.testing.assert_array_equal, students[1], expected_students[1])


def test_teacher_and_students_get_the_same_augmented_images(setup: Setup) -> None:
    calls: list[Any] = []

    def get_targets(step: int, images: jax.Array) -> Outputs:
        calls.append((step, images))
        return setup.compute_targets(TEACHER, images)

    def student_step(state: Any, images: Any, labels: Any, targets: Any, settings: Any) -> Any:
        del labels, settings
        calls.append((images, targets.logits))
        return state, {"loss": 0.0}

    students = [(student_step, GRID[0])] * 2
    step = lockstep.make_step(setup.augment, get_targets, students, first_step=7)
    for batch in setup.batches():
        step((setup.first(),) * 2, batch)

    for number in range(3):
        (step_number, images), *student_calls = calls[3 * number : 3 * number + 3]
        assert step_number == 7 + number
        expected = np.asarray(images).mean((1, 2)) @ np.asarray(TEACHER["kernel"])
        for student_images, logits in student_calls:
            np.testing.assert_array_equal(student_images, images)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("progress", [None, lambda done: (done + 1) / 100])
def test_the_student_step_gets_the_progress_of_training(setup: Setup, progress: Any) -> None:
    seen: list[Hyperparameters] = []

    def student_step(state: Any, images: Any, labels: Any, targets: Any, settings: Any) -> Any:
        seen.append(settings)
        return state, {"loss": 0.0}

    step = lockstep.make_step(
        setup.augment, no_targets, [(student_step, GRID[0])], first_step=7, progress=progress
    )
    for batch in setup.batches():
        step((setup.first(),), batch)

    expected = (1.0, 1.0, 1.0) if progress is None else (0.08, 0.09, 0.1)
    assert seen == [GRID[0]._replace(progress=value) for value in expected]


def test_each_step_augments_differently(setup: Setup) -> None:
    batch = next(setup.batches())

    first, second = (setup.augment(np.int32(step), batch) for step in (5, 6))

    assert not np.allclose(first.images, second.images)


def test_the_student_step_uses_the_students_learning_rate(setup: Setup) -> None:
    # From step 1 on, the schedule falls from its peak of 1; the learning rate scales it by 0.
    students, _ = setup.train(TEACHER, (Hyperparameters(0.0, 1.0, 0.5, 0),))

    first = setup.first()

    jax.tree.map(np.testing.assert_array_equal, students[0].params, first.params)


def test_the_projection_is_trained_but_not_evaluated(
    setup: Setup,
) -> None:
    (student,), _ = setup.train(TEACHER, GRID[:1], losses=("features",))

    first = setup.first_states["features"]().params["projection"]
    for name in ("kernel", "bias"):
        assert not np.allclose(student.params["projection"][name], first[name])
    assert jax.tree.structure(student.variables) == jax.tree.structure(setup.first().variables)


def test_crops_flips_and_mixup_have_separate_keys(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []

    def spy(name: str, value: Any) -> None:
        def draw(key: jax.Array, *rest: Any, shape: tuple[int, ...] = ()) -> jax.Array:
            keys.append(np.asarray(jax.random.key_data(key)).tolist())
            return jnp.full(rest[0] if name == "uniform" else shape, value)

        monkeypatch.setattr(jax.random, name, draw)

    for name, value in (("uniform", 0.5), ("bernoulli", True), ("beta", 0.7)):
        spy(name, value)
    # Uncompiled resizing takes seconds, and draws no random numbers.
    monkeypatch.setattr(augment, "crop_and_resize", lambda images, *rest, **options: images)
    transform = augment.make_train_transform(size=4, crop_area=(0.5, 1.0), flip=True)
    make_batch = lockstep.make_augment(
        transform, classes=3, key=jax.random.key(1), mixing=Mixing(mixup=0.8)
    )

    for step in (0, 1):
        make_batch(np.int32(step), next(setup.batches()))

    assert len(keys) == len({tuple(key) for key in keys}) == 6


def test_mixup_mixes_images_and_labels_with_the_same_share(
    setup: Setup,
) -> None:
    batch = next(setup.batches())

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        return augment.to_model_range(images)

    make_batch = lockstep.make_augment(
        transform, classes=3, key=jax.random.key(1), mixing=Mixing(mixup=0.8)
    )
    mixed = make_batch(jnp.asarray(5), batch)

    # Images and labels are mixed with the same share; the rest is the previous image.
    labels = np.asarray(jax.nn.one_hot(batch.label, 3))
    share = np.linalg.lstsq(
        np.stack([labels.ravel(), np.roll(labels, 1, axis=0).ravel()], axis=1),
        np.asarray(mixed.labels).ravel(),
        rcond=None,
    )[0]
    plain = np.asarray(transform(jax.random.key(0), batch.image))
    mixture = share[0] * plain + share[1] * np.roll(plain, 1, axis=0)
    assert 0.5 <= share[0] < 1
    np.testing.assert_allclose(mixed.images, mixture, atol=1e-5)
