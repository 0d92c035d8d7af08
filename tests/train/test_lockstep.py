"""Students on one teacher pass."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models, optim
from remem_jax.data.images import augment
from remem_jax.data.loaders import resident
from remem_jax.models import projection
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.train import lockstep, state, steps, student_losses
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("mixed_dtypes")
GRID = (
    Hyperparameters(0.1, 1.0, 0.5, 0),
    Hyperparameters(0.5, 4.0, 0.9, 0),
    Hyperparameters(0.1, 2.0, 0.0, 0),
)
TARGETS = {"features": projection.Target("patches", side=2, width=3)}
LOSSES = ("kd", "dist", "features")


class StudentSetup(NamedTuple):
    """A teacher, a way to make students, and data, all tiny and compiled once."""

    views: Any
    answer: Any
    student_steps: dict[str, Any]
    firsts: dict[str, Any]
    split: resident.Split

    def train(
        self,
        teacher: Any,
        grid: tuple[Hyperparameters, ...],
        *,
        names: tuple[str, ...] = (),
        teach: Any = None,
    ) -> tuple[lockstep.States, list[Any]]:
        """Three steps of the students of a grid, whose losses have these names, else "kd".

        Returns:
            The states, and the losses of each step.
        """
        names = names or ("kd",) * len(grid)
        members = [(self.student_steps[name], own) for name, own in zip(names, grid, strict=True)]
        teach = teach or self.live(teacher)
        step = lockstep.make_step(self.views, teach, members, first_step=0)
        students = tuple(self.firsts[name]() for name in names)
        found = []
        for batch in self.batches():
            students, metrics = step(students, batch)
            found.append([float(value) for value in metrics["loss"]])
        return students, found

    def first(self) -> Any:
        """The first state of a student that learns no features."""
        return self.firsts["kd"]()

    def live(self, teacher: Any) -> Any:
        """The teacher's answers."""
        return lambda step, images: self.answer(teacher, images)

    def batches(self) -> Iterator[Any]:
        """The first three batches."""
        split, rng = self.split, np.random.default_rng(4)
        for _ in range(3):
            rows = rng.integers(0, len(split.label), 4)
            image, label = jnp.asarray(split.image), jnp.asarray(split.label)
            yield Batch(image[rows], label[rows], jnp.ones(4, bool))


@pytest.fixture(scope="module")
def setup() -> StudentSetup:
    model = tiny_run.STUDENT.make(classes=3)
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

    def teach(variables: Any, images: jax.Array) -> Outputs:
        quarters = images.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).reshape(-1, 4, 3)
        return Outputs(
            jnp.mean(images, axis=(1, 2)) @ variables["kernel"], quarters @ variables["kernel"]
        )

    def step(name: str) -> Any:
        apply = models.student_apply(model, TARGETS.get(name))
        loss = functools.partial(student_losses.LOSSES[name], hard_labels=True)
        made = steps.make_student_step(apply, tx, loss=loss, key=jax.random.key(2))
        return jax.jit(made, donate_argnums=0)

    with_features = projection.add(variables, jax.random.key(3), channels=64, width=3)
    return StudentSetup(
        jax.jit(lockstep.make_augment(transform, classes=3, key=jax.random.key(1), mixup=0.0)),
        jax.jit(teach),
        {name: step(name) for name in LOSSES},
        {
            name: lambda of=with_features if name in TARGETS else variables: state.create(of, tx)
            for name in LOSSES
        },
        split,
    )


TEACHER = {"kernel": jnp.asarray(np.random.default_rng(3).normal(0, 5, (3, 3)), jnp.float32)}


def test_students_trained_together_equal_students_trained_alone(setup: StudentSetup) -> None:
    names = ("kd", "features", "dist")
    together, _ = setup.train(TEACHER, GRID, names=names)

    alone = [
        setup.train(TEACHER, (settings,), names=(name,))[0][0]
        for settings, name in zip(GRID, names, strict=True)
    ]

    for one, other in zip(together, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_students_learn_the_same_from_answers_that_were_kept(setup: StudentSetup) -> None:
    live, kept = setup.live(TEACHER), {}

    def keeping(step: int, images: jax.Array) -> Outputs:
        answer = live(step, images)
        kept[step] = jax.tree.map(np.asarray, answer)
        return answer

    def stored(step: int, images: jax.Array) -> Outputs:
        return jax.tree.map(jnp.asarray, kept[step])

    taught, _ = setup.train(TEACHER, GRID[:2], teach=keeping)
    later, _ = setup.train({}, GRID[:2], teach=stored)

    jax.tree.map(np.testing.assert_array_equal, taught, later)


def test_students_of_other_settings_learn_otherwise(setup: StudentSetup) -> None:
    students, _ = setup.train(TEACHER, GRID)

    heads = [np.asarray(student.params["fc"]["kernel"]) for student in students]

    assert not np.allclose(heads[0], heads[1])
    assert not np.allclose(heads[0], heads[2])


def test_at_weight_0_the_teacher_counts_for_nothing(setup: StudentSetup) -> None:
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TEACHER)

    taught, _ = setup.train(TEACHER, GRID[2:])
    others, _ = setup.train(broken, GRID[2:])

    jax.tree.map(np.testing.assert_array_equal, taught[0].params, others[0].params)


def test_a_whole_grid_is_served_by_one_compiled_step(setup: StudentSetup) -> None:
    setup.train(TEACHER, GRID)
    assert setup.student_steps["kd"]._cache_size() == 1


def test_a_lost_student_is_stepped_no_more_and_the_others_are_the_same(
    setup: StudentSetup,
) -> None:
    batches = list(setup.batches())
    whole, losses = setup.train(TEACHER, GRID[:2])
    lost: set[int] = set()
    members = [(setup.student_steps["kd"], own) for own in GRID[:2]]
    step = lockstep.make_step(setup.views, setup.live(TEACHER), members, first_step=0, lost=lost)

    students, _ = step((setup.first(), setup.first()), batches[0])
    lost.add(0)
    given = students[0]
    for batch, (_, expected) in zip(batches[1:], losses[1:], strict=True):
        students, metrics = step(students, batch)
        assert students[0] is given
        assert np.isnan(metrics["loss"][0])
        assert metrics["fault"][0] > 0
        assert float(metrics["loss"][1]) == expected

    jax.tree.map(np.testing.assert_array_equal, students[1], whole[1])


def test_teacher_and_students_see_one_view(setup: StudentSetup) -> None:
    seen: list[Any] = []

    def teach(step: int, images: jax.Array) -> Outputs:
        seen.append((step, images))
        return setup.answer(TEACHER, images)

    def look(state: Any, images: Any, labels: Any, answer: Any, settings: Any) -> Any:
        del labels, settings
        seen.append((images, answer.logits))
        return state, {"loss": 0.0}

    step = lockstep.make_step(setup.views, teach, [(look, GRID[0])] * 2, first_step=7)
    for batch in setup.batches():
        step((setup.first(),) * 2, batch)

    for number in range(3):
        (at, images), *students = seen[3 * number : 3 * number + 3]
        assert at == 7 + number
        expected = np.asarray(images).mean((1, 2)) @ np.asarray(TEACHER["kernel"])
        for own, logits in students:
            np.testing.assert_array_equal(own, images)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_another_step_gives_another_view(setup: StudentSetup) -> None:
    batch = next(setup.batches())

    one, other = (setup.views(np.int32(at), batch) for at in (5, 6))

    assert not np.allclose(one.images, other.images)


def test_the_student_step_is_momentum_sgd_at_the_students_own_rate(setup: StudentSetup) -> None:
    # From step 1 on the schedule is at its peak of 1 and falls; the first step has rate 0.
    students, _ = setup.train(TEACHER, (Hyperparameters(0.0, 1.0, 0.5, 0),))

    first = setup.first()

    jax.tree.map(np.testing.assert_array_equal, students[0].params, first.params)


def test_the_projection_is_trained_and_is_no_part_of_what_is_measured(
    setup: StudentSetup,
) -> None:
    (student,), _ = setup.train(TEACHER, GRID[:1], names=("features",))

    first = setup.firsts["features"]().params["projection"]
    for name in ("kernel", "bias"):
        assert not np.allclose(student.params["projection"][name], first[name])
    assert jax.tree.structure(student.variables) == jax.tree.structure(setup.first().variables)


def test_crops_flips_and_mixup_are_drawn_of_keys_of_their_own(
    setup: StudentSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def spy(name: str, value: Any) -> None:
        def draw(key: jax.Array, *rest: Any, shape: tuple[int, ...] = ()) -> jax.Array:
            used.append(np.asarray(jax.random.key_data(key)).tolist())
            return jnp.full(rest[0] if name == "uniform" else shape, value)

        monkeypatch.setattr(jax.random, name, draw)

    for name, value in (("uniform", 0.5), ("bernoulli", True), ("beta", 0.7)):
        spy(name, value)
    # Takes seconds where it is not compiled; nothing is drawn in it.
    monkeypatch.setattr(augment, "crop_and_resize", lambda images, *rest, **options: images)
    transform = augment.make_train_transform(size=4, crop_area=(0.5, 1.0), flip=True)
    views = lockstep.make_augment(transform, classes=3, key=jax.random.key(1), mixup=0.8)

    for step in (0, 1):
        views(np.int32(step), next(setup.batches()))

    assert len(used) == len({tuple(key) for key in used}) == 6


def test_where_images_are_mixed_all_see_one_mixture_and_its_labels(
    setup: StudentSetup,
) -> None:
    batch = next(setup.batches())

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        return augment.to_model_range(images)

    views = lockstep.make_augment(transform, classes=3, key=jax.random.key(1), mixup=0.8)
    seen = views(jnp.asarray(5), batch)

    # One share, of each image and of its label alike; the other is that of the one before it.
    labels = np.asarray(jax.nn.one_hot(batch.label, 3))
    share = np.linalg.lstsq(
        np.stack([labels.ravel(), np.roll(labels, 1, axis=0).ravel()], axis=1),
        np.asarray(seen.labels).ravel(),
        rcond=None,
    )[0]
    plain = np.asarray(transform(jax.random.key(0), batch.image))
    mixture = share[0] * plain + share[1] * np.roll(plain, 1, axis=0)
    assert 0.5 <= share[0] < 1
    np.testing.assert_allclose(seen.images, mixture, atol=1e-5)
