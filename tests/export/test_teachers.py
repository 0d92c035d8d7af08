"""Exports of a run's teacher in the formats of other libraries give the same logits."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import __main__ as command
from remem_jax.export import destinations, teachers
from remem_jax.export import images as image_files
from remem_jax.models import vit
from remem_jax.storage import results
from remem_jax.weights import augreg
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
    config = {"teacher": {"gelu": "erf"}}
    results.write(tmp_path / "results.json", {"methods": [row], "data": data, "config": config})
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(drawn.images().pixels[:4]):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def exported(run: pathlib.Path, form: str, suffix: str) -> pathlib.Path:
    """Exports the teacher in a format with the command."""
    assert command.main([str(run), f"--format={form}", f"--images={run / 'images'}"]) == 0
    return run / "export" / f"remem_teacher_{form}{suffix}"


def expected(teacher: augreg.Checkpoint) -> np.ndarray:
    """Computes the logits with NumPy only."""
    sizes = {"patch": SIZE.patch, "heads": SIZE.heads}
    plain = {"alpha": 1.0, "beta": 1.0, "plain": False, "exact_gelu": True}
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


def test_timm_loads_a_teacher_and_computes_its_logits(run: pathlib.Path) -> None:
    torch, timm = peers.torch(), peers.timm()
    from safetensors import torch as safetensors_torch

    path = exported(run, "timm", ".safetensors")
    logits = expected(augreg.read(run / "selected" / "remem_teacher.npz"))
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=drawn.SIDE,
        patch_size=SIZE.patch,
        embed_dim=SIZE.features,
        depth=SIZE.depth,
        num_heads=SIZE.heads,
        num_classes=len(drawn.CLASSES),
    ).eval()
    model.load_state_dict(safetensors_torch.load_file(path), strict=True)
    with torch.no_grad():
        result = model(torch.from_numpy(drawn.floats()[:4].transpose(0, 3, 1, 2).copy())).numpy()

    np.testing.assert_allclose(result, logits, rtol=0, atol=1e-5)  # For two blocks in float32.


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
