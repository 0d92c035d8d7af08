"""Settings of an analysis: what cannot be used is refused by name, before any work starts."""

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
    """All analyses of two files that pass for checkpoints until they are read."""
    inits = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.npz").touch()
        inits.append(str(tmp_path / f"{name}.npz"))
    found = configs.get_config(f"digits,init={'|'.join(inits)}")
    found.data.image_size = 32
    return found


def _set(config: ConfigDict, name: str, value: Any) -> None:
    with config.unlocked(), config.ignore_type():
        *groups, last = name.split(".")
        for group in groups:
            config = config[group]
        config[last] = value


def test_an_analysis_of_all_passes(config: ConfigDict) -> None:
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
    ("models.model_0.teacher.learning_rates", (0.1,)),  # No setting of config.teacher.
    ("images.splits", ()),
    ("images.splits", ("train", "valid")),
    ("images.examples", -1),
    ("images.batch_size", 0),
    ("information.seeds", ()),
    ("information.seeds", (0, -1)),
    ("information.evaluations", 1),  # A slope needs two.
    ("information.steps", 9),  # Fewer than the evaluations.
    ("information.batch_size", 1),  # InfoNCE tells an image from others.
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
    ("criticality.layers", (0, 1)),  # And one number of examples.
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
def test_what_cannot_be_used_is_named(config: ConfigDict, name: str, value: Any) -> None:
    _set(config, name, value)
    group, _, rest = name.partition(".teacher.")  # Of a model, its settings of config.teacher.
    if name == "criticality.layers" and value:
        rest = "criticality.examples"

    with pytest.raises(SettingError) as error:
        analysis.check(config)

    assert f"config.{group.removeprefix('config.')}" in str(error.value)
    assert rest.removeprefix("criticality.") in str(error.value)


def test_a_block_is_not_named_twice(config: ConfigDict) -> None:
    config.criticality.layers, config.criticality.examples = (-1, -1), (10, 20)

    with pytest.raises(SettingError, match=r"config\.criticality\.layers repeats a value"):
        analysis.check(config)


def test_models_have_titles_that_tell_them_apart(config: ConfigDict) -> None:
    config.models.model_1.title = config.models.model_0.title

    with pytest.raises(SettingError, match=r"config\.models: titles must be distinct.* one, one"):
        analysis.check(config)


def test_a_setting_that_a_teacher_has_not_is_answered_with_those_that_it_has(
    config: ConfigDict,
) -> None:
    _set(config, "models.model_1.teacher.layers", 3)

    with pytest.raises(SettingError, match=r"config\.models\.model_1\.teacher .*init.*'layers'"):
        analysis.check(config)


@pytest.mark.parametrize("name", ["information", "expertness", "criticality"])
def test_what_is_not_asked_for_is_not_checked(config: ConfigDict, name: str) -> None:
    config.analyses = tuple(one for one in analysis.ANALYSES if one != name)
    config[name] = ConfigDict()

    analysis.check(config)


def test_images_that_a_decoder_cannot_make_are_refused() -> None:
    config = quickstart.get_config()
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"multiple of 8"):
        information.check(config.information, 36)


def test_a_run_checks_how_its_teachers_are_measured_where_they_are() -> None:
    config = quickstart.get_config()
    config.information.evaluations = 1
    settings.check_remem(config)
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"config\.information\.evaluations"):
        settings.check_remem(config)


def test_a_model_has_its_settings_and_all_others(config: ConfigDict) -> None:
    config.models.model_1.teacher.pruned_mlp = 2

    found = dict(analysis.of_models(config))

    assert list(found) == ["model_0", "model_1"]
    assert [found[name].teacher.pruned_mlp for name in found] == [0, 2]
    assert found["model_1"].teacher.init == config.models.model_1.teacher.init
    assert config.teacher.pruned_mlp == 0


def _combinations(config: ConfigDict) -> list[tuple[bool, float, float]]:
    found = [one.information for one in analysis.of_sensitivity(config)]
    assert {one.betas[0] for one in found} == {config.information.betas[0]}
    return [(one.align_corners, one.learning_rate, one.betas[1]) for one in found]


def test_without_sensitivity_there_is_one_setting_of_decoders(config: ConfigDict) -> None:
    assert _combinations(config) == [(True, 1e-3, 0.999)]


def test_all_settings_of_decoders_are_combined_and_the_own_comes_first(config: ConfigDict) -> None:
    config.sensitivity.learning_rates = (3e-4, 1e-3)
    config.sensitivity.second_betas = (0.99, 0.999)
    config.sensitivity.align_corners = (False, True)

    found = _combinations(config)

    assert found[0] == (True, 1e-3, 0.999)
    every = {(c, r, b) for c in (True, False) for r in (3e-4, 1e-3) for b in (0.99, 0.999)}
    assert set(found) == every
    assert len(found) == len(every)


def test_the_own_setting_of_decoders_comes_first_also_where_it_is_not_compared(
    config: ConfigDict,
) -> None:
    config.sensitivity.learning_rates = (3e-4, 3e-3)

    assert [rate for _, rate, _ in _combinations(config)] == [1e-3, 3e-4, 3e-3]


def test_a_setting_that_is_compared_is_checked(config: ConfigDict) -> None:
    config.sensitivity.learning_rates = (1e-3, -1e-3)

    with pytest.raises(SettingError, match=r"config\.information\.learning_rate .* -0\.001"):
        analysis.check(config)


@pytest.mark.parametrize("group", ["images", "information", "criticality"])
def test_devices_share_the_batches_of_an_analysis(config: ConfigDict, group: str) -> None:
    on = mesh.make_mesh(jax.devices()[:2])
    config.teacher.batch_size = 7  # No teacher is trained.
    settings.check_mesh(config, on)
    config[group].batch_size = 31

    with pytest.raises(SettingError, match=rf"config\.{group}\.batch_size .* set it to 30 or 32"):
        settings.check_mesh(config, on)


def test_devices_share_the_batches_of_decoders_of_a_run() -> None:
    on, config = mesh.make_mesh(jax.devices()[:2]), quickstart.get_config()
    config.information.batch_size = 31
    settings.check_mesh(config, on)
    config.information.seeds = (0,)

    with pytest.raises(SettingError, match=r"config\.information\.batch_size"):
        settings.check_mesh(config, on)
