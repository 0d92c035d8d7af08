"""Compares the input pipeline with tf.data and torch's DataLoader on the same JPEGs.

    python -m tools.benchmark_input                    # all rows, a few minutes
    python -m tools.benchmark_input --rows streamed,tf.data --images 500
    python -m tools.benchmark_input --growth           # 1,000 to 100,000 images

Every row runs several times, each time in its own process on one pinned core. It decodes 500 x 400
JPEGs of quality 90, takes a random resized crop of 5 to 100 % of the area, flips half of the images
and returns antialiased uint8 batches of 224 pixels. The figure is images per CPU-second, over all
threads and child processes. tf.data may be installed in another environment:
--tensorflow=path/to/python.

`streamed` and `resident` are our rows. `resident` is the host's work for a batch that is gathered
on the device as stored: 256 pixels, decoded before, which is not counted. `resident, transform`
adds the crop to 224 pixels, with the CPU as the device.
"""

import argparse
import io
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZE, BATCH, AREA = 224, 64, (0.05, 1.0)
WARM_UP = 2  # Untimed batches, in which threads start and functions are traced.


def streamed(folder: pathlib.Path) -> Iterator[Any]:
    """Yields our batches of a data set that does not fit on the device."""
    return _loader(folder, "streamed")[0]


def resident(folder: pathlib.Path) -> Iterator[Any]:
    """Yields our batches of a data set that fits on the device, as stored."""
    return _loader(folder, "resident")[0]


def resident_transform(folder: pathlib.Path) -> Iterator[Any]:
    """Yields the batches of `resident` after the transform, which a jitted step contains."""
    import jax

    batches, transform = _loader(folder, "resident")
    transform = jax.jit(transform)
    for step, batch in enumerate(batches):
        yield transform(jax.random.key(step), batch.image)


def tf_data(folder: pathlib.Path) -> Iterator[Any]:
    """Yields batches of tf.data, with the fused decoding and cropping of its ImageNet examples."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def load(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros((0, 0, 4), tf.float32),
            area_range=AREA,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
        return tf.image.random_flip_left_right(tf.cast(tf.round(image), tf.uint8))

    paths = tf.data.Dataset.from_tensor_slices(sorted(str(p) for p in folder.glob("*/*.jpg")))
    images = paths.repeat().shuffle(1000).map(load, num_parallel_calls=1)
    return iter(images.batch(BATCH).prefetch(1))


def torch_loader(folder: pathlib.Path) -> Iterator[Any]:
    """Yields batches of torch's DataLoader with torchvision's transforms, which use Pillow."""
    from tests.oracles import peers

    torch, torchvision = peers.torch(), peers.torchvision()
    torch.set_num_threads(1)
    transforms = torchvision.transforms
    images = torchvision.datasets.ImageFolder(
        str(folder),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=AREA),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        ),
    )
    while True:
        yield from torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True)


ROWS: dict[str, Callable[[pathlib.Path], Iterator[Any]]] = {
    "streamed": streamed,
    "tf.data": tf_data,
    "torch": torch_loader,
    "resident": resident,
    "resident, transform": resident_transform,
}


def main() -> None:
    """Measures the rows named on the command line, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=";".join(ROWS), help="names separated by ; or ,")
    parser.add_argument("--images", type=int, default=1000, help="number of files and timed images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="CPU core to run on")
    parser.add_argument("--tensorflow", default=sys.executable, help="Python with TensorFlow")
    parser.add_argument(
        "--growth", action="store_true", help="measure how time and memory grow with the images"
    )
    parser.add_argument("--json", default="", help="file for the figures")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_measure_here(options.child, options.folder, options.images)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = _grow(options, scratch) if options.growth else _compare(options, scratch)
    if options.json:
        pathlib.Path(options.json).expanduser().write_text(json.dumps(figures, indent=2) + "\n")


def _compare(options: argparse.Namespace, scratch: str) -> dict[str, Any]:
    separator = ";" if ";" in options.rows else ","
    rows = ROWS if options.rows == ";".join(ROWS) else options.rows.split(separator)
    folder = pathlib.Path(scratch) / "images"
    _write_images(folder, options.images)
    measured: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(options.repeats):
        for row in rows:
            measured[row].append(_measure(options, row, folder, options.images))
    # The best of several runs, because other processes can only slow a run down.
    rates = {row: max(run["rate"] for run in runs) for row, runs in measured.items()}
    print("| one core | images per CPU-second | relative to tf.data | peak memory, MiB |")
    print("|---|---:|---:|---:|")
    for row, runs in measured.items():
        ratio = f"{rates[row] / rates['tf.data']:.2f}" if "tf.data" in rates else "-"
        memory = statistics.median(run["mib"] for run in runs)
        print(f"| {row} | {rates[row]:,.0f} | {ratio} | {memory:,.0f} |")
    return {"rates": rates, "runs": measured}


def _grow(options: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """Measures the initial scan of all images and one streamed epoch, for more and more images."""
    measured = {}
    print("| images | scan, s | epoch, s | ms per image | peak memory, MiB |")
    print("|---:|---:|---:|---:|---:|")
    for images in (1000, 10_000, 100_000):
        folder = pathlib.Path(scratch) / str(images)
        _write_images(folder, images)
        run = measured[images] = _measure(options, "streamed", folder, images)
        per_image = 1000 * (run["seconds"] + run["first"]) / images
        print(
            f"| {images:,} | {run['first']:.1f} | {run['seconds']:.1f} | {per_image:.2f} | "
            f"{run['mib']:,.0f} |",
            flush=True,
        )
    return measured


def _measure(
    options: argparse.Namespace, row: str, folder: pathlib.Path, images: int
) -> dict[str, float]:
    """Measures one row in its own process."""
    python = options.tensorflow if row == "tf.data" else sys.executable
    command = [python, "-m", "tools.benchmark_input", f"--child={row}", f"--folder={folder}"]
    environment = os.environ | {
        "REMEM_CACHE": str(folder.parent / "cache"),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [*command, f"--images={images}"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {options.core}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(row: str, folder: pathlib.Path, images: int) -> dict[str, float]:
    started = _cpu_seconds()
    batches = ROWS[row](folder)
    for _ in range(WARM_UP):
        _wait(next(batches))
    first = _cpu_seconds() - started
    counted, started = 0, _cpu_seconds()
    clock = time.monotonic()
    while counted < images or time.monotonic() - clock < 1.0:
        _wait(next(batches))
        counted += BATCH
    seconds = _cpu_seconds() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": counted / seconds, "seconds": seconds, "first": first, "mib": peak}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _wait(batch: Any) -> None:
    if "jax" in sys.modules:
        import jax

        jax.block_until_ready(batch)


def _loader(folder: pathlib.Path, kind: str) -> tuple[Iterator[Any], Any]:
    from absl import flags

    from remem_jax import data
    from remem_jax.data.images.preprocessing import Preprocessing

    flags.FLAGS.mark_as_parsed()
    dataset = data.load(
        data.open_source("folder", path=str(folder), data_dir=""),
        data.Storage(kind, stored_size=256, resident_gib=16.0, cache="", threads=1),
        data.Rules(validation=0.01, seed=0, near_duplicates=False),
        corrupt_limit=0,
    )
    loader = data.make_loader(
        dataset, Preprocessing(SIZE), crop_area=AREA, balance=0.0, seed=0, threads=1, workers=0
    )
    return loader.train(BATCH, 0, stage="teacher"), loader.train_transform


def _write_images(folder: pathlib.Path, images: int) -> None:
    """Writes smooth images with some noise, like photographs; beyond 200, files are hard links."""
    import numpy as np
    from PIL import Image

    written: list[pathlib.Path] = []
    for i in range(images):
        path = folder / f"class_{i % 10}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(written) < 200:
            rng = np.random.default_rng(i)
            small = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8))
            smooth = np.asarray(small.resize((500, 400), Image.Resampling.BICUBIC), np.float64)
            noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
            path.write_bytes(buffer.getvalue())
            written.append(path)
        else:
            path.hardlink_to(written[i % len(written)])


if __name__ == "__main__":
    main()
