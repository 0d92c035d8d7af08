"""Exports of a run's teacher in the formats of other libraries give the same logits."""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import __main__ as command
from remem_jax.export import destinations, labels, teachers
from remem_jax.export import images as image_files
from remem_jax.models import vit
from remem_jax.storage import results
from remem_jax.weights import augreg, recorded, timm_names
from remem_jax.weights import timm as timm_files
from tests.export import drawn
from tests.oracles import peers, vit_numpy

SIZE = vit.Size(patch=16, features=8, depth=2, heads=2)


@pytest.fixture
def run(tmp_path: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """The files of a run that an export of its teacher needs, and a folder of images."""
    model = vit.VisionTransformer(SIZE, len(drawn.CLASSES))
    shapes = augreg.names_and_shapes(model, drawn.SIDE)
    # Scales of about 1 in all layers, so that each affects the outputs.
    arrays = {
        name: rng.normal(name.endswith("scale"), 0.3, shape) for name, shape in shapes.items()
    }
    (tmp_path / "selected").mkdir()
    np.savez(tmp_path / "selected" / "remem_teacher.npz", **arrays)  # pyright: ignore[reportArgumentType]
    validation = {"validation": {"top1": 0.5}}
    row = {"method": "remem", "student": validation, "teacher": validation}
    data = {"metric": "top1", "class_names": list(drawn.CLASSES)}
    record = {"methods": [row], "data": data, "config": {"teacher": {"gelu": "", "init": ""}}}
    results.write(tmp_path / "results.json", record)
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(drawn.images().pixels[:4]):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def exported(run: pathlib.Path, form: str, suffix: str) -> pathlib.Path:
    """Exports the teacher in a format with the command."""
    assert command.main([str(run), f"--format={form}", f"--images={run / 'images'}"]) == 0
    return run / "export" / f"remem_teacher_{form}{suffix}"


def with_settings(run: pathlib.Path, **teacher: str) -> None:
    """Changes the `config.teacher` that the run's results record."""
    content = results.read(run / "results.json")
    assert content is not None
    content["config"]["teacher"] |= teacher
    results.write(run / "results.json", content)


def expected(teacher: augreg.Checkpoint, *, exact_gelu: bool = False) -> np.ndarray:
    """Computes the logits with NumPy only."""
    sizes = {"patch": SIZE.patch, "heads": SIZE.heads}
    plain = {"alpha": 1.0, "beta": 1.0, "plain": False, "exact_gelu": exact_gelu}
    images = drawn.floats()[:4]
    return np.stack([vit_numpy.logits(teacher.arrays, image, **sizes, **plain) for image in images])


@pytest.mark.parametrize(
    ("form", "names", "suffix"),
    [
        ("augreg", "vit_jax", ".npz"),
        ("big_vision", "big_vision", ".npz"),
        ("timm", "timm", ".safetensors"),
    ],
)
def test_a_teacher_can_be_read_from_each_librarys_names(
    run: pathlib.Path, form: str, names: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(run, form, suffix)

    before, after = (
        augreg.read(file, heads=SIZE.heads) for file in (run / "selected/remem_teacher.npz", path)
    )
    assert (after.form, after.size, after.ignored) == (names, SIZE, ())
    # big_vision adds the position embedding to [CLS], so that arrays may differ.
    np.testing.assert_allclose(expected(after), expected(before), rtol=1e-6, atol=1e-6)
    assert "100.00 % have the same predicted class" in capsys.readouterr().out
    record = json.loads(destinations.record_path(path).read_text())
    assert record["check"]["images"] == f"{run / 'images'}: 4 images"
    assert json.loads(record["metadata"]["classes"]) == list(drawn.CLASSES)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_timm_loads_a_teacher_and_computes_its_logits(
    run: pathlib.Path, gelu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch, timm = peers.torch(), peers.timm()
    from safetensors import torch as safetensors_torch

    with_settings(run, gelu=gelu)
    path = exported(run, "timm", ".safetensors")
    teacher = augreg.read(run / "selected" / "remem_teacher.npz")
    tanh, erf = (expected(teacher, exact_gelu=exact) for exact in (False, True))

    def logits(**options: str) -> np.ndarray:
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=drawn.SIDE,
            patch_size=SIZE.patch,
            embed_dim=SIZE.features,
            depth=SIZE.depth,
            num_heads=SIZE.heads,
            num_classes=len(drawn.CLASSES),
            **options,
        ).eval()
        model.load_state_dict(safetensors_torch.load_file(path), strict=True)
        with torch.no_grad():
            pixels = torch.from_numpy(drawn.floats()[:4].transpose(0, 3, 1, 2).copy())
            return model(pixels).numpy()

    # For two blocks in float32.
    np.testing.assert_allclose(logits(), erf, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits(act_layer="gelu_tanh"), tanh, rtol=0, atol=1e-5)
    note = json.loads(destinations.record_path(path).read_text()).get("note", "")
    assert ('act_layer="gelu_tanh"' in note) == (gelu == "tanh")
    assert note in capsys.readouterr().out
    if note:
        stated = re.findall(r"differs by up to (\S+) ", note)
        assert float(stated[0]) == pytest.approx(np.abs(erf - tanh).max(), rel=0.1)


@pytest.mark.parametrize("form", ["augreg", "big_vision"])
def test_a_teacher_with_erf_is_refused_by_projects_with_tanh(
    run: pathlib.Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_settings(run, gelu="erf")
    flags = [str(run), f"--format={form}", f"--images={run / 'images'}"]

    assert command.main(flags) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert "computes it by tanh" in line
    assert "take --format=timm, which has this GELU. --allowed-difference and" in line
    assert not (run / "export" / f"remem_teacher_{form}.npz").exists()
    # The difference that is measured is that between the two GELUs.
    teacher = augreg.read(run / "selected" / "remem_teacher.npz")
    tanh, erf = (expected(teacher, exact_gelu=exact) for exact in (False, True))
    (measured,) = re.findall(r"a logit differs by (\S+) \(allowed", line)
    assert float(measured) == pytest.approx(np.abs(erf - tanh).max(), rel=0.01)

    assert command.main([*flags, "--allowed-difference=1", "--allowed-disagreement=1"]) == 0
    assert "computes it by tanh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "models", "gelu"),
    [
        ({"gelu": "erf"}, {}, "erf"),
        ({"gelu": "", "init": "augreg:Ti/16"}, {}, "tanh"),
        ({"gelu": "", "init": "weights/deit.safetensors"}, {}, "erf"),
        ({"gelu": "tanh", "init": "weights/deit.safetensors"}, {}, "tanh"),
        # A teacher of this version, from a file of ours that records the GELU by tanh.
        ({"gelu": "", "init": "export/mine.safetensors"}, {"teacher_gelu": "tanh"}, "tanh"),
    ],
)
def test_teachers_of_earlier_versions_have_the_gelu_of_their_training(
    run: pathlib.Path, settings: dict[str, str], models: dict[str, str], gelu: str
) -> None:
    with_settings(run, **settings)
    content = results.read(run / "results.json")
    results.write(run / "results.json", {**(content or {}), "models": models})

    assert teachers.open_teacher(run).gelu == gelu


def test_labels_are_compared_with_a_teacher_of_timm_by_erf(run: pathlib.Path) -> None:
    with_settings(run, gelu="", init="deit.safetensors")
    opened = labels._teacher(run)
    assert opened
    teacher = augreg.read(run / "selected" / "remem_teacher.npz")

    logits = opened[1](jnp.asarray(drawn.floats()[:4]))

    np.testing.assert_allclose(logits, expected(teacher, exact_gelu=True), rtol=0, atol=1e-5)


def test_a_teacher_with_timms_names_is_opened_before_one_of_an_earlier_version(
    run: pathlib.Path,
) -> None:
    arrays = augreg.read(run / "selected" / "remem_teacher.npz").arrays
    metadata = recorded.texts(recorded.Recorded("erf", SIZE.heads))
    path = run / "selected" / "remem_teacher.safetensors"
    timm_files.save(path, timm_names.to_timm(arrays), metadata)

    teacher = teachers.open_teacher(run)

    assert (teacher.gelu, teacher.checkpoint.size) == ("erf", SIZE)
    assert teacher.identity == results.digest(path)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("images", "is a folder; set --out to a file"),
        ("selected/remem_teacher.npz", "is reserved for the run in"),
        ("images/0.png", "exists and is not an export that remem_jax wrote"),
        ("images/0.png/new.npz", "cannot be written"),
    ],
)
def test_a_teacher_replaces_only_a_teacher(
    run: pathlib.Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    flags = ["--format=augreg", f"--images={run / 'images'}", f"--out={run / out}"]

    assert command.main([str(run), *flags]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_teacher_records_its_preprocessing(run: pathlib.Path) -> None:
    content = results.read(run / "results.json")
    assert content is not None
    content["data"]["preprocessing"] = Preprocessing(drawn.SIDE, 48).record()
    results.write(run / "results.json", content)
    wide = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    Image.fromarray(wide).save(run / "images" / "0.png")

    teacher = teachers.open_teacher(run)

    assert teacher.preprocessing == Preprocessing(drawn.SIDE, 48)
    pixels = image_files.read_folder(run / "images", teacher.preprocessing, 1).pixels
    picture = Image.fromarray(wide)
    for side in (48, drawn.SIDE):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(pixels[0].astype(int), np.asarray(picture), atol=2)
