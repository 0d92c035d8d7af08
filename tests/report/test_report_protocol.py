"""The deviations from the paper that a report lists."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

import configs.settings
from configs import quickstart, remem
from remem_jax import data, models, settings
from remem_jax.data import registry
from remem_jax.methods import METHODS
from remem_jax.report import effects, protocol
from remem_jax.storage.identity import described
from remem_jax.train import student_losses
from remem_jax.weights import catalog
from tools import make_reference


def _config(changes: dict[str, Any] | None = None, spec: str = "cifar100") -> dict[str, Any]:
    """Returns the paper's settings as in results.json, with changes by dotted name."""
    return _changed(remem.get_config(spec), changes or {})


def _changed(config: ConfigDict, changes: dict[str, Any]) -> dict[str, Any]:
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return described(settings.plain(config))


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names += (
            _leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
        )
    return names


_MARKS = ("[text]", "[source]", "[derived]", "[choice]", "[free]")
_COMMENTS = make_reference.comments(pathlib.Path(str(configs.settings.__file__)))


@pytest.mark.parametrize("name", _leaves(remem.get_config()))
def test_a_setting_is_compared_with_the_paper_unless_it_is_free(name: str) -> None:
    compared = [name in protocol.PAPER, name in protocol.NAMED]
    marks = [mark for mark in _MARKS if mark in _COMMENTS[name]]

    assert marks, f"{name}: say where its default comes from, in configs/settings.py."
    assert compared.count(True) == (0 if marks == ["[free]"] else 1), (
        f"{name}: mark it [free] in configs/settings.py, or add it to a table of protocol.py."
    )


@pytest.mark.parametrize("name", protocol.PAPER)
def test_the_mark_shows_whether_the_papers_value_is_unknown(name: str) -> None:
    marks = {mark for mark in _MARKS if mark in _COMMENTS[name]}

    assert marks & ({"[choice]", "[source]"} if protocol.PAPER[name].lost else set(_MARKS[:3]))


def test_the_tables_contain_only_existing_settings() -> None:
    assert {*protocol.PAPER, *protocol.NAMED} <= set(_leaves(remem.get_config()))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("rho", {"sam", "remem"}),
        ("ascent_examples", {"sam", "remem"}),
        ("mlp_weight", {"reweight", "remem"}),
        ("attention_weight", {"reweight", "remem"}),
        ("residual", {"reweight", "remem"}),
        ("learning_rate", {"finetune", "sam", "reweight", "remem"}),
    ],
)
def test_a_setting_applies_to_the_methods_that_do_not_fix_it(name: str, methods: set[str]) -> None:
    applicable = {method for method in METHODS if effects.has_effect_in(method, f"teacher.{name}")}

    assert applicable == methods


def test_a_method_that_is_not_the_papers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", METHODS["remem"]._replace(in_paper=False))

    (sentence,) = protocol.deviations(_config({"methods": ("mine", "remem")}))

    assert sentence.startswith("methods has mine; the paper has scratch, finetune")


@pytest.mark.parametrize("loss", ["kd", "dist", "patient"])
def test_the_papers_settings_have_no_deviations(loss: str) -> None:
    assert protocol.deviations(_config(spec=f"cifar100,loss={loss}")) == []


@pytest.mark.parametrize("variant", ["Ti/16", "S/16", "L/16"])
@pytest.mark.parametrize("student", ["resnet18", "mobilenet_v2"])
def test_the_papers_other_models_have_no_deviations(variant: str, student: str) -> None:
    config = _config(spec=f"cifar100,variant={variant},student={student}")

    assert protocol.deviations(config) == []


def test_patient_distillation_takes_ten_times_the_steps() -> None:
    config = _config({"student.steps": 20_000}, spec="cifar100,loss=patient")

    (sentence,) = protocol.deviations(config)

    assert sentence == "student.steps is 20,000; the paper has 200,000."


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("data.image_size", 64, "data.image_size is 64; the paper has 224."),
        ("student.steps", 300, "student.steps is 300; the paper has 20,000."),
        ("teacher.mcmi", 0.25, "teacher.mcmi is 0.25; the paper has 0.0."),
        ("teacher.rho", 0.2, "teacher.rho is 0.2; the paper has one of 0.5, 0.05, 0.005."),
        ("student.weights", (0.9,), "student.weights is 0.9; the paper has 0.1, 0.5, 0.9."),
        ("student.hard_labels", False, "student.hard_labels is False; the paper has True."),
        ("student.stem", "small", "student.stem is small; the paper has imagenet."),
        (
            "student.batch_size",
            64,
            "student.batch_size is 64; the paper's text does not say, and our choice is 512.",
        ),
        (
            "data.crop_area",
            (0.6, 1.0),
            "data.crop_area is 0.6, 1.0; the paper's text does not say, and our choice is 0.05, "
            "1.0.",
        ),
        (
            "teacher.gelu",
            "erf",
            "teacher.gelu is erf; the paper's text does not say, and our choice is the "
            "checkpoint's.",
        ),
        (
            "student.losses",
            ("kd", "features"),
            "student.losses has features; the paper has kd and dist.",
        ),
        ("student.losses", ("mine",), "student.losses has mine; the paper has kd and dist."),
        (
            "student.model",
            "resnet50",
            "student.model is resnet50; the paper has resnet18, mobilenet_v2 and an "
            "EfficientNetV2.",
        ),
        (
            "teacher.init",
            "mine.npz",
            "teacher.init is mine.npz; the paper has one of augreg:Ti/16, augreg:S/16, "
            "augreg:B/16, augreg:L/16, sam:B/16, i21k:B/16.",
        ),
        (
            "data.name",
            "folder",
            "The images are the user's own, not one of the paper's data sets.",
        ),
    ],
)
def test_a_setting_that_is_not_the_papers_is_named(name: str, value: Any, sentence: str) -> None:
    assert protocol.deviations(_config({name: value})) == [sentence]


@pytest.mark.parametrize("name", protocol.PAPER)
def test_every_setting_of_the_table_is_named_if_it_applies(name: str) -> None:
    tuning = "lora" if ".lora." in name else "adapter_pfeiffer"
    required = {"teacher.tuning": tuning, "information.seeds": (0,), "student.init": "a file"}
    group = name.partition(".")[0]
    if name.endswith((".betas", ".epsilon")) and group != "information":
        required[f"{group}.optimizer"] = "adamw"
    if name.endswith(".ema_warmup"):
        required[f"{group}.ema"] = 0.9

    sentences = protocol.deviations(_config({**required, name: "another"}))

    assert any(sentence.startswith(f"{name} is another") for sentence in sentences)


@pytest.mark.parametrize(("group", "named"), [(0, 0), (512, 0), (64, 1)])
def test_an_ascent_of_the_whole_batch_is_no_deviation(group: int, named: int) -> None:
    assert len(protocol.deviations(_config({"teacher.ascent_examples": group}))) == named


@pytest.mark.parametrize(
    "changes",
    [
        {"student.body_rate": 0.1},
        {"student.layer_decay": 0.9},
        {"student.betas": (0.8, 0.9)},
        {"teacher.ema_warmup": True},
        {"teacher.optimizer": "adamw", "teacher.momentum": 0.5},
        {"student.optimizer": "adamw", "student.nesterov": False},
        {"teacher.momentum": 0.0, "teacher.nesterov": True},
    ],
)
def test_settings_without_an_effect_are_not_named(changes: dict[str, Any]) -> None:
    sentences = protocol.deviations(_config(changes))

    named = {"student.optimizer", "teacher.optimizer"} & set(changes)
    if changes.get("teacher.momentum") == 0:
        named |= {"teacher.momentum"}
    assert len(sentences) == len(named)


@pytest.mark.parametrize("loss", sorted(set(student_losses.LOSSES) - {"kd", "dist"}))
def test_losses_that_are_not_the_papers_are_named(loss: str) -> None:
    sentences = protocol.deviations(_config({"student.losses": (loss,)}))

    assert sentences == [f"student.losses has {loss}; the paper has kd and dist."]


@pytest.mark.parametrize("model", [n for n, s in models.STUDENTS.items() if s.paper != n])
def test_students_that_are_not_the_papers_are_named(model: str) -> None:
    (sentence,) = protocol.deviations(_config({"student.model": model}))

    assert sentence.startswith(f"student.model is {model}; the paper has")


@pytest.mark.parametrize("name", sorted(set(data.NAMES) - set(registry.RECORDS)))
def test_data_sets_that_are_not_the_papers_are_named(name: str) -> None:
    assert len(protocol.deviations(_config({"data.name": name}))) == 1


def test_each_of_several_losses_is_compared_with_its_own_grid() -> None:
    assert protocol.deviations(_config({"student.losses": ("kd", "dist")})) == [
        "student.learning_rates is 0.05, 0.1, 0.5; with the loss dist the paper has 0.5, 0.7, 1.0.",
        "student.temperatures is 1.0, 2.0, 4.0; with the loss dist the paper's text does not say, "
        "and our choice is 1.0.",
        "student.weights is 0.1, 0.5, 0.9; with the loss dist the paper has 1.0.",
    ]


@pytest.mark.parametrize(
    ("mixup", "losses", "named"),
    [(0.8, ("kd",), False), (0.2, ("kd",), True), (0.8, ("dist",), True), (0.0, ("dist",), False)],
)
def test_mixup_is_named_unless_it_is_that_of_patient_distillation(
    mixup: float, losses: tuple[str, ...], named: bool
) -> None:
    config = _config({"student.mixup": mixup, "student.losses": losses})

    sentences = [s for s in protocol.deviations(config) if s.startswith("student.mixup")]

    assert len(sentences) == named


@pytest.mark.parametrize(
    ("methods", "named"),
    [(("scratch",), False), (("scratch", "finetune"), False), (("sam",), True)],
)
def test_settings_that_the_methods_fix_are_not_named(methods: tuple[str, ...], named: bool) -> None:
    config = _config({"methods": methods, "teacher.rho": 0.2})

    assert bool(protocol.deviations(config)) == named


def test_teacher_settings_of_a_run_from_scratch_are_not_named() -> None:
    changes = {"methods": ("scratch",), "teacher.init": "mine.npz", "teacher.steps": (3,)}

    assert protocol.deviations(_config(changes)) == []


def test_options_of_unused_tuning_methods_are_not_named() -> None:
    changes = {"teacher.lora.rank": 4, "teacher.adapter.reduction": 2}

    assert protocol.deviations(_config(changes)) == []
    assert len(protocol.deviations(_config({**changes, "teacher.tuning": "lora"}))) == 1


def test_any_name_of_the_papers_weights_is_accepted() -> None:
    same = "augreg:B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    assert catalog.find(same).path == catalog.find("augreg:B/16").path

    assert protocol.deviations(_config({"teacher.init": same})) == []


def test_the_quick_start_deviates_in_images_teacher_and_length() -> None:
    text = " ".join(protocol.deviations(_changed(quickstart.get_config(), {})))

    for words in ("part of EuroSAT", "bundled:Ti/16", "data.image_size", "student.steps"):
        assert words in text


def test_the_quick_start_on_other_images_does_not_mention_its_own(tmp_path: pathlib.Path) -> None:
    changes = {"data.name": "folder", "data.path": str(tmp_path), "teacher.init": "B_16.npz"}
    config = _changed(quickstart.get_config(), changes)

    text = " ".join([*quickstart.get_config().differs, *protocol.deviations(config)])

    assert "EuroSAT" not in text
    assert "bundled" not in text
    assert "user's own" in text


def test_settings_that_an_older_run_lacks_are_ignored() -> None:
    assert protocol.deviations({}) == []
    assert protocol.deviations({"student": {"steps": 20_000}}) == []


def test_axes_that_the_paper_does_not_search_are_listed() -> None:
    table_6 = ("learning_rate", "rho", "mlp_weight", "attention_weight")
    papers = {f"teacher.{name}": (0.5, 0.9) for name in table_6}
    grids = {"teacher.steps": ((500,), (700,)), "student.temperatures": ((1.0,), (4.0,))}

    sentences = protocol.of_search(
        {**papers, **grids, "student.losses": (("kd",), ("kd", "dist")), "student.ema": (0.0, 0.9)}
    )

    assert sentences == [
        "The study searches student.losses over (kd), (kd, dist); the paper's grid does not have "
        "it.",
        "The study searches student.ema over 0.0, 0.9; the paper's grid does not have it.",
    ]
