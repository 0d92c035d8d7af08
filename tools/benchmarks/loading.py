"""Measures seconds and peak memory of reading a checkpoint, compared with reading its bytes."""

import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

VARIANTS, WAYS, REPEATS = ("B/16", "L/16"), ("bytes", "numpy", "ours"), 5


def compare(variants: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields a record for each ViT and each way of reading it."""
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            path = pathlib.Path(folder) / "vit.npz"
            _in_child("write", variant, path)
            for way in WAYS:
                runs = [_in_child(way, variant, path).split() for _ in range(REPEATS)]
                seconds, peaks = ([float(run[i]) for run in runs] for i in (0, 1))
                yield {
                    "row": "load",
                    "name": f"ViT-{variant}",
                    "way": way,
                    "mib": path.stat().st_size / 2**20,
                    "seconds": seconds,
                    "median": statistics.median(seconds),
                    "peaks_mib": peaks,
                    "peak_mib": statistics.median(peaks),
                }


def _in_child(way: str, variant: str, path: pathlib.Path) -> str:
    """Runs `load_once` in its own process, so that the peaks are separate.

    A child's peak starts at the memory of its parent, so the parent must not have imported JAX.
    """
    arguments = f"{way!r}, {variant!r}, {str(path)!r}"
    code = f"from tools.benchmarks import loading; loading.load_once({arguments})"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


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
        content: Any = pathlib.Path(path).read_bytes()
    elif way == "numpy":
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
    else:
        content = augreg.load(path, model)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, (peak - before) / 1024, len(content) > 0)
