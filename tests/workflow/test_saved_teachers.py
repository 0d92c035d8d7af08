"""Whoever loads the saved teacher of a run computes its logits, with its GELU."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models import vit
from remem_jax.records import Params
from remem_jax.settings import check_remem
from remem_jax.storage import selected
from remem_jax.weights import augreg, recorded, timm, timm_names
from remem_jax.weights.teacher_sources import TeacherSource
from remem_jax.workflow import context, initial_checkpoints
from remem_jax.workflow.remem import finetune, selected_models, teacher_training
from tests import tiny_run
from tests.oracles import peers

pytestmark = pytest.mark.slow
SIZE = tiny_run.TEACHER


def _random(pool: str, positions: str) -> Params:
    """Draws the parameters of a ViT with scales of about 1, so that each layer matters."""
    rng = np.random.default_rng(0)
    model = vit.make(variant=SIZE, classes=3, pool=pool, positions=positions)
    shapes = augreg.names_and_shapes(model, tiny_run.IMAGE_SIZE)
    return {
        name: rng.normal(name.endswith("scale"), 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _start_from(
    run: context.Run, form: str, *, pool: str = "cls", positions: str = "learned"
) -> None:
    """Sets a checkpoint with the names of a project as `config.teacher.init`."""
    flat = _random(pool, positions)
    path = run.workdir / f"init{'.safetensors' if form == 'timm' else '.npz'}"
    if form == "timm":
        timm.save(path, timm_names.to_timm(flat))
    else:
        augreg.save(path, flat, form=form)
    run.config.teacher.init = str(path)


def _save(run: context.Run, *, method: str = "finetune") -> tuple[pathlib.Path, np.ndarray]:
    """Saves a teacher of two steps with another head, and returns its file and its logits.

    The head, which starts from zeros, would still hide the differences between two GELUs.
    """
    config = run.config
    config.methods = (method,)
    config.teacher.steps, config.teacher.warmup_steps, config.teacher.rho = (2,), 0, 0.05
    check_remem(config)
    teachers = finetune.finetune(run, finetune.read_pretrained(run), method)
    params = dict(teachers.load(2)["params"])
    shape = params["head"]["kernel"].shape
    kernel = np.random.default_rng(2).normal(size=shape, scale=0.2)
    params["head"] = {**params["head"], "kernel": kernel.astype(np.float32)}
    variables = {"params": params}
    selected_models.save_teacher(run, method, teachers, variables)
    logits = teachers.measure.apply(variables, jnp.asarray(_images()))
    return selected.teacher(run.workdir, method), np.asarray(logits)


def _images() -> np.ndarray:
    shape = (4, tiny_run.IMAGE_SIZE, tiny_run.IMAGE_SIZE, 3)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def _timms_logits(path: pathlib.Path, *, pool: str, heads: int, **options: Any) -> np.ndarray:
    """Loads a file in timm, and returns the logits of the test images."""
    torch, library = peers.torch(), peers.timm()
    from safetensors import torch as safetensors_torch

    model = library.create_model(
        "vit_tiny_patch16_224",
        img_size=tiny_run.IMAGE_SIZE,
        patch_size=SIZE.patch,
        embed_dim=SIZE.features,
        depth=SIZE.depth,
        num_heads=heads,
        num_classes=10,
        global_pool={"cls": "token", "gap": "avg", "map": "map"}[pool],
        fc_norm=False,
        **{"class_token": pool == "cls", **options},
    ).eval()
    if path.suffix == ".npz":
        model.load_pretrained(str(path))
    else:
        model.load_state_dict(safetensors_torch.load_file(path), strict=True)
    with torch.no_grad():
        return model(torch.from_numpy(_images().transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize(
    ("form", "gelu", "pool", "positions", "method"),
    [
        ("timm", "", "cls", "learned", "finetune"),
        ("timm", "", "gap", "learned", "finetune"),
        ("vit_jax", "erf", "cls", "learned", "remem"),
        ("big_vision", "erf", "map", "learned", "finetune"),
        ("big_vision", "erf", "gap", "sincos2d", "remem"),
    ],
)
def test_timm_computes_the_logits_of_a_teacher_with_erf(
    small_run: context.Run, form: str, gelu: str, pool: str, positions: str, method: str
) -> None:
    _start_from(small_run, form, pool=pool, positions=positions)
    small_run.config.teacher.gelu = gelu
    heads = 1 if form == "timm" else SIZE.heads  # timm's files do not record them.

    path, logits = _save(small_run, method=method)

    assert path.name == f"{method}_teacher.safetensors"
    assert not path.with_suffix(".npz").exists()
    stored = recorded.read(path)
    assert (stored.gelu, stored.heads) == ("erf", heads)
    assert stored.options["pool"] == pool
    theirs = _timms_logits(path, pool=pool, heads=heads)
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-4)
    # With the other GELU, the logits would differ by much more.
    others = _timms_logits(path, pool=pool, heads=heads, act_layer="gelu_tanh")
    assert np.abs(others - logits).max() > 20 * np.abs(theirs - logits).max()


def test_a_teacher_starts_from_the_image_tower_of_siglip(small_run: context.Run) -> None:
    _start_from(small_run, "big_vision", pool="map")
    path = pathlib.Path(small_run.config.teacher.init)
    with np.load(path) as stored:
        image = {f"params/img/{n}": stored[n] for n in stored.files if not n.startswith("head/")}
    others: dict[str, Any] = {"params/t": np.ones(1), "params/txt/x": np.ones(3)}
    np.savez(path, **image, **others)
    small_run.config.teacher.init = f"{path}:params/img"

    path, logits = _save(small_run)

    assert path.name == "finetune_teacher.npz"
    theirs = _timms_logits(path, pool="map", heads=SIZE.heads, act_layer="gelu_tanh")
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-4)


def test_a_teacher_without_mlps_is_saved_with_zeros_for_them(small_run: context.Run) -> None:
    _start_from(small_run, "timm")
    small_run.config.teacher.pruned_mlp = SIZE.depth

    path, logits = _save(small_run)

    theirs = _timms_logits(path, pool="cls", heads=1)
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-4)
    first = timm.read(path)["blocks.0.mlp.fc1.weight"]
    assert first.shape == (SIZE.hidden, SIZE.features)
    assert not first.any()


def test_the_mean_of_patches_beside_cls_is_recorded(small_run: context.Run) -> None:
    _start_from(small_run, "vit_jax")
    small_run.config.teacher.pool = "gap"

    path, logits = _save(small_run)

    assert path.suffix == ".safetensors"  # An .npz would be read with the pool "cls".
    model = augreg.read(path).make(classes=10)
    ours = jax.jit(model.apply)(augreg.load(path, model), _images())
    theirs = _timms_logits(
        path, pool="gap", heads=SIZE.heads, class_token=True, act_layer="gelu_tanh"
    )
    for actual in (ours, theirs):
        np.testing.assert_allclose(np.asarray(actual), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("form", "gelu"), [("vit_jax", ""), ("timm", "tanh")])
def test_a_teacher_with_tanh_has_augregs_names(
    small_run: context.Run, form: str, gelu: str
) -> None:
    _start_from(small_run, form)
    small_run.config.teacher.gelu = gelu

    path, logits = _save(small_run)

    assert path.name == "finetune_teacher.npz"
    assert not path.with_suffix(".safetensors").exists()
    heads = augreg.read(path).size.heads
    theirs = _timms_logits(path, pool="cls", heads=heads, act_layer="gelu_tanh")
    np.testing.assert_allclose(theirs, logits, rtol=0, atol=1e-4)


def test_a_new_run_starts_from_a_saved_teacher_with_its_gelu_and_heads(
    small_run: context.Run,
) -> None:
    _start_from(small_run, "vit_jax")
    small_run.config.teacher.gelu = "erf"
    path, logits = _save(small_run)
    config = small_run.config.copy_and_resolve_references()
    config.teacher.init, config.teacher.gelu = str(path), ""

    checkpoint = initial_checkpoints.read(config).checkpoint
    model = vit.make(variant=checkpoint.size, classes=10, **checkpoint.options)
    variables = augreg.into(checkpoint, model, image_size=tiny_run.IMAGE_SIZE)

    ours = models.evaluation_apply(model)(variables, jnp.asarray(_images()))
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)
    start = teacher_training.start(
        small_run._replace(config=config),
        finetune.Pretrained(checkpoint, "", TeacherSource(path)),
        "finetune",
    )
    assert (start.model.gelu, start.model.size) == ("erf", SIZE)
