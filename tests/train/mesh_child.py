"""One of the processes of a test: trains on meshes of many devices, and writes what came out.

python -m tests.train.mesh_child OUT PORT PROCESSES PROCESS
"""

import functools
import json
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np

from remem_jax import distributed, losses, mesh, models, optim, sam
from remem_jax.data.images import augment
from remem_jax.models import encoder, resnet, vit
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.storage import outputs, read_ahead
from remem_jax.train import lockstep, state, steps, student_losses

DEVICES = 8  # Of all processes together.
BATCH, SIDE, CLASSES, STEPS = 16, 8, 3, 2
# Model, devices, and whether the state is divided among them.
CASES = (
    ("teacher", 1, False),
    ("teacher", 2, True),
    ("teacher", 8, False),
    ("student", 1, False),
    ("student", 2, False),
    ("student", 8, True),
)
OF_PROCESSES = ((0, 1, 2, 5, 7), (1, 2, 3, 6, 7))  # Steps that each has stored.
DEPTHS = (1, 1)  # Blocks of the student.
NORMS = 6  # Its BatchNorms.
KERNELS = 3  # Its convolutions of maps of more than 4 pixels.
_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def main(out: str, port: int, processes: int, process: int) -> None:
    """Joins the others, trains all cases, and writes OUT.json and OUT.npz."""
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    distributed.initialize(f"localhost:{port}", processes, process)
    found: dict[str, Any] = {"writer": mesh.is_writer(), "devices": jax.device_count()}
    found["stored"] = _stored(pathlib.Path(f"{out}_outputs"))
    arrays: dict[str, np.ndarray] = {}
    for name, size, fsdp in CASES:
        if size != DEVICES and processes > 1:
            continue
        on = mesh.make_mesh(jax.devices()[:size])
        run = _teacher if name == "teacher" else _student
        trained, metrics, facts = run(on, fsdp=fsdp)
        case = f"{name} {size}"
        found[case] = facts
        whole = jax.device_get(mesh.gather((trained, metrics), on))
        for path, leaf in jax.tree.leaves_with_path(whole):
            arrays[f"{case}: {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    if processes == 1:
        found["plain"] = _teacher(mesh.make_mesh(), fsdp=False, rho=0.0)[2]
    pathlib.Path(f"{out}.json").write_text(json.dumps(found))
    np.savez(f"{out}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def _stored(folder: pathlib.Path) -> list[int]:
    """Steps whose outputs are read, where each process has stored others."""
    own = (jax.process_index(), jax.process_count())
    with outputs.StoredOutputs(
        folder=folder, facts={}, steps=8, shape=(2,), dtype=np.float32, process=own
    ) as stored:
        for step in OF_PROCESSES[own[0]]:
            stored.write(step, np.full(2, step, np.float32))
        with read_ahead.ReadAhead(stored) as ahead:
            return [step for step in range(8) if ahead.read(step) is not None]


def _batch(on: jax.sharding.Mesh) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    mask = np.ones(BATCH, bool)
    return Batch(*mesh.place((images, labels, mask), mesh.batch_sharding(on)))


@functools.cache
def _vit() -> Any:
    """A ViT, and its first parameters."""
    size = vit.Size(patch=4, features=64, depth=2, heads=2)
    model = vit.make(variant=size, classes=CLASSES, dropout=0.1)
    params = jax.device_get(encoder.stack(models.init(model, jax.random.key(0), SIDE)["params"]))
    # The first head is zero, and would let no gradient through.
    rng = np.random.default_rng(1)
    head = rng.normal(0, 0.5, (size.features, CLASSES)).astype(np.float32)
    return model, {**params, "head": {**params["head"], "kernel": head}}


@functools.cache
def _resnet() -> Any:
    """A short ResNet with BatchNorm, and its first variables."""
    model = resnet.make(depths=DEPTHS, classes=CLASSES, stem="small")
    variables = jax.device_get(models.init(model, jax.random.key(6), SIDE))
    # The scales of its last norms are zero, and would make of each block its residual.
    params = jax.tree.map(lambda x: x + 0.5 if x.ndim == 1 else x, variables["params"])
    return model, {**variables, "params": params}


def _teacher(on: jax.sharding.Mesh, *, fsdp: bool, rho: float = 0.1) -> Any:
    """Steps of a ViT with SAM, clipping, momentum and dropout.

    Returns:
        State, metrics of the last step, and facts about the compiled step.
    """
    model, params = _vit()
    tx = optim.sgd(lambda _: 0.1, momentum=0.9, clip_norm=0.5, nesterov=False, weight_decay=0.0)
    ascent = sam.sam(rho) if rho else None
    apply = models.train_apply(model)
    apply = mesh.gathered(apply, on) if fsdp else apply
    key = jax.random.key(2)
    step = steps.make_supervised_step(
        apply,
        tx,
        augment.streamed_transform,
        key=key,
        ascent=ascent,
        loss=losses.cross_entropy,
        mixup=0.0,
    )
    first = state.create({"params": params}, tx)
    return _run(on, step, first, (_batch(on), {}), fsdp=fsdp)


def _student(on: jax.sharding.Mesh, *, fsdp: bool) -> Any:
    """Steps of a ResNet on a teacher's logits of mixed images; see `_teacher`."""
    model, variables = _resnet()
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=None)
    kernel = np.random.default_rng(3).normal(0, 5, (3, CLASSES)).astype(np.float32)

    def compute_targets(variables: Any, images: jax.Array) -> Outputs:
        return Outputs(images.mean((1, 2)) @ variables["kernel"])

    transform = augment.make_train_transform(size=SIDE, crop_area=(0.3, 1.0), flip=True)
    augment_batch = lockstep.make_augment(
        transform, classes=CLASSES, key=jax.random.key(4), mixup=0.5
    )
    teacher = mesh.place({"kernel": kernel}, mesh.replicated(on))
    number = mesh.place(np.zeros((), np.int32), mesh.replicated(on))
    augment_batch = jax.jit(augment_batch).lower(number, _batch(on)).compile()
    augmented = augment_batch(number, _batch(on))
    apply = models.student_apply(model)
    apply = mesh.gathered(apply, on) if fsdp else apply
    loss = functools.partial(student_losses.LOSSES["dist"], hard_labels=True)
    step = steps.make_student_step(apply, tx, loss=loss, key=jax.random.key(5))
    first = state.create(variables, tx)
    rest = (
        *augmented,
        jax.jit(compute_targets)(teacher, augmented.images),
        Hyperparameters(0.05, 2.0, 0.5, 0),
    )
    trained, metrics, facts = _run(on, step, first, rest, fsdp=fsdp)
    return trained, metrics, {**facts, "views": _collectives(augment_batch)}


def _run(on: jax.sharding.Mesh, step: Any, first: state.State, rest: Any, *, fsdp: bool) -> Any:
    shardings = mesh.state_shardings(on, first, fsdp=fsdp)
    now = mesh.place(first, shardings)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, mesh.replicated(on)))
    compiled = jitted.lower(now, *rest).compile()
    metrics = {}
    for _ in range(STEPS):
        now, metrics = compiled(now, *rest)
    leaves = jax.tree.leaves((now.params, now.opt_state))
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
    return now, metrics, facts


def _collectives(compiled: Any) -> list[tuple[str, list[int]]]:
    """Each collective of a compiled function, with the elements of what comes out of it."""
    found = []
    for shapes, kind in _COLLECTIVE.findall(compiled.as_text()):
        axes = [one.split(",") for one in re.findall(r"\w\[([\d,]*)\]", shapes)]
        found.append((kind, [int(np.prod([int(n) for n in one if n])) for one in axes]))
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
