"""Speed of what users wait for, beside torch and timm, in one run, as ratios.

    python -m tools.benchmark                       # all rows, some ten minutes
    python -m tools.benchmark --rows forward,step
    python -m tools.benchmark --rows load           # checkpoints: seconds and peak memory

Everything runs on one pinned core in float32, the same model and batch on both sides, turn by
turn; a row is the median of the CPU-seconds of each side. It needs torch and timm.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROWS = ("forward", "step", "sam", "resnet18", "mobilenet_v2", "kd", "load")


class Pair(NamedTuple):
    """One thing done twice: by us and by the peer; each returns when it is done."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def main() -> None:
    """Measures the rows that the command line names, and prints a table."""
    parser = argparse.ArgumentParser(description="Speed beside torch and timm, as ratios.")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    options = parser.parse_args()
    rows = options.rows.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if "load" in rows:
        rows.remove("load")
        compare_loading()
    if rows:
        os.sched_setaffinity(0, {options.core})  # Before the libraries count their threads.
        compare_steps(rows, options.repeats)


def compare_steps(rows: list[str], repeats: int) -> None:
    """Prints, per row, CPU milliseconds of both sides, their ratio, and our time of compiling."""
    print("| CPU, one core | ours ms | torch + timm ms | ratio | first call, s |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        pair = make_pair(row)
        started = time.process_time()
        pair.ours()
        compiling = time.process_time() - started
        pair.theirs()
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for side, function in zip(seconds, (pair.ours, pair.theirs), strict=True):
                started = time.process_time()
                function()
                side.append(time.process_time() - started)
        ours, theirs = (1000 * statistics.median(side) for side in seconds)
        print(
            f"| {pair.name} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} | {compiling:.1f} |",
            flush=True,
        )


def make_pair(row: str) -> Pair:
    """The two sides of a row, ready to run."""
    if row == "forward":
        return _forward()
    if row in ("step", "sam"):
        return _teacher_step(rho=0.05 if row == "sam" else 0.0)
    if row == "kd":
        return _distillation_step()
    return _student_step(row)


def _images(batch: int, side: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def _torch_model(name: str) -> tuple[Any, Any]:
    """Torch, and a network of timm."""
    from tests.oracles import peers

    timm, torch = peers.timm(), peers.torch()
    torch.set_num_threads(1)
    return torch, timm.create_model(name, num_classes=1000)


def _torch_images(torch: Any, images: Any) -> Any:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _forward() -> Pair:
    import jax

    from remem_jax import models

    images = _images(8, 224)
    model: Any = models.make("vit", variant="Ti/16", classes=1000, exact_gelu=True)
    variables = models.init(model, jax.random.key(0), 224)
    apply = jax.jit(models.evaluation_apply(model))
    torch, theirs = _torch_model("vit_tiny_patch16_224")
    theirs.eval()
    torch_images = _torch_images(torch, images)

    def run_theirs() -> None:
        with torch.inference_mode():
            theirs(torch_images)

    return Pair(
        "ViT-Ti/16 forward, batch 8, 224 px",
        lambda: jax.block_until_ready(apply(variables, images)),
        run_theirs,
    )


def _teacher_step(*, rho: float) -> Pair:
    import jax
    import numpy as np

    from remem_jax import models, optim
    from remem_jax.models import encoder
    from remem_jax.records import Batch
    from remem_jax.train import state, steps

    images = _images(4, 224)
    model = models.make("vit", variant="Ti/16", classes=1000, exact_gelu=True, rematerialise=True)
    tx = optim.sgd(lambda _: 0.01, momentum=0.9, rho=rho)
    step = jax.jit(
        steps.make_supervised_step(
            models.train_apply(model), tx, lambda key, stored: stored, key=jax.random.key(0)
        ),
        donate_argnums=0,
    )
    params = encoder.stack(models.init(model, jax.random.key(0), 224)["params"])
    now = [state.create({"params": params}, tx)]
    batch = Batch(jax.numpy.asarray(images), jax.numpy.arange(4), np.ones(4, bool))  # pyright: ignore

    def run_ours() -> None:
        now[0], _ = step(now[0], batch, {})
        jax.block_until_ready(now[0])

    torch, theirs = _torch_model("vit_tiny_patch16_224")
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    torch_images, labels = _torch_images(torch, images), torch.arange(4)

    def backward() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch_images), labels).backward()

    def run_theirs() -> None:
        backward()
        if rho:
            _climb_and_return(torch, theirs, rho, backward)
        optimizer.step()

    name = f"ViT-Ti/16 {'SAM' if rho else 'fine-tuning'} step, batch 4, 224 px"
    return Pair(name, run_ours, run_theirs)


def _climb_and_return(torch: Any, model: Any, rho: float, backward: Callable[[], None]) -> None:
    """SAM's second gradient, taken where the first one leads."""
    with torch.no_grad():
        params = [p for p in model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in params]))
        climbed = [rho * p.grad / (norm + 1e-12) for p in params]
        torch._foreach_add_(params, climbed)
    backward()
    with torch.no_grad():
        torch._foreach_sub_(params, climbed)


def _student_step(name: str) -> Pair:
    side = 112
    ours = _student(name, _images(4, side), teacher_logits=None)
    torch, theirs = _torch_model({"mobilenet_v2": "mobilenetv2_100"}.get(name, name))
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    torch_images, labels = _torch_images(torch, _images(4, side)), torch.arange(4)

    def run_theirs() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch_images), labels).backward()
        optimizer.step()

    return Pair(f"{name} step, batch 4, {side} px", ours, run_theirs)


def _student(name: str, images: Any, teacher_logits: Callable[[], Any] | None) -> Callable[[], Any]:
    """Our step of one student; without a teacher the weight of its loss is 0."""
    import jax

    from remem_jax import models, optim
    from remem_jax.records import Settings
    from remem_jax.train import state, steps

    model = models.make(name, classes=1000)
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-4)
    step = jax.jit(
        steps.make_student_step(models.train_apply(model), tx, key=jax.random.key(0)),
        donate_argnums=0,
    )
    now = [state.create(models.init(model, jax.random.key(0), images.shape[1]), tx)]
    images, labels = jax.numpy.asarray(images), jax.numpy.arange(4)
    settings = Settings(0.01, 4.0, 0.5 if teacher_logits else 0.0)
    nothing = jax.numpy.zeros((4, 1000))

    def run() -> None:
        logits = teacher_logits() if teacher_logits else nothing
        now[0], _ = step(now[0], images, labels, logits, settings)
        jax.block_until_ready(now[0])

    return run


def _distillation_step() -> Pair:
    import jax

    from remem_jax import models

    images = _images(4, 224)
    teacher: Any = models.make("vit", variant="Ti/16", classes=1000, exact_gelu=True)
    variables = models.init(teacher, jax.random.key(1), 224)
    apply = jax.jit(models.evaluation_apply(teacher))
    ours = _student("resnet18", images, lambda: apply(variables, images))
    torch, theirs = _torch_model("resnet18")
    _, torch_teacher = _torch_model("vit_tiny_patch16_224")
    torch_teacher.eval()
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    torch_images, labels = _torch_images(torch, images), torch.arange(4)
    softened = torch.nn.functional.log_softmax

    def run_theirs() -> None:
        optimizer.zero_grad()
        with torch.inference_mode():
            answers = torch_teacher(torch_images)
        answers = answers.clone()
        logits = theirs(torch_images)
        soft = torch.nn.functional.kl_div(
            softened(logits / 4, -1), softened(answers / 4, -1), log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        loss = 0.5 * torch.nn.functional.cross_entropy(logits, labels) + 0.5 * 16 * soft
        loss.backward()
        optimizer.step()

    return Pair("KD step, ViT-Ti/16 to resnet18, batch 4, 224 px", ours, run_theirs)


def compare_loading() -> None:
    """Prints seconds and peak memory of reading a checkpoint, beside reading its bytes."""
    print("| loading | MiB | way | seconds | MiB above start at the peak |")
    print("|---|---:|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for variant in ("B/16", "L/16"):
            path = pathlib.Path(folder) / "vit.npz"
            _in_child("write", variant, path)
            mebibytes = path.stat().st_size / 2**20
            for way in ("bytes", "numpy", "ours"):
                runs = [_in_child(way, variant, path).split() for _ in range(5)]
                seconds = statistics.median(float(run[0]) for run in runs)
                peak = statistics.median(float(run[1]) for run in runs)
                print(f"| ViT-{variant} | {mebibytes:.0f} | {way} | {seconds:.2f} | {peak:.0f} |")


def _in_child(way: str, variant: str, path: pathlib.Path) -> str:
    """Runs `load_once` in a process of its own, so that peaks do not mix."""
    code = f"from tools import benchmark; benchmark.load_once({way!r}, {variant!r}, {str(path)!r})"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def load_once(way: str, variant: str, path: str) -> None:
    """Writes a checkpoint, or reads it in one way and prints seconds and MiB."""
    import numpy as np

    from remem_jax import models
    from remem_jax.weights import augreg

    model: Any = models.make("vit", variant=variant, classes=1000)
    if way == "write":
        shapes = augreg.names_and_shapes(model, 224)
        arrays: dict[str, Any] = {n: np.ones(shape, np.float32) for n, shape in shapes.items()}
        np.savez(path, **arrays)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if way == "bytes":
        kept: Any = pathlib.Path(path).read_bytes()
    elif way == "numpy":
        with np.load(path) as file:
            kept = {name: file[name] for name in file.files}
    else:
        kept = augreg.load(path, model)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, (peak - before) / 1024, len(kept) > 0)


if __name__ == "__main__":
    main()
