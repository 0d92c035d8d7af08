"""Settings of an analysis that cannot be used are refused by name before any work starts."""

import pathlib
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from configs import analysis as configs
from configs import quickstart
from remem_jax import mesh, settings
from remem_jax.checks import SettingError
from remem_jax.settings import analysis, information


@pytest.fixture
def config(tmp_path: pathlib.Path) -> ConfigDict:
    """All analyses, of two files that are accepted as checkpoints until they are read."""
    inits = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.npz").touch()
        inits.append(str(tmp_path / f"{name}.npz"))
    config = configs.get_config(f"digits,init={'|'.join(inits)}")
    config.data.image_size = 32
    return config


def _set(config: ConfigDict, name: str, value: Any) -> None:
    with config.unlocked(), config.ignore_type():
        *groups, last = name.split(".")
        for group in groups:
            config = config[group]
        config[last] = value


def test_a_config_of_all_analyses_passes(config: ConfigDict) -> None:
    analysis.check(config)


BAD: list[tuple[str, Any]] = [
    ("analyses", ()),
    ("analyses", ("expertness", "sharpness")),
    ("seed", -1),
    ("data.name", "imagenet"),
    ("data.image_size", 0),
    ("model_order", ()),
    ("model_order", ("model_0",)),
    ("model_order", ("model_0", "model_1", "model_2")),
    ("model_order", ("model_0", "model_0", "model_1")),
    ("models.model_1.teacher.init", "nowhere.npz"),
    ("models.model_1.teacher.variant", "B/17"),
    ("models.model_0.teacher.gelu", "exact"),
    ("models.model_0.teacher.tuning", "lora"),
    ("models.model_0.teacher.learning_rates", (0.1,)),  # Not a setting of config.teacher.
    ("images.splits", ()),
    ("images.splits", ("train", "valid")),
    ("images.examples", -1),
    ("images.batch_size", 0),
    ("information.seeds", ()),
    ("information.seeds", (0, -1)),
    ("information.evaluations", 1),  # A slope needs two evaluations.
    ("information.steps", 9),  # Fewer than the evaluations.
    ("information.batch_size", 1),  # InfoNCE contrasts an image with others.
    ("information.learning_rate", 0.0),
    ("information.rematerialise", "everything"),
    ("information.betas", (0.9, 1.0)),
    ("information.betas", (-0.1, 0.9)),
    ("information.weight_decay", -1e-4),
    ("information.epsilon", 0.0),
    ("information.align_corners", "yes"),
    ("information.pictures", -1),
    ("information.info_nce.measured", "yes"),
    ("information.info_nce.noise", 0.0),
    ("information.info_nce.grid", 0),
    ("information.info_nce.blocks", 0),
    ("information.info_nce.blocks", 12),  # Does not divide 32.
    ("information.info_nce.hidden", 0),
    ("information.info_nce.embedding", 0),
    ("expertness.clusters", 1),
    ("expertness.clusters", -1),
    ("expertness.seeds", ()),
    ("expertness.seeds", (-1,)),
    ("expertness.null_seeds", ()),
    ("expertness.null_seeds", (-1,)),
    ("expertness.threshold", -0.1),
    ("criticality.layers", ()),
    ("criticality.layers", (0, 1)),  # But only one number of examples.
    ("criticality.examples", (0, 1)),
    ("criticality.examples", (-1,)),
    ("criticality.batch_size", 0),
    ("criticality.chunk", 0),
    ("criticality.neurons", 0),
    ("criticality.images", 0),
    ("criticality.visualization.steps", -1),
    ("criticality.visualization.seeds", ()),
    ("criticality.visualization.learning_rate", 0.0),
    ("criticality.visualization.jitter", -1),
    ("criticality.visualization.batch_size", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value}" for name, value in BAD])
def test_an_invalid_setting_is_named(config: ConfigDict, name: str, value: Any) -> None:
    _set(config, name, value)
    group, _, rest = name.partition(".teacher.")  # A model overrides settings of config.teacher.
    if name == "criticality.layers" and value:
        rest = "criticality.examples"

    with pytest.raises(SettingError) as error:
        analysis.check(config)

    assert f"config.{group.removeprefix('config.')}" in str(error.value)
    assert rest.removeprefix("criticality.") in str(error.value)


def test_a_layer_may_not_be_repeated(config: ConfigDict) -> None:
    config.criticality.layers, config.criticality.examples = (-1, -1), (10, 20)

    with pytest.raises(SettingError, match=r"config\.criticality\.layers repeats a value"):
        analysis.check(config)


def test_titles_of_models_must_be_distinct(config: ConfigDict) -> None:
    config.models.model_1.title = config.models.model_0.title

    with pytest.raises(SettingError, match=r"config\.models: titles must be distinct.* one, one"):
        analysis.check(config)


def test_the_error_on_an_unknown_teacher_setting_lists_the_known_ones(
    config: ConfigDict,
) -> None:
    _set(config, "models.model_1.teacher.layers", 3)

    with pytest.raises(SettingError, match=r"config\.models\.model_1\.teacher .*init.*'layers'"):
        analysis.check(config)


@pytest.mark.parametrize("name", ["information", "expertness", "criticality"])
def test_settings_of_analyses_that_are_not_selected_are_not_checked(
    config: ConfigDict, name: str
) -> None:
    config.analyses = tuple(other for other in analysis.ANALYSES if other != name)
    config[name] = ConfigDict()

    analysis.check(config)


def test_image_sizes_that_a_decoder_cannot_produce_are_refused() -> None:
    config = quickstart.get_config()
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"multiple of 8"):
        information.check(config.information, 36)


def test_a_run_checks_settings_of_information_only_if_it_is_measured() -> None:
    config = quickstart.get_config()
    config.information.evaluations = 1
    settings.check_remem(config)
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"config\.information\.evaluations"):
        settings.check_remem(config)


def test_a_models_settings_override_the_shared_ones(config: ConfigDict) -> None:
    config.models.model_1.teacher.pruned_mlp = 2

    configs_by_name = dict(analysis.of_models(config))

    assert list(configs_by_name) == ["model_0", "model_1"]
    assert [model.teacher.pruned_mlp for model in configs_by_name.values()] == [0, 2]
    assert configs_by_name["model_1"].teacher.init == config.models.model_1.teacher.init
    assert config.teacher.pruned_mlp == 0


def _combinations(config: ConfigDict) -> list[tuple[bool, float, float]]:
    groups = [variant.information for variant in analysis.of_sensitivity(config)]
    assert {group.betas[0] for group in groups} == {config.information.betas[0]}
    return [(group.align_corners, group.learning_rate, group.betas[1]) for group in groups]


def test_without_sensitivity_there_is_one_decoder_configuration(config: ConfigDict) -> None:
    assert _combinations(config) == [(True, 1e-3, 0.999)]


def test_decoder_settings_are_combined_with_the_default_first(config: ConfigDict) -> None:
    config.sensitivity.learning_rates = (3e-4, 1e-3)
    config.sensitivity.second_betas = (0.99, 0.999)
    config.sensitivity.align_corners = (False, True)

    combinations = _combinations(config)

    assert combinations[0] == (True, 1e-3, 0.999)
    every = {(c, r, b) for c in (True, False) for r in (3e-4, 1e-3) for b in (0.99, 0.999)}
    assert set(combinations) == every
    assert len(combinations) == len(every)


def test_the_default_decoder_setting_comes_first_even_if_not_listed(
    config: ConfigDict,
) -> None:
    config.sensitivity.learning_rates = (3e-4, 3e-3)

    assert [rate for _, rate, _ in _combinations(config)] == [1e-3, 3e-4, 3e-3]


def test_settings_compared_for_sensitivity_are_checked(config: ConfigDict) -> None:
    config.sensitivity.learning_rates = (1e-3, -1e-3)

    with pytest.raises(SettingError, match=r"config\.information\.learning_rate .* -0\.001"):
        analysis.check(config)


@pytest.mark.parametrize("group", ["images", "information", "criticality"])
def test_batches_of_an_analysis_must_divide_among_the_devices(
    config: ConfigDict, group: str
) -> None:
    devices = mesh.make_mesh(jax.devices()[:2])
    config.teacher.batch_size = 7  # No teacher is trained.
    settings.check_mesh(config, devices)
    config[group].batch_size = 31

    with pytest.raises(SettingError, match=rf"config\.{group}\.batch_size .* set it to 30 or 32"):
        settings.check_mesh(config, devices)


def test_decoder_batches_of_a_run_must_divide_among_the_devices() -> None:
    devices, config = mesh.make_mesh(jax.devices()[:2]), quickstart.get_config()
    config.information.batch_size = 31
    settings.check_mesh(config, devices)
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"config\.information\.batch_size"):
        settings.check_mesh(config, devices)
