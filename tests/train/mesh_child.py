"""A process of test_mesh.py: trains on meshes of several devices and writes the results."""

import functools
import json
import math
import pathlib
import re
from typing import Any

import jax
import numpy as np

from remem_jax import distributed, losses, mesh, models, optim, sam
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.models import encoder, resnet, vit
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.storage import outputs, read_ahead
from remem_jax.train import lockstep, state, steps, student_losses

DEVICES = 8  # In all processes together.
BATCH, SIDE, CLASSES, STEPS = 16, 8, 3, 2
# Model, number of devices, and whether the state is sharded over them (FSDP).
CASES = (
    ("teacher", 1, False),
    ("teacher", 2, True),
    ("teacher", 8, False),
    ("student", 1, False),
    ("student", 2, False),
    ("student", 8, True),
)
STORED_STEPS = ((0, 1, 2, 5, 7), (1, 2, 3, 6, 7))  # The steps that each process has stored.
DEPTHS = (1, 1)  # Blocks per stage of the student.
NORMS = 6  # The number of its BatchNorms.
KERNELS = 3  # The number of its convolutions over more than 4 pixels.
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def main(out: str, port: int, processes: int, process: int) -> None:
    """Joins the other processes, trains all cases, and writes OUT.json and OUT.npz."""
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    distributed.initialize(f"localhost:{port}", processes, process)
    report: dict[str, Any] = {"writer": mesh.is_writer(), "devices": jax.device_count()}
    report["stored"] = _stored(pathlib.Path(f"{out}_outputs"))
    arrays: dict[str, np.ndarray] = {}
    for name, size, fsdp in CASES:
        if size != DEVICES and processes > 1:
            continue
        devices = mesh.make_mesh(jax.devices()[:size])
        run = _teacher if name == "teacher" else _student
        trained, metrics, facts = run(devices, fsdp=fsdp)
        case = f"{name} {size}"
        report[case] = facts
        gathered = jax.device_get(mesh.gather((trained, metrics), devices))
        for path, leaf in jax.tree.leaves_with_path(gathered):
            arrays[f"{case}: {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    if processes == 1:
        report["plain"] = _teacher(mesh.make_mesh(), fsdp=False, rho=0.0)[2]
    pathlib.Path(f"{out}.json").write_text(json.dumps(report))
    np.savez(f"{out}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def _stored(folder: pathlib.Path) -> list[int]:
    """Returns the steps whose outputs are read if each process has stored different ones."""
    process = (jax.process_index(), jax.process_count())
    with outputs.StoredOutputs(
        folder=folder, facts={}, steps=8, shape=(2,), dtype=np.float32, process=process
    ) as stored:
        for step in STORED_STEPS[process[0]]:
            stored.write(step, np.full(2, step, np.float32))
        with read_ahead.ReadAhead(stored) as ahead:
            return [step for step in range(8) if ahead.read(step) is not None]


def _batch(devices: jax.sharding.Mesh) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    mask = np.ones(BATCH, bool)
    return Batch(*mesh.place((images, labels, mask), mesh.batch_sharding(devices)))


@functools.cache
def _vit() -> Any:
    """Makes a ViT and its initial parameters."""
    size = vit.Size(patch=4, features=64, depth=2, heads=2)
    model = vit.make(variant=size, classes=CLASSES, dropout=0.1)
    # Not `models.init`: its compilation takes long, and zeros would block all gradients.
    return model, encoder.stack(_draw(model)["params"])


@functools.cache
def _resnet() -> Any:
    """Makes a short ResNet with BatchNorm and its initial variables."""
    model = resnet.make(depths=DEPTHS, classes=CLASSES, stem="small")
    return model, _draw(model)


def _draw(model: Any) -> Any:
    """Draws the variables of a model; scales and variances are positive."""
    images = np.zeros((1, SIDE, SIDE, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.full(leaf.shape, 0.5 if path[-1].key == "scale" else 1.0, np.float32)
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        spread = 1 / math.sqrt(fan_in) if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def _teacher(devices: jax.sharding.Mesh, *, fsdp: bool, rho: float = 0.1) -> Any:
    """Trains a ViT with SAM, clipping, momentum and dropout.

    Returns:
        State, metrics of the last step, and facts about the compiled step.
    """
    model, params = _vit()
    tx = optim.sgd(lambda _: 0.1, momentum=0.9, clip_norm=0.5, nesterov=False, weight_decay=0.0)
    ascent = sam.sam(rho) if rho else None
    apply = models.train_apply(model)
    apply = mesh.gathered(apply, devices) if fsdp else apply
    key = jax.random.key(2)
    step = steps.make_supervised_step(
        apply,
        tx,
        augment.streamed_transform,
        key=key,
        ascent=ascent,
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )
    first = state.create({"params": params}, tx)
    return _run(devices, step, first, (_batch(devices), {}), fsdp=fsdp)


def _student(devices: jax.sharding.Mesh, *, fsdp: bool) -> Any:
    """Distils a ResNet from a teacher's logits of mixed images; returns what `_teacher` returns."""
    model, variables = _resnet()
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=None)
    kernel = np.random.default_rng(3).normal(0, 5, (3, CLASSES)).astype(np.float32)

    def compute_targets(variables: Any, images: jax.Array) -> Outputs:
        return Outputs(images.mean((1, 2)) @ variables["kernel"])

    transform = augment.make_train_transform(size=SIDE, crop_area=(0.3, 1.0), flip=True)
    augment_batch = lockstep.make_augment(
        transform, classes=CLASSES, key=jax.random.key(4), mixing=Mixing(mixup=0.5)
    )
    teacher = mesh.place({"kernel": kernel}, mesh.replicated(devices))
    number = mesh.place(np.zeros((), np.int32), mesh.replicated(devices))
    augment_batch = jax.jit(augment_batch).lower(number, _batch(devices)).compile()
    augmented = augment_batch(number, _batch(devices))
    apply = models.student_apply(model)
    apply = mesh.gathered(apply, devices) if fsdp else apply
    loss = functools.partial(student_losses.LOSSES["dist"], hard_labels=True)
    step = steps.make_student_step(apply, tx, loss=loss, key=jax.random.key(5))
    first = state.create(variables, tx)
    rest = (
        *augmented,
        jax.jit(compute_targets)(teacher, augmented.images),
        Hyperparameters(0.05, 2.0, 0.5, 0),
    )
    trained, metrics, facts = _run(devices, step, first, rest, fsdp=fsdp)
    return trained, metrics, {**facts, "augmentation": _collectives(augment_batch)}


def _run(
    devices: jax.sharding.Mesh, step: Any, first: state.State, rest: Any, *, fsdp: bool
) -> Any:
    shardings = mesh.state_shardings(devices, first, fsdp=fsdp)
    current = mesh.place(first, shardings)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, mesh.replicated(devices)))
    compiled = jitted.lower(current, *rest).compile()
    metrics = {}
    for _ in range(STEPS):
        current, metrics = compiled(current, *rest)
    leaves = jax.tree.leaves((current.params, current.opt_state))
    held = [
        sum(leaf.addressable_shards[i].data.nbytes for leaf in leaves)
        for i in range(len(leaves[0].addressable_shards))
    ]
    facts = {
        "held": held,
        "sizes": [leaf.size for leaf in leaves],
        "collectives": _collectives(compiled),
        "images": str(getattr(rest[0], "image", rest[0]).sharding.spec),
    }
    return current, metrics, facts


def _collectives(compiled: Any) -> list[tuple[str, list[int]]]:
    """Lists the collectives of a compiled function with the sizes of their outputs."""
    collectives = []
    for shapes, kind in _COLLECTIVE.findall(compiled.as_text()):
        axes = [shape.split(",") for shape in re.findall(r"\w\[([\d,]*)\]", shapes)]
        sizes = [int(np.prod([int(n) for n in shape if n])) for shape in axes]
        collectives.append((kind, sizes))
    return collectives
