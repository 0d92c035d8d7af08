"""What a report names as different from the paper."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

import configs.settings
from configs import quickstart, remem
from remem_jax import data, models, settings
from remem_jax.data import registry
from remem_jax.methods import METHODS
from remem_jax.report import protocol
from remem_jax.storage.identity import described
from remem_jax.train import student_losses
from remem_jax.weights import catalog
from tools import make_reference


def _config(changes: dict[str, Any] | None = None, spec: str = "cifar100") -> dict[str, Any]:
    """The paper's settings as results.json has them, but for changes by dotted name."""
    return _changed(remem.get_config(spec), changes or {})


def _changed(config: ConfigDict, changes: dict[str, Any]) -> dict[str, Any]:
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return described(settings.plain(config))


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        found += (
            _leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
        )
    return found


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
def test_a_mark_says_whether_the_papers_value_is_lost(name: str) -> None:
    marks = {mark for mark in _MARKS if mark in _COMMENTS[name]}

    assert marks & ({"[choice]", "[source]"} if protocol.PAPER[name].lost else set(_MARKS[:3]))


def test_the_tables_have_no_setting_that_is_gone() -> None:
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
def test_a_setting_counts_in_the_methods_that_do_not_fix_it(name: str, methods: set[str]) -> None:
    counts = {method for method in METHODS if protocol._has_effect_in(method, f"teacher.{name}")}

    assert counts == methods


def test_a_method_beyond_the_papers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", METHODS["remem"]._replace(in_paper=False))

    (sentence,) = protocol.deviations(_config({"methods": ("mine", "remem")}))

    assert sentence.startswith("methods has mine; the paper has scratch, finetune")


@pytest.mark.parametrize("loss", ["kd", "dist", "patient"])
def test_the_papers_own_settings_differ_in_nothing(loss: str) -> None:
    assert protocol.deviations(_config(spec=f"cifar100,loss={loss}")) == []


@pytest.mark.parametrize("variant", ["Ti/16", "S/16", "L/16"])
@pytest.mark.parametrize("student", ["resnet18", "mobilenet_v2"])
def test_the_papers_other_models_differ_in_nothing(variant: str, student: str) -> None:
    found = _config(spec=f"cifar100,variant={variant},student={student}")

    assert protocol.deviations(found) == []


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
def test_every_setting_of_the_table_is_named_where_it_counts(name: str) -> None:
    tuning = "lora" if ".lora." in name else "adapter_pfeiffer"
    counting = {"teacher.tuning": tuning, "information.seeds": (0,)}

    found = protocol.deviations(_config({**counting, name: "another"}))

    assert any(sentence.startswith(f"{name} is another") for sentence in found)


@pytest.mark.parametrize("loss", sorted(set(student_losses.LOSSES) - {"kd", "dist"}))
def test_losses_beyond_the_papers_are_named(loss: str) -> None:
    found = protocol.deviations(_config({"student.losses": (loss,)}))

    assert found == [f"student.losses has {loss}; the paper has kd and dist."]


@pytest.mark.parametrize("model", [n for n, s in models.STUDENTS.items() if s.paper != n])
def test_students_beyond_the_papers_are_named(model: str) -> None:
    (sentence,) = protocol.deviations(_config({"student.model": model}))

    assert sentence.startswith(f"student.model is {model}; the paper has")


@pytest.mark.parametrize("name", sorted(set(data.NAMES) - set(registry.RECORDS)))
def test_data_beyond_the_papers_are_named(name: str) -> None:
    assert len(protocol.deviations(_config({"data.name": name}))) == 1


def test_with_several_losses_each_has_its_grid() -> None:
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
def test_images_are_mixed_as_in_patient_distillation_or_it_is_named(
    mixup: float, losses: tuple[str, ...], named: bool
) -> None:
    config = _config({"student.mixup": mixup, "student.losses": losses})

    found = [one for one in protocol.deviations(config) if one.startswith("student.mixup")]

    assert len(found) == named


@pytest.mark.parametrize(
    ("methods", "named"),
    [(("scratch",), False), (("scratch", "finetune"), False), (("sam",), True)],
)
def test_what_the_methods_fix_is_not_named(methods: tuple[str, ...], named: bool) -> None:
    config = _config({"methods": methods, "teacher.rho": 0.2})

    assert bool(protocol.deviations(config)) == named


def test_from_scratch_nothing_of_a_teacher_is_named() -> None:
    changes = {"methods": ("scratch",), "teacher.init": "mine.npz", "teacher.steps": (3,)}

    assert protocol.deviations(_config(changes)) == []


def test_options_of_a_tuning_that_is_not_used_are_not_named() -> None:
    changes = {"teacher.lora.rank": 4, "teacher.adapter.reduction": 2}

    assert protocol.deviations(_config(changes)) == []
    assert len(protocol.deviations(_config({**changes, "teacher.tuning": "lora"}))) == 1


def test_a_file_of_the_papers_weights_has_several_names() -> None:
    same = "augreg:B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    assert catalog.find(same).path == catalog.find("augreg:B/16").path

    assert protocol.deviations(_config({"teacher.init": same})) == []


def test_the_quick_start_differs_in_its_images_its_teacher_and_its_length() -> None:
    found = " ".join(protocol.deviations(_changed(quickstart.get_config(), {})))

    for words in ("8 x 8 pixels", "80,000 small images", "data.image_size", "student.steps"):
        assert words in found


def test_the_quick_start_on_other_images_says_nothing_of_digits(tmp_path: pathlib.Path) -> None:
    changes = {"data.name": "folder", "data.path": str(tmp_path), "teacher.init": "B_16.npz"}
    config = _changed(quickstart.get_config(), changes)

    found = " ".join([*quickstart.get_config().differs, *protocol.deviations(config)])

    assert "8 x 8" not in found
    assert "small images" not in found
    assert "user's own" in found


def test_what_an_older_run_did_not_have_is_not_judged() -> None:
    assert protocol.deviations({}) == []
    assert protocol.deviations({"student": {"steps": 20_000}}) == []
