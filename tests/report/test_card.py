"""The model card: its YAML metadata, its numbers, its code and its claims."""

import json
import math
import pathlib
import re
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from remem_jax import models, report
from remem_jax.data import bundled, registry
from remem_jax.data.images import decoding
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import formats, options, runs
from remem_jax.models.normalisation import IDENTITY, IMAGENET, Normalisation
from remem_jax.report.card import licences, model_card
from remem_jax.report.card import tables as card_tables
from remem_jax.report.run import tables as run_tables
from remem_jax.weights import catalog, student_normalisation, students
from tests import tiny_run
from tests.export import pictures
from tests.oracles import peers

HOSTILE = (
    '---\n- {a: "b", `c`: *d}\nlicense: mit #\t<b>|</b> \u202e\udcff\x00 %YAML !!python/object:x'
)
NAME, SIZE, CLASSES = "mobilenet_v2_035", 32, 3


@pytest.fixture
def hostile(results: dict[str, Any]) -> dict[str, Any]:
    """The results, with a hostile name wherever a stranger could put one."""
    results["data"] |= {"name": HOSTILE, "title": HOSTILE, "class_names": [HOSTILE, "one"]}
    results["models"] |= {"init": HOSTILE, "teacher": HOSTILE, "student": HOSTILE}
    results["methods"][2]["method"] = HOSTILE
    results["methods"][2]["student"]["test"]["confused"][0] |= {"class": HOSTILE}
    return results


def parsed(text: str) -> tuple[dict[str, Any], str]:
    """Splits a card into its metadata and its body at the second line of '---'."""
    before, head, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    assert before == ""
    return yaml.safe_load(head), body


def code(text: str) -> dict[str, str]:
    """Returns the Python blocks of a card by the first package that each imports."""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return {re.split(r"[\s.,]", block)[1]: block for block in blocks}


def cells(text: str, row: str) -> list[str]:
    """Returns the cells of a table row after the first, which is `row`."""
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", text, flags=re.MULTILINE)
    return [cell.strip() for cell in line.split(" | ")]


def test_the_metadata_survive_every_name(hostile: dict[str, Any]) -> None:
    text = model_card.markdown(hostile, HOSTILE)

    metadata, body = parsed(text)

    assert metadata["license"] == "other"
    # It is on one line, with a replacement for characters that text cannot contain.
    expected = (
        '--- - {a: "b", `c`: *d} license: mit # <b>|</b> \ufffd\ufffd\ufffd %YAML !!python/object:x'
    )
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == expected
    assert "<b>" not in body
    for block in code(text).values():
        compile(block, "card", "exec")  # Raises unless it is Python.
    text.encode()


def test_the_hub_accepts_the_metadata(results: dict[str, Any]) -> None:
    data: Any = huggingface_hub.ModelCard(model_card.markdown(results, "remem")).data

    assert data.pipeline_tag == "image-classification"
    values = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in data.eval_results
    }
    row = results["methods"][2]["student"]
    assert values["test", "accuracy"] == row["test"]["top1"]
    assert values["validation", "accuracy"] == row["validation"]["top1"]
    assert {result.task_type for result in data.eval_results} == {"image-classification"}
    assert {result.dataset_name for result in data.eval_results} == {"scikit-learn's digits"}


@pytest.mark.parametrize("method", ["scratch", "finetune", "remem"])
def test_every_metric_matches_the_results(results: dict[str, Any], method: str) -> None:
    (row,) = [row for row in results["methods"] if row["method"] == method]

    text = model_card.markdown(results, method)

    metadata, body = parsed(text)
    for entry in metadata["model-index"][0]["results"]:
        measured = row["student"][entry["dataset"]["split"]]
        expected = {n: v for n, v in measured.items() if isinstance(v, float)}
        kinds = {kind: name for name, (kind, _) in card_tables.METRICS.items()}
        assert {kinds[metric["type"]]: metric["value"] for metric in entry["metrics"]} == expected
    columns = [row["student"]["test"], row["student"]["validation"]]
    if row["teacher"]:
        columns = [
            m[split] for split in ("test", "validation") for m in (row["student"], row["teacher"])
        ]
    shares = [f"{100 * column['top1']:.2f}" for column in columns]
    assert cells(body, "Top-1 accuracy, %") == shares
    assert cells(body, "Loss, nats") == [f"{column['loss']:.6g}" for column in columns]


def test_a_metric_that_is_not_finite_is_not_in_the_metadata(results: dict[str, Any]) -> None:
    results["methods"][2]["student"]["test"]["loss"] = None  # JSON has no nan.

    metadata, _ = parsed(model_card.markdown(results, "remem"))

    kinds = [metric["type"] for metric in metadata["model-index"][0]["results"][0]["metrics"]]
    assert "accuracy" in kinds
    assert "cross_entropy" not in kinds


def test_the_card_describes_the_saved_student_of_several_seeds(results: dict[str, Any]) -> None:
    row = results["methods"][2]
    row["test_correct"] = None  # Makes the error binomial.
    ones = [row["student"]["test"] | {"top1": share} for share in (0.91, 0.94)]
    row["seeds"] = [
        {"seed": seed, "student": 0, "validation": row["student"]["validation"], "test": test}
        for seed, test in zip((5, 0), ones, strict=True)
    ]

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.91
    assert cells(body, "Top-1 accuracy, %")[0] == "91.00"
    # 0.015 * sqrt(2), and sqrt(0.91 * 0.09 / 400).
    assert "the mean on test is 92.50 with a sample standard deviation of 2.12 points" in body
    assert "the weights are those of seed 5" in body
    assert "is 1.43 points" in body


def test_a_card_counts_the_students_tried(results: dict[str, Any]) -> None:
    results["students"][1]["diverged"] = True

    text = model_card.markdown(results, "remem")

    assert (
        "selected on validation from 2 students (1 of them diverged) and 1 teacher checkpoints"
        in text
    )


def test_unofficial_data_are_not_listed_as_official(results: dict[str, Any]) -> None:
    results["data"] |= {"name": "cifar100", "title": "CIFAR-100", "official": True}
    official, of_official = parsed(model_card.markdown(results, "remem"))
    results["data"] |= {"official": False}

    other, of_other = parsed(model_card.markdown(results, "remem"))

    assert official["datasets"] == ["uoft-cs/cifar100"]
    assert "Do not compare" not in of_official
    assert "datasets" not in other
    for result in other["model-index"][0]["results"]:
        assert result["dataset"]["type"] == "cifar100-not-official"
    assert "Do not compare" in of_other


def test_no_licence_is_claimed_for_user_data_and_weights(results: dict[str, Any]) -> None:
    results["data"] |= {"name": "folder", "title": "mine"}
    results["models"]["init"] = "weights/mine.npz"

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata["license"] == "other"
    assert "base_model" not in metadata
    assert "datasets" not in metadata
    assert cells(body, "Training images | folder")[0] == licences.UNKNOWN
    assert cells(body, "Initial weights of the teacher | weights/mine.npz")[0].startswith("unknown")
    assert not re.search("apache|mit license|cc[- ]by", body, flags=re.IGNORECASE)


def test_licences_of_data_match_the_registry(results: dict[str, Any]) -> None:
    for name, record in registry.RECORDS.items():
        results["data"]["name"] = name

        _, body = parsed(model_card.markdown(results, "scratch"))

        page = record.page.replace("~", "%7E")
        assert cells(body, f"Training images | {name}") == [record.licence, page]


def test_the_bundled_images_have_the_licence_of_their_source(results: dict[str, Any]) -> None:
    results["data"]["name"] = bundled.EUROSAT_PART

    _, body = parsed(model_card.markdown(results, "scratch"))

    source = registry.RECORDS["eurosat"]
    assert cells(body, f"Training images | {bundled.EUROSAT_PART}") == [source.licence, source.page]


def test_a_student_from_scratch_names_no_teacher(results: dict[str, Any]) -> None:
    results["models"]["init"] = "augreg:B/16"

    metadata, body = parsed(model_card.markdown(results, "scratch"))

    assert "base_model" not in metadata
    assert "augreg" not in body
    assert "trained from scratch on labels only" in body


def _training(results: dict[str, Any], method: str) -> dict[str, str]:
    """Returns the values of the card's table of settings by title."""
    return {row[0]: row[1] for row in card_tables.training(results, method).rows}


def test_training_options_are_listed_if_they_have_an_effect(results: dict[str, Any]) -> None:
    off = {"optimizer": "sgd", "momentum": 0.9, "ema": 0.0, "body_rate": 1.0, "dropout": 0.0}
    results["config"]["student"] |= off | {"nesterov": True}
    plain = _training(results, "remem")
    results["config"]["student"]["nesterov"] = False
    without_nesterov = _training(results, "remem")
    on = {"optimizer": "adamw", "betas": [0.9, 0.99], "ema": 0.999, "body_rate": 0.1}
    results["config"]["student"] |= on

    pretrained, scratch = (_training(results, method) for method in ("remem", "scratch"))

    average = "Decay of the moving average, which these weights are"
    body = "Learning rate of the body, as a multiple of the head's"
    nesterov = "Nesterov momentum"
    assert "Momentum" in plain
    assert (nesterov in plain, without_nesterov[nesterov]) == (False, "no")
    assert nesterov not in pretrained
    assert plain.keys().isdisjoint({"Optimiser", average, body, "Dropout"})
    assert (pretrained["Optimiser"], pretrained["Betas"]) == ("adamw", "0.9, 0.99")
    assert (pretrained[average], pretrained[body]) == ("0.999", "0.1")
    assert "Momentum" not in pretrained
    assert average in scratch
    assert body not in scratch


def test_weights_on_the_hub_match_timms_conversions_of_the_same_files() -> None:
    timm = peers.timm()

    for init, name in licences.HUB_WEIGHTS.items():
        theirs = timm.models.get_pretrained_cfg(name.removeprefix("timm/"))
        assert theirs.hf_hub_id == name
        assert theirs.url.endswith(catalog.find(init).path)
        assert theirs.license == "apache-2.0"
        assert licences.of_weights(init).hub == name
        assert licences.of_weights(init).terms.startswith("Apache-2.0")


def test_a_file_of_the_sweep_is_on_the_hub_under_each_of_its_names() -> None:
    same = "augreg:B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    other = "augreg:B_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"

    assert licences.of_weights(same) == licences.of_weights("augreg:B/16")
    assert not licences.of_weights(other).hub


def test_a_custom_student_has_no_timm_code(results: dict[str, Any]) -> None:
    results["models"]["student"] = "mine"

    text = model_card.markdown(results, "remem")

    assert "timm has no equivalent model" in text
    assert "safetensors" not in code(text)


def test_a_card_is_written_only_beside_a_students_weights(run: pathlib.Path) -> None:
    for name in ("remem", "remem_seed_1", "other"):
        (run / "selected").mkdir(exist_ok=True)
        (run / "selected" / f"{name}_student.safetensors").touch()

    report.write(run)

    results = json.loads((run / "results.json").read_text())
    (path,) = run.rglob("*_student.md")
    assert path == run / "selected" / "remem_student.md"
    assert path.read_text() == model_card.markdown(results, "remem")


INITIAL = {
    **{"init": "imagenet", "repository": "timm/mobilenetv2_100.ra_in1k", "commit": "0" * 40},
    **{"architecture": "mobilenetv2_100", "licence": "apache-2.0", "digest": "abc"},
    **{"pretraining": "ImageNet-1k", "mean": [0.5] * 3, "std": [0.5] * 3},
}


def test_the_card_names_the_weights_that_the_student_started_from(
    results: dict[str, Any],
) -> None:
    results["models"] |= {"student_init": INITIAL, "init": "augreg:B/16"}

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata["base_model"] == [
        "timm/mobilenetv2_100.ra_in1k",
        "timm/vit_base_patch16_224.augreg_in21k",
    ]
    assert "from the pretrained weights timm/mobilenetv2_100.ra_in1k, distilled from" in body
    row = r"^\| Initial weights of the student \| timm/mobilenetv2_100.ra_in1k \|(.*)"
    (licence,) = re.findall(row, body, re.M)
    assert "apache-2.0; trained on images of ImageNet-1k" in licence
    _, scratch = parsed(model_card.markdown(results, "scratch"))
    assert "trained from scratch on labels only" in scratch
    assert "pretrained weights" not in scratch


EUPE = "timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m"
OF_TEACHER = {
    **{"init": f"hf-hub:{EUPE}@main", "repository": EUPE, "commit": "1" * 40, "digest": "abc"},
    **{"architecture": "vit_small_patch16_dinov3_qkvb", "pretraining": "LVD-1689M"},
    "licence": "fair-noncommercial-research-license",
}


def test_the_card_has_the_licence_of_a_teacher_from_the_hub(results: dict[str, Any]) -> None:
    results["models"] |= {"init": OF_TEACHER["init"], "teacher_weights": OF_TEACHER}

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata["base_model"] == EUPE
    rows = re.findall(r"^\| Initial weights of the teacher \| (.*) \|$", body, re.M)
    used, (name, terms, page) = rows[0], rows[1].split(" | ")
    assert used == f"{EUPE} (commit {'1' * 12})"
    assert name == OF_TEACHER["init"]
    assert terms.startswith("fair-noncommercial-research-license; trained on images of LVD-1689M")
    assert "commercial use: not allowed" in terms
    assert f"https://huggingface.co/{EUPE}" in page
    assert "base_model" not in parsed(model_card.markdown(results, "scratch"))[0]


def test_the_report_has_the_licence_of_a_teacher_from_the_hub(results: dict[str, Any]) -> None:
    results["models"] |= {"init": OF_TEACHER["init"], "teacher_weights": OF_TEACHER}

    origins: Any = run_tables.origins(results)
    rows = dict(origins.rows)

    assert rows["Initial weights of the teacher"] == f"{EUPE} (commit {'1' * 12})"
    assert rows["Pretraining of the teacher"] == "LVD-1689M"
    licence = rows["Licence of these weights"]
    assert "commercial use: not allowed" in licence
    assert licence.endswith(f"(https://huggingface.co/{EUPE})")


@pytest.mark.parametrize("name", ["repository", "licence", "pretraining", "commit"])
def test_what_a_stranger_writes_on_the_hub_does_not_change_the_card(
    results: dict[str, Any], name: str
) -> None:
    results["models"]["teacher_weights"] = OF_TEACHER | {name: HOSTILE}

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata["license"] == "other"
    assert "<b>" not in body


def test_teachers_of_the_bucket_and_of_files_have_the_licence_as_before() -> None:
    of_file = {"init": "mine.npz", "repository": "", "commit": "", "licence": ""}
    of_bucket = {**of_file, "init": "augreg:B/16"}

    for recorded in (of_file, of_bucket):
        models = {"init": recorded["init"]}
        expected = licences.of_weights(recorded["init"])
        assert licences.of_teacher(models) == expected
        assert licences.of_teacher(models | {"teacher_weights": recorded}) == expected


def test_the_licence_beside_a_local_teacher_is_stated() -> None:
    recorded = {"init": "a.safetensors", "repository": "", "commit": "", "licence": "mit"}

    found = licences.of_teacher({"init": recorded["init"], "teacher_weights": recorded})

    assert found.terms == "mit, as the config.json beside the file states"


def test_no_licence_is_claimed_for_a_local_file(results: dict[str, Any]) -> None:
    results["models"]["student_init"] = {**INITIAL, "repository": "", "commit": ""}

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert metadata.get("base_model") != INITIAL["repository"]
    (licence,) = re.findall(r"^\| Initial weights of the student \| imagenet \|(.*)", body, re.M)
    assert "unknown: state it before you publish" in licence


def drawn(
    rng: np.random.Generator, name: str = NAME, stem: str = "imagenet", **options: str
) -> Any:
    """Draws a student's variables that give moderate, distinct logits."""
    model = models.make(name, classes=CLASSES, stem=stem, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) == 1:  # A variance is never negative.
            return (0.5 + rng.random(leaf.shape)).astype(np.float32)
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, dict(shapes))


def _export(folder: pathlib.Path) -> None:
    """Writes the files of `remem export RUN --format=onnx`, unchecked."""
    pytest.importorskip("onnx", reason="Needs onnx: pip install '.[export]'.")
    pytest.importorskip("onnxruntime", reason="Needs onnxruntime: pip install '.[export]'.")
    student = runs.open_file(folder / "remem_student.safetensors")
    described = student.described._replace(form=options.Form())
    nothing = np.zeros((0, SIZE, SIZE, 3), np.uint8)
    formats.write(student, described, folder / "remem_student.onnx", nothing)


@pytest.mark.parametrize("normalisation", [IDENTITY, IMAGENET], ids=["plain", "imagenet"])
def test_all_three_ways_to_load_it_give_the_same_logits(
    normalisation: Normalisation,
    results: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    results["data"] |= {"classes": CLASSES, "image_size": SIZE}
    results["models"] |= {"student": NAME, "student_normalisation": normalisation._asdict()}
    metadata = {
        **{"model": NAME, "classes": "a\nb\nc", "image_size": str(SIZE)},
        **student_normalisation.texts(normalisation),
    }
    students.save(tmp_path / "remem_student.safetensors", drawn(rng), metadata=metadata)
    pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", format="PNG")
    monkeypatch.chdir(tmp_path)
    blocks = code(model_card.markdown(results, "remem"))
    names: dict[str, Any] = {}

    exec(blocks["numpy"], names)
    images = names["images"]
    # The tolerance is a grey level; `decoding.resize` differs from Pillow by that.
    expected_input = decoding.resize(pixels, SIZE).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(images[0], expected_input, atol=1.01 / 127.5)
    exec(blocks["jax"], names)
    ours = np.asarray(names["logits"])
    assert ours.shape == (1, CLASSES)
    _export(tmp_path)
    exec(blocks["onnxruntime"], names)
    np.testing.assert_allclose(names["logits"], ours, rtol=1e-3, atol=1e-4)
    peers.timm()
    exec(blocks["safetensors"], names)
    np.testing.assert_allclose(names["logits"].detach().numpy(), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", NAME, "efficientnet_v2_b0"])
def test_the_card_turns_timms_stem_into_the_small_one(
    name: str,
    results: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    peers.timm()
    results["data"] |= {"classes": CLASSES, "image_size": SIZE}
    results["models"]["student"] = name
    results["config"]["student"]["stem"] = "small"
    students.save(tmp_path / "remem_student.safetensors", drawn(rng, name, "small"))
    monkeypatch.chdir(tmp_path)
    blocks = code(model_card.markdown(results, "remem"))
    names: dict[str, Any] = {"images": rng.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)}

    exec(blocks["jax"], names)
    ours = np.asarray(names["logits"])
    exec(blocks["safetensors"], names)

    theirs = names["logits"].detach().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())


@pytest.mark.parametrize(
    "steps", [Preprocessing(SIZE), Preprocessing(SIZE, 48), Preprocessing(SIZE, crop=0.875)]
)
@pytest.mark.parametrize("mode", pictures.MODES)
def test_the_cards_preprocessing_matches_the_evaluation(
    results: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    steps: Preprocessing,
) -> None:
    results["data"] |= {"image_size": SIZE, "preprocessing": steps.record()}
    (tmp_path / "photo.jpg").write_bytes(pictures.encoded(mode))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    exec(code(model_card.markdown(results, "remem"))["numpy"], names)

    levels = (names["images"][0] + 1) * 127.5
    # The tolerance is a grey level for each resize.
    assert np.abs(levels - steps(pictures.encoded(mode))).max() <= max(len(steps.sizes), 1) + 0.01


@pytest.mark.parametrize("architecture", [{}, {"pool": "gap", "gelu": "tanh"}])
def test_the_card_makes_a_vit_with_its_pooling_gelu_and_image_size(
    architecture: dict[str, str],
    results: dict[str, Any],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    peers.timm()
    monkeypatch.setitem(models.STUDENTS, tiny_run.VIT_NAME, tiny_run.VIT_STUDENT)
    results["data"] |= {"classes": CLASSES, "image_size": SIZE}
    results["models"] |= {"student": tiny_run.VIT_NAME, "student_architecture": architecture}
    variables = drawn(rng, tiny_run.VIT_NAME, **architecture)
    students.save(tmp_path / "remem_student.safetensors", variables)
    monkeypatch.chdir(tmp_path)
    blocks = code(model_card.markdown(results, "remem"))
    names: dict[str, Any] = {"images": rng.uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)}

    exec(blocks["jax"], names)
    ours = np.asarray(names["logits"])
    exec(blocks["safetensors"], names)

    np.testing.assert_allclose(names["logits"].detach().numpy(), ours, rtol=1e-3, atol=1e-4)


def test_published_weights_of_a_vit_are_named_with_their_licence(results: dict[str, Any]) -> None:
    changes = {"init": "augreg:Ti/16", "repository": "", "commit": "", "licence": ""}
    results["models"]["student_init"] = INITIAL | changes

    metadata, body = parsed(model_card.markdown(results, "remem"))

    assert "timm/vit_tiny_patch16_224.augreg_in21k" in metadata["base_model"]
    (licence,) = re.findall(
        r"^\| Initial weights of the student \| augreg:Ti/16 \|(.*)", body, re.M
    )
    assert "Apache-2.0; trained on images of ImageNet-21k" in licence
