"""Settings that cannot be used are refused by name before any work starts."""

import dataclasses
import json
import pathlib
from typing import Any

import hypothesis
import ml_collections
import pytest
from hypothesis import strategies
from ml_collections import ConfigDict

from configs import analysis, quickstart, remem
from remem_jax import data, models, settings
from remem_jax.checks import SettingError
from remem_jax.methods import ALONE, METHODS, SCRATCH
from remem_jax.models import vit
from remem_jax.settings import memory as settings_memory
from remem_jax.settings import values
from remem_jax.settings.analysis import check as check_analysis
from remem_jax.storage import identity
from remem_jax.storage.identity import ADDED
from remem_jax.train import student_losses
from tests import tiny_run


@pytest.fixture
def weights(tmp_path: pathlib.Path) -> str:
    """A file that is accepted as a checkpoint until it is read."""
    (tmp_path / "weights.npz").touch()
    return str(tmp_path / "weights.npz")


@pytest.fixture
def config(weights: str) -> ConfigDict:
    """The settings of a run on digits."""
    config = tiny_run.digits()
    config.teacher.init = weights
    return config


def test_quickstart_passes() -> None:
    settings.check_remem(quickstart.get_config())


@pytest.mark.parametrize("name", data.NAMES)
def test_the_papers_settings_pass_for_every_data_set(name: str, weights: str) -> None:
    config = remem.get_config(name)
    config.teacher.init = weights

    settings.check_remem(config)


@pytest.mark.parametrize("variant", vit.VARIANTS)
def test_the_papers_settings_pass_for_every_teacher(variant: str, weights: str) -> None:
    config = remem.get_config(f"cifar100,variant={variant}")
    config.teacher.init = weights

    settings.check_remem(config)


BAD: list[tuple[str, Any]] = [
    ("methods", ()),
    ("methods", ("scratch", "distil")),
    ("methods", ("remem", "scratch", "remem")),
    ("seed", -1),
    ("seed", 2**32),  # Would wrap around to seed 0.
    ("methods", (1,)),
    ("methods", (["remem"],)),
    ("log_every", float("nan")),
    ("data.resident_gib", float("inf")),
    ("data.crop_area", (0.5,)),
    ("data.crop_area", ("0.5", "1")),
    ("data.validation", float("nan")),
    ("teacher.steps", (10.5, 20)),
    ("teacher.steps", ("10",)),
    ("teacher.steps", (True, 20)),
    ("teacher.learning_rate", float("nan")),
    ("teacher.clip_norm", float("inf")),
    ("student.losses", ("kd", "kd")),
    ("student.losses", (0.5,)),
    ("student.seeds", (0, 1, 0)),
    ("student.seeds", (0, 2**32)),
    ("student.seeds", (0.5,)),
    ("student.learning_rates", (0.1, 0.1)),
    ("student.learning_rates", (float("nan"),)),
    ("student.learning_rates", ("fast",)),
    ("student.temperatures", (1, 1.0)),
    ("student.temperatures", (None,)),
    ("student.weights", (0.5, 0.5)),
    ("information.seeds", (1, 1)),
    ("information.seeds", (2**32,)),
    ("log_every", 0),
    ("save_every", 0),
    ("data.name", "imagenet"),
    ("data.image_size", 0),
    ("data.image_size", 30),  # Not a multiple of the patch size.
    ("data.stored_size", 0),
    ("data.crop_area", (0.0, 1.0)),
    ("data.crop_area", (0.6, 0.5)),
    ("data.crop_area", (0.6, 1.1)),
    ("data.validation", 0.0),
    ("data.validation", 1.0),
    ("data.corrupt_limit", -1),
    ("data.resident_gib", 0.0),
    ("data.input", "disk"),
    ("data.threads", -1),
    ("data.workers", -1),
    ("teacher.model", "resnet18"),
    ("teacher.variant", "B/17"),
    ("teacher.init", "nowhere.npz"),
    ("teacher.ascent_examples", -2),
    ("teacher.ascent_examples", 7),  # Does not divide the batch size.
    ("teacher.accumulate", -1),
    ("teacher.accumulate", 7),
    ("teacher.rematerialise", "everything"),
    ("teacher.steps", ()),
    ("teacher.steps", (0, 10)),
    ("teacher.steps", (50, 50)),
    ("teacher.steps", (200, 50)),
    ("teacher.batch_size", 0),
    ("teacher.learning_rate", 0.0),
    ("teacher.warmup_steps", -1),
    ("teacher.warmup_steps", 200),
    ("teacher.momentum", -0.1),
    ("teacher.momentum", 1.0),
    ("teacher.nesterov", "no"),
    ("student.nesterov", 2),
    ("teacher.weight_decay", -1e-4),
    ("teacher.clip_norm", 0.0),
    ("teacher.dropout", 1.0),
    ("teacher.optimizer", "lion"),
    ("teacher.betas", (0.9, 1.0)),
    ("teacher.epsilon", 0.0),
    ("teacher.layer_decay", 0.0),
    ("teacher.layer_decay", 1.1),
    ("teacher.body_rate", -0.1),
    ("teacher.drop_path", 1.0),
    ("teacher.ema", 1.0),
    ("teacher.ema", -0.1),
    ("teacher.ema_warmup", "no"),
    ("student.ema", 1.0),
    ("student.dropout", 1.0),
    ("student.label_smoothing", 1.5),
    ("teacher.rho", -0.1),
    ("teacher.rho", float("nan")),
    ("teacher.mlp_weight", 0.0),
    ("teacher.mlp_weight", 2.0),
    ("teacher.attention_weight", 0.0),
    ("teacher.attention_weight", 2.0),
    ("teacher.residual", "none"),
    ("teacher.tuning", "prompt"),
    ("teacher.gelu", "relu"),
    ("teacher.position_resize", "cubic"),
    ("teacher.pruned_mlp", 13),
    ("teacher.pruned_attention", -1),
    ("compute_dtype", "float16"),
    ("student.model", "vit"),
    ("student.stem", "large"),
    ("student.losses", ("mse",)),
    ("student.hard_labels", "no"),
    ("student.losses", ()),
    ("student.seeds", ()),
    ("student.seeds", (-1,)),
    ("student.group", -1),
    ("student.flatten", 0.0),
    ("teacher.label_smoothing", 1.5),
    ("teacher.mcmi", -0.1),
    ("retries", -1),
    ("keep_checkpoints", 1),
    ("student.steps", 0),
    ("student.batch_size", 0),
    ("student.learning_rates", ()),
    ("student.learning_rates", (0.1, 0.0)),
    ("student.temperatures", ()),
    ("student.temperatures", (4.0, 0.0)),
    ("student.weights", ()),
    ("student.weights", (0.5, 1.1)),
    ("student.weights", (-0.1, 0.5)),
    ("student.warmup_steps", 80),
    ("student.momentum", 1.0),
    ("student.weight_decay", -1e-4),
    ("student.evaluations", 0),
    ("student.evaluations", 301),
]


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    assert last in config
    with config.ignore_type():
        config[last] = value


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_invalid_setting_is_refused_by_its_name(
    config: ConfigDict, name: str, value: Any
) -> None:
    _set(config, name, value)

    with pytest.raises(SettingError, match=rf"config\.{name}\b"):
        settings.check_remem(config)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_error_message_is_one_line(config: ConfigDict, name: str, value: Any) -> None:
    _set(config, name, value)

    with pytest.raises(SettingError) as error:
        settings.check_remem(config)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.crop_area", (1.0, 1.0)),
        ("teacher.steps", (200,)),
        ("teacher.warmup_steps", 0),
        ("teacher.warmup_steps", 119),
        ("teacher.momentum", 0.0),
        ("teacher.rho", 0.0),
        ("teacher.mlp_weight", 0.01),
        ("teacher.mlp_weight", 1.99),
        ("student.weights", (0.0, 1.0)),
        ("student.momentum", 0.0),
        ("student.evaluations", 80),
    ],
)
def test_a_setting_at_its_limit_passes(config: ConfigDict, name: str, value: Any) -> None:
    _set(config, name, value)

    settings.check_remem(config)


def test_a_missing_checkpoint_says_what_to_do(config: ConfigDict) -> None:
    config.teacher.init = "nowhere/B_16.npz"

    advice = r"nowhere/B_16\.npz.*file of a ViT.*published name.*augreg:Ti/16.*bundled:Ti/16"
    with pytest.raises(SettingError, match=advice):
        settings.check_remem(config)


DINOV2 = "timm/vit_base_patch14_reg4_dinov2.lvd142m"


def test_repositories_need_not_be_downloaded_yet(config: ConfigDict) -> None:
    config.teacher.init, config.teacher.variant = DINOV2, ""

    settings.check_remem(config)


@pytest.mark.parametrize("variant", ["B/16", "S/16"])
def test_the_variant_of_a_recommended_teacher_is_checked(config: ConfigDict, variant: str) -> None:
    config.teacher.init, config.teacher.variant = f"hf-hub:{DINOV2}@main", variant

    with pytest.raises(SettingError, match=r"768 features and patches of 14 pixels.*set it to ''"):
        settings.check_remem(config)


def test_published_weights_need_not_be_downloaded_yet(config: ConfigDict) -> None:
    config.teacher.init, config.teacher.variant = "augreg:Ti/16", "Ti/16"

    settings.check_remem(config)


@pytest.mark.parametrize(
    ("init", "complaint"),
    [
        ("augreg:Ti/17", "known: augreg:Ti/16"),
        ("augreg:B/16", "a ViT-B/16; set config.teacher.variant to it, not to 'Ti/16'"),
    ],
)
def test_published_weights_of_another_model_are_refused(
    config: ConfigDict, init: str, complaint: str
) -> None:
    config.teacher.init = init

    with pytest.raises(SettingError, match=complaint):
        settings.check_remem(config)


@pytest.mark.parametrize(
    ("tuning", "group", "name", "value"),
    [
        ("lora", "lora", "rank", 0),
        ("lora", "lora", "targets", ("query", "bias")),
        ("adapter_pfeiffer", "adapter", "reduction", 0),
    ],
)
def test_an_invalid_option_of_a_tuning_method_is_refused_by_its_name(
    config: ConfigDict, tuning: str, group: str, name: str, value: Any
) -> None:
    config.teacher.tuning = tuning
    _set(config, f"teacher.{group}.{name}", value)

    with pytest.raises(SettingError, match=rf"config\.teacher\.{group}.*{name[:6]}"):
        settings.check_remem(config)


def test_an_empty_variant_allows_any_teacher_size(config: ConfigDict) -> None:
    config.teacher.variant = ""

    settings.check_remem(config)


def test_an_unknown_data_set_lists_the_known_ones(config: ConfigDict) -> None:
    config.data.name = "imagenet"

    with pytest.raises(SettingError, match=", ".join(data.NAMES)):
        settings.check_remem(config)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_only_fixes_settings_of_the_teacher(method: str) -> None:
    assert METHODS[method].fixed.keys() <= set(remem.get_config().teacher)


def test_the_methods_without_a_teacher_are_known() -> None:
    without = [name for name, method in METHODS.items() if not method.has_teacher]
    assert without == [SCRATCH, ALONE]
    assert [name for name, method in METHODS.items() if method.starts_random] == [SCRATCH]


@pytest.mark.parametrize(
    ("method", "rho", "mlp_weight"),
    [("finetune", 0.0, 1.0), ("sam", 0.05, 1.0), ("reweight", 0.0, 0.8), ("remem", 0.05, 0.8)],
)
def test_methods_combine_sam_and_re_weighting(method: str, rho: float, mlp_weight: float) -> None:
    teacher = tiny_run.digits().teacher.to_dict()

    teacher |= METHODS[method].fixed

    assert (teacher["rho"], teacher["mlp_weight"]) == (rho, mlp_weight)


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        names += _leaves(value, f"{prefix}{name}.") if nested else [prefix + name]
    return names


FREE = (
    "data.refit",
    "log_every",
    "save_every",
    "differs",
    "track",
    "profile",
    "plan_only",
    "fsdp",
    "retries",
    "keep_checkpoints",
    "teacher.rematerialise",
    "teacher.accumulate",
    "information.rematerialise",
    "student.group",
    "student.store_outputs",
    "flatness.batch_size",
    "data.cache",
    "data.threads",
    "data.workers",
)


# Settings that others need to have an effect.
NEEDS = {
    "student.pretrained_learning_rates": {"student.init": "weights.safetensors"},
    "data.unlabelled_share": {"data.unlabelled": "images"},
    "flatness.examples": {"flatness.radius": 0.05},
    "teacher.probe_learning_rate": {"teacher.probe_steps": 5},
}
PATHS = ("data.path", "data.dir", "data.root", "teacher.init", "teacher.mirror")
# The digest of the images has what they hold out.
HELD_OUT = (
    *("data.official_validation", "data.group_duplicates"),
    *("data.group_pattern", "data.group_feature"),
)


@pytest.mark.parametrize(
    "name", [n for n in _leaves(quickstart.get_config()) if n not in (*FREE, *PATHS, *HELD_OUT)]
)
def test_a_setting_is_part_of_the_runs_identity(config: ConfigDict, name: str) -> None:
    for other, value in NEEDS.get(name, {}).items():
        _set(config, other, value)
    before = settings.deciding(config)

    _set(config, name, "something else")

    assert settings.deciding(config) != before


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, added in ADDED.items() for name in added]
)
def test_a_run_of_an_earlier_version_without_a_setting_goes_on(
    config: ConfigDict, group: str, name: str
) -> None:
    with_setting = settings.plain(config)
    without = {
        name: dict(value) if group == name else value for name, value in with_setting.items()
    }
    del without[group][name]

    assert identity.deciding(without) == identity.deciding(with_setting)


@pytest.mark.parametrize("name", [*FREE, *PATHS, *HELD_OUT])
def test_settings_of_logging_speed_and_paths_are_not_part_of_the_identity(
    config: ConfigDict, name: str
) -> None:
    before = settings.deciding(config)

    _set(config, name, "something else")

    assert settings.deciding(config) == before


def test_the_identity_survives_json(config: ConfigDict) -> None:
    deciding = settings.deciding(config)

    assert json.loads(json.dumps(deciding)) == deciding


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
def test_an_option_that_a_student_lacks_is_refused(
    config: ConfigDict, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*, classes: int, stem: str, dtype: str) -> Any:
        """Makes a network without such options."""

    monkeypatch.setitem(models.STUDENTS, "mine", models.Student(make, ("fc/kernel",)))
    config.student.model = "mine"
    settings.check_remem(config)
    config.student[name] = 0.1

    with pytest.raises(SettingError, match=rf"config\.student\.{name} is 0\.1.* mine has no such"):
        settings.check_remem(config)


@pytest.mark.parametrize(("name", "value"), [("accumulate", 2), ("ascent_examples", 4)])
def test_mcmi_needs_whole_batches(config: ConfigDict, name: str, value: int) -> None:
    config.teacher.mcmi = 0.25
    config.teacher[name] = value

    with pytest.raises(SettingError, match=r"config\.teacher\.mcmi needs whole batches"):
        settings.check_remem(config)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "blocks"), ("True", "blocks"), (False, "auto"), ("False", "auto")],
)
def test_boolean_values_of_rematerialise_from_earlier_configs_are_read(
    value: Any, expected: str
) -> None:
    assert settings_memory.recomputed("config.teacher.rematerialise", value) == expected


@pytest.mark.parametrize("loss", ["features", "features_cls"])
def test_feature_losses_cannot_use_stored_outputs(config: ConfigDict, loss: str) -> None:
    config.student.losses = ("kd", loss)
    config.student.store_outputs = True

    with pytest.raises(
        SettingError,
        match=rf"config\.student\.store_outputs.* {loss} out of config\.student\.losses",
    ):
        settings.check_remem(config)


@pytest.mark.parametrize(
    ("loss", "weight", "hard_labels"),
    [("features", 1.0, True), ("features_cls", 1.0, False), ("dist", 0.0, False)],
)
def test_a_weight_that_leaves_nothing_to_learn_is_refused(
    config: ConfigDict, loss: str, weight: float, hard_labels: bool
) -> None:
    config.student.losses = (loss,)
    config.student.weights = (0.5, weight)
    config.student.hard_labels = hard_labels

    with pytest.raises(SettingError, match=rf"config\.student\.weights.*the loss {loss}"):
        settings.check_remem(config)


@pytest.mark.parametrize("hard_labels", [True, False])
def test_every_loss_works_with_hard_labels_and_most_without(
    config: ConfigDict, hard_labels: bool
) -> None:
    config.student.losses = tuple(
        name for name, loss in student_losses.LOSSES.items() if hard_labels or loss.without_labels
    )
    config.student.hard_labels = hard_labels

    settings.check_remem(config)


def test_a_loss_that_needs_labels_is_refused_without_them(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = dataclasses.replace(student_losses.LOSSES["kd"], without_labels=None)
    monkeypatch.setitem(student_losses.LOSSES, "needy", record)
    config.student.losses = ("kd", "needy")
    settings.check_remem(config)

    config.student.hard_labels = False
    with pytest.raises(SettingError, match=r"config\.student\.hard_labels .* the loss needy needs"):
        settings.check_remem(config)


def test_a_password_is_neither_recorded_nor_part_of_the_identity(config: ConfigDict) -> None:
    recorded = []
    for password in ("one", "two"):
        config.teacher.mirror = f"https://me:{password}@host/weights?token={password}"
        recorded.append(settings.plain(config))

    assert recorded[0] == recorded[1]
    assert recorded[0]["teacher"]["mirror"] == "https://***@host/weights?***"


def test_seeds_of_students_have_31_bits(config: ConfigDict) -> None:
    config.seed, config.student.seeds = 2**32 - 1, (0, 2**31 - 1)
    settings.check_remem(config)

    config.student.seeds = (0, 2**31)
    with pytest.raises(SettingError, match=r"config\.student\.seeds .* to 2,147,483,647, got"):
        settings.check_remem(config)


ANYTHING = strategies.one_of(
    strategies.integers(-(2**70), 2**70),
    strategies.floats(),
    strategies.text(max_size=3),
    strategies.booleans(),
    strategies.none(),
    strategies.lists(strategies.integers(), max_size=2),
)
OF_A_TYPE: dict[type, strategies.SearchStrategy[Any]] = {
    bool: strategies.booleans(),
    int: strategies.integers(-(2**70), 2**70),
    float: strategies.floats(),
    str: strategies.text(max_size=5),
    tuple: strategies.lists(ANYTHING, max_size=3).map(tuple),
}


@pytest.mark.parametrize(
    ("preset", "check"),
    [
        (quickstart.get_config, settings.check_remem),
        (analysis.get_config, check_analysis),
    ],
)
@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(drawn=strategies.data())
def test_values_of_the_right_type_pass_or_are_refused_in_one_line(
    preset: Any, check: Any, drawn: strategies.DataObject
) -> None:
    config = preset()
    leaves = [(n, v) for n, v in values.leaves(config) if type(v) in OF_A_TYPE]
    for name, value in drawn.draw(strategies.lists(strategies.sampled_from(leaves), max_size=3)):
        _set(config, name, drawn.draw(OF_A_TYPE[type(value)], label=name))

    message = ""
    try:
        check(config)
    except SettingError as error:
        message = str(error)

    assert len(message.splitlines()) <= 1
