"""The settings that are planned: what is left open is chosen, what is set is kept."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import own
from remem_jax.budget import rules
from remem_jax.budget.facts import Facts
from remem_jax.budget.plan import STUDENTS, TEACHER, Stage
from remem_jax.budget.rules import Device
from remem_jax.models import vit
from remem_jax.settings import workflows

CPU = Device("cpu", 2e11)  # Two cores.
GPU = Device("cuda", 6e14)  # An H100.
CALTECH = Facts({"train": 3060, "test": 2995}, 102, side=96)
PHOTOGRAPHS = Facts({"train": 8000, "test": 2000}, 20, side=480)


def config(hours: float = 1.0, **changes: Any) -> ConfigDict:
    config = own.get_config("images")
    config.budget.hours = hours
    config.update_from_flattened_dict(changes)
    return config


def chosen(facts: Facts, device: Device, hours: float = 1.0, **changes: Any) -> ConfigDict:
    asked = config(hours, **changes)
    return rules.filled(asked, rules.choose(asked, facts, device))


def test_all_settings_that_are_left_open_are_filled_and_can_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remem_jax.settings.check_init", lambda teacher: None)
    filled = chosen(CALTECH, CPU)
    filled.data.path = ""
    workflows.check(filled)
    assert filled.methods == ("alone", "finetune", "remem")


def test_images_are_not_enlarged_and_large_ones_are_as_large_as_the_time_allows() -> None:
    assert chosen(CALTECH, GPU, 10.0).data.image_size == 96
    sides = [chosen(PHOTOGRAPHS, CPU, hours).data.image_size for hours in (0.1, 0.5, 1, 50)]
    assert sides == sorted(sides)
    assert sides[0] == 64
    assert sides[-1] == 224
    assert chosen(PHOTOGRAPHS, CPU, 50).data.stored_size == 256


def test_a_fast_device_gets_a_larger_teacher() -> None:
    slow, fast = (chosen(PHOTOGRAPHS, device, 1.0) for device in (CPU, GPU))
    assert rules.variant_of(slow.teacher.init).features == 192
    assert fast.teacher.init == "augreg:B/16"


@pytest.mark.parametrize(
    ("patch", "student", "sides"),
    [
        (16, "resnet18", [64, 96, 128, 160, 192, 224]),
        (32, "resnet18", [64, 96, 128, 160, 192, 224]),
        (14, "resnet18", [70, 98, 126, 154, 196, 224]),
        (14, "vit_tiny_patch16", [112, 224]),
    ],
)
def test_sides_are_multiples_of_the_patches_of_teacher_and_student(
    monkeypatch: pytest.MonkeyPatch, patch: int, student: str, sides: list[int]
) -> None:
    size = vit.Size(patch, features=384, depth=12, heads=6)
    monkeypatch.setattr(rules, "variant_of", lambda init: size)
    changes: dict[str, Any] = {"teacher.init": "me/mine", "student.model": student}
    facts = PHOTOGRAPHS._replace(side=50)

    smallest = chosen(facts, CPU, **changes).data.image_size
    seen = {
        chosen(PHOTOGRAPHS, CPU, 2.0**power, **changes).data.image_size for power in range(-8, 9)
    }

    assert smallest == sides[0]
    assert seen <= set(sides)
    assert seen >= {sides[0], sides[-1]}


@pytest.mark.parametrize(("images", "batch"), [(60, 8), (1000, 32), (3060, 64), (1_000_000, 64)])
def test_batches_leave_enough_steps_per_epoch(images: int, batch: int) -> None:
    filled = chosen(Facts({"train": images, "test": 10}, 3, 96), CPU)
    assert filled.student.batch_size == filled.teacher.batch_size == batch


@pytest.mark.parametrize(("images", "share"), [(300, 0.2), (1500, 0.133), (3060, 0.1)])
def test_enough_images_select(images: int, share: float) -> None:
    assert chosen(Facts({"train": images, "test": 10}, 3, 96), CPU).data.validation == share


def test_what_the_user_sets_is_kept() -> None:
    changes: dict[str, Any] = {
        "data.image_size": 128,
        "data.validation": 0.3,
        "methods": ("finetune",),
        "student.model": "resnet18",
        "student.optimizer": "sgd",
        "student.batch_size": 16,
        "student.steps": 77,
        "teacher.init": "augreg:S/16",
        "teacher.steps": (5, 9),
    }
    filled = chosen(CALTECH, CPU, **changes)
    for name, value in changes.items():
        group, _, last = name.rpartition(".")
        assert (filled[group] if group else filled)[last] == value
    limits = rules.limits(filled, config(**changes), images=2000, unlabelled=0)
    assert (limits.student_steps, limits.teacher_steps, limits.fixed) == (77, (5, 9), True)


def test_a_student_from_random_weights_is_compared_with_one_from_scratch() -> None:
    changes: dict[str, Any] = {"student.init": ""}
    filled = chosen(CALTECH, CPU, **changes)
    assert filled.methods == ("scratch", "finetune", "remem")
    assert filled.student.optimizer == "sgd"


def test_the_middle_learning_rate_is_the_first_choice() -> None:
    filled = chosen(CALTECH, CPU)
    limits = rules.limits(filled, config(), images=2754, unlabelled=0)
    assert limits.learning_rates[0] == 1e-3


def test_a_stage_sets_only_its_own_steps() -> None:
    asked, filled = config(), chosen(CALTECH, CPU)
    rules.set_stage(filled, Stage(TEACHER, "finetune", 300), 1.0, asked)
    assert (filled.teacher.steps, filled.teacher.warmup_steps) == ((300,), 30)
    rules.set_stage(filled, Stage(STUDENTS, "finetune", 700, (1e-3,)), 0.5, asked)
    assert (filled.student.steps, filled.student.warmup_steps) == (700, 70)
    assert filled.teacher.steps == (300,)
    assert filled.student.pretrained_learning_rates == (1e-3,)
    assert (filled.log_every, filled.save_every) == (10, 120)


def test_unlabelled_images_enlarge_the_batches_and_the_passes_of_students_alone() -> None:
    few = Facts({"train": 306, "test": 100}, 102, side=96)
    with_more = few._replace(unlabelled=2754)
    plain, more = (chosen(facts, CPU) for facts in (few, with_more))

    assert plain.teacher.batch_size == more.teacher.batch_size == plain.student.batch_size == 8
    assert more.student.batch_size == 64
    limits = rules.limits(more, config(), images=204, unlabelled=2754)
    assert limits.most_steps == round(60 * 2958 / 64)
    assert limits.most_teacher_steps == round(20 * 204 / 8)


def test_a_batch_is_no_larger_than_the_labelled_images() -> None:
    facts = Facts({"train": 60, "test": 10}, 3, side=96, unlabelled=100_000)

    assert chosen(facts, GPU).student.batch_size == 32
