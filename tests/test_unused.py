"""Settings without an effect and batches larger than the training split are refused."""

import logging
import pathlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import analysis, remem, study
from remem_jax import workflow
from remem_jax.checks import SettingError
from remem_jax.data import sources, splitting
from remem_jax.settings import check_remem, counts, unused
from remem_jax.study import unused as of_study
from tests import tiny_run

RULES = splitting.Rules(validation=0.2, seed=0, near_duplicates=False)


def _changed(**changes: Any) -> ConfigDict:
    """Returns the config of a run on digits with changes; their names have __ instead of a dot."""
    config = tiny_run.digits()
    with config.ignore_type():
        for name, value in changes.items():
            *groups, last = name.split("__")
            place = config
            for group in groups:
                place = place[group]
            place[last] = value
    return config


@pytest.mark.parametrize(
    ("given", "changes", "why"),
    [
        ("teacher.lora.rank", {}, r"config\.teacher\.tuning is full"),
        ("teacher.adapter.reduction", {"teacher__tuning": "lora"}, "tuning is lora"),
        ("information.steps", {}, r"config\.information\.seeds is empty"),
        ("teacher.rho", {"methods": ("scratch", "finetune")}, "finetune alone, which sets it"),
        ("teacher.mlp_weight", {"methods": ("finetune", "sam")}, "finetune, sam alone"),
        ("teacher.ascent_examples", {"methods": ("finetune", "reweight")}, "a rho above 0"),
        ("teacher.residual", {"methods": ("sam",)}, "attention_weight are 1"),
        ("teacher.mirror", {}, "is no published name"),
        ("teacher.mirror", {"teacher__init": "hf-hub:timm/vit"}, "is no published name"),
        ("student.temperatures", {"student__losses": ("features",)}, "losses is features"),
        ("student.weights", {"student__hard_labels": False}, "losses is kd"),
        ("teacher.momentum", {"teacher__optimizer": "adamw"}, "which does not use it"),
        ("teacher.nesterov", {"teacher__optimizer": "adamw"}, "which does not use it"),
        ("student.nesterov", {"student__momentum": 0.0}, r"config\.student\.momentum is 0"),
        ("student.betas", {}, "optimizer is 'sgd'"),
        ("student.ema_warmup", {}, r"config\.student\.ema is 0"),
        ("teacher.layer_decay", {"teacher__tuning": "linear_probe"}, "tuning is linear_probe"),
        ("student.body_rate", {}, r"config\.student\.init is empty"),
        (
            "student.label_smoothing",
            {"student__hard_labels": False, "methods": ("finetune",)},
            "hard_labels is False",
        ),
        (
            "student.class_balance",
            {"student__hard_labels": False, "methods": ("remem",)},
            "hard_labels is False",
        ),
        ("data.augment_magnitude", {"data__augment": "trivial"}, "only RandAugment uses it"),
        ("data.unlabelled", {"methods": ("scratch",)}, "through a teacher, and no method has one"),
        ("data.unlabelled_share", {}, r"config\.data\.unlabelled is empty"),
        ("data.workers", {"data__input": "resident"}, r"config\.data\.input is 'resident'"),
        ("data.resident_gib", {"data__input": "streamed"}, "where no image is resident"),
        ("data.dir", {"data__dir": "~/tfds"}, "name is digits, no data set of TFDS"),
        (
            "information.info_nce.grid",
            {"information__seeds": (0,), "information__info_nce__measured": False},
            "without InfoNCE",
        ),
    ],
)
def test_a_setting_without_an_effect_is_refused_with_the_reason(
    given: str, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(SettingError, match=rf"config\.{given} has no effect: .*{why}"):
        unused.check(_changed(**changes), [given])


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ("teacher.lora.rank", {"teacher__tuning": "lora"}),
        ("teacher.adapter.reduction", {"teacher__tuning": "adapter_pfeiffer"}),
        ("information.seeds", {}),
        ("information.steps", {"information__seeds": (0,)}),
        ("teacher.rho", {"methods": ("finetune", "sam")}),
        ("teacher.mlp_weight", {"methods": ("reweight",)}),
        ("teacher.mirror", {"teacher__init": "augreg:Ti/16"}),
        ("student.temperatures", {"student__losses": ("features", "dist")}),
        ("data.dir", {"data__name": "cifar100", "data__dir": "~/tfds"}),
        ("data.dir", {}),  # It is empty.
        ("seed", {}),
        ("student.seeds", {"methods": ("scratch",)}),
        ("student.epsilon", {"student__optimizer": "adamw"}),
        ("teacher.ema_warmup", {"teacher__ema": 0.9}),
        ("student.label_smoothing", {"student__hard_labels": False}),
    ],
)
def test_a_setting_with_an_effect_passes(given: str, changes: dict[str, Any]) -> None:
    unused.check(_changed(**changes), [given])


def test_teacher_settings_of_a_run_without_a_teacher_give_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "absl")

    given = ["teacher.steps", "student.temperatures", "student.steps"]
    unused.check(_changed(methods=("scratch",)), given)

    assert "config.teacher.steps" in caplog.text
    assert "config.student.temperatures" in caplog.text
    assert "config.student.steps" not in caplog.text


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("teacher.steps", "an analysis trains no teacher"),
        ("teacher.init", "each of config.models has its own init"),
        ("criticality.neurons", "config.analyses is information"),
    ],
)
def test_settings_that_an_analysis_ignores_are_refused(given: str, why: str) -> None:
    config = analysis.get_config("digits,analyses=information")

    with pytest.raises(SettingError, match=f"has no effect: {why}"):
        unused.check(config, [given])

    unused.check(config, ["information.steps", "teacher.position_resize"])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("base.seed", "config.seeds has those"),
        ("base.methods", "each of config.rows has its own"),
        ("base.teacher.learning_rate", "config.grid"),
        ("base.teacher.lora.rank", "tuning is full"),
        ("search.budget", "config.search.kind is grid"),
        ("search.near.attention_weight", "config.grid.attention_weight has no values"),
        ("margin", "config.claims is empty"),
    ],
)
def test_settings_that_change_no_trial_of_a_study_are_refused(given: str, why: str) -> None:
    config = study.get_config("digits")

    with pytest.raises(SettingError, match=f"config.{given} has no effect: .*{why}"):
        of_study.check(config, [given])


def test_settings_of_teachers_are_refused_in_a_study_without_one() -> None:
    rows = study.rows("scratch")
    columns = {"digits": study.column("Digits")}
    config = study.make("x", rows, columns, base=study.get_config("digits").base)

    for given in ("base.teacher.rho", "base.student.temperatures", "base.information.steps"):
        with pytest.raises(SettingError, match=f"config.{given} has no effect: no row has a teach"):
            of_study.check(config, [given])


def test_settings_that_change_some_trials_of_a_study_pass() -> None:
    given = ["base.teacher.steps", "base.data.validation", "grid.rho", "seeds", "storage"]
    config = study.get_config("digits")

    of_study.check(config, given)
    config.only = "scratch"  # Other commands run the other rows.
    of_study.check(config, given)


def test_a_path_without_a_matching_name_gets_advice() -> None:
    with pytest.raises(SettingError, match=r"set config\.data\.name=folder"):
        check_remem(_changed(data__path="my_images"))


@pytest.mark.parametrize(("path", "name"), [("a.npz", "arrays"), ("a.csv", "list")])
def test_the_advice_depends_on_the_type_of_the_file(path: str, name: str) -> None:
    config = remem.get_config("cifar100")
    config.data.path = path

    with pytest.raises(SettingError, match=rf"set config\.data\.name={name}"):
        check_remem(config)


@pytest.mark.parametrize("group", ["teacher", "student"])
def test_a_batch_far_larger_than_the_training_split_is_refused(
    group: str, tmp_path: pathlib.Path
) -> None:
    config = _changed(**{f"{group}__batch_size": 3000})

    with pytest.raises(SettingError, match=rf"config\.{group}\.batch_size is 3000.* 1150 images"):
        workflow.run(config, tmp_path)


def test_the_batch_size_of_an_untrained_teacher_is_not_checked() -> None:
    config = _changed(methods=("scratch",), teacher__batch_size=3000)

    counts.check(config, sources.digits(), RULES)


@pytest.mark.parametrize(
    ("methods", "batch", "most"),
    [(("finetune",), 4602, 2300), (("scratch", "finetune"), 2302, 1150)],
)
def test_a_batch_of_students_with_teachers_may_have_unlabelled_images_too(
    methods: tuple[str, ...], batch: int, most: int
) -> None:
    labels = np.full(5000, sources.NO_LABEL)
    split = sources.in_memory(np.zeros((5000, 1, 1, 3), np.uint8), labels, "image")
    unlabelled = sources.Unlabelled(split, largest_share=0.5, skipped_files={})
    source = sources.digits()._replace(unlabelled=unlabelled)
    config = _changed(methods=methods, student__batch_size=2 * most)
    counts.check(config, source, RULES)
    config.student.batch_size = batch

    with pytest.raises(SettingError, match=f"student.batch_size is {batch}.* at most {most}"):
        counts.check(config, source, RULES)


def test_the_training_count_excludes_held_out_images(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, 50)
    split = sources.in_memory(np.zeros((50, 1, 1, 3), np.uint8), labels, "image")
    source = sources.digits()._replace(splits={"train": split, "test": split})

    held = sum(max(round(0.2 * count), 1) for count in np.bincount(labels))
    assert splitting.train_images(source, RULES) == 50 - held
    with_validation = source._replace(splits={**source.splits, "validation": split})
    assert splitting.train_images(with_validation, RULES) == 50
    # A fifth is test, then a fifth of the rest is validation.
    test = np.round(0.2 * np.bincount(labels)).astype(int)
    rest = np.bincount(labels) - test
    alone = source._replace(splits={"train": split})
    assert splitting.train_images(alone, RULES) == np.sum(rest - np.round(0.2 * rest).astype(int))
