"""One of several hosts in a test: reads batches under jax.distributed and prints digests."""

import hashlib
import itertools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from remem_jax import data, evaluate, tallies
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.records import DataLoader
from remem_jax.workflow import context

DEVICES = 4  # In total, over all hosts.


def main(folder: str, unlabelled: str, cache: str, port: int, hosts: int, host: int) -> None:
    """Joins the other hosts and prints one line of JSON."""
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_num_cpu_devices", DEVICES // hosts)
    if hosts > 1:
        jax.distributed.initialize(f"localhost:{port}", hosts, host)
    result: dict[str, Any] = {
        kind: _summarise(folder, unlabelled, cache, kind) for kind in data.INPUTS[1:]
    }
    result["devices"] = [jax.device_count(), jax.local_device_count()]
    sys.stdout.write(json.dumps(result) + "\n")


def _summarise(folder: str, unlabelled: str, cache: str, kind: str) -> dict[str, Any]:
    """Returns digests of some batches and a model's metrics, for one of the two input pipelines."""
    source = data.open_source("folder", path=folder, data_dir="")
    dataset = data.load(
        data.with_unlabelled(source, unlabelled, largest_share=0.4),
        data.Storage(kind, stored_size=24, resident_gib=1.0, cache=cache, threads=1),
        data.Rules(validation=0.3, seed=0, near_duplicates=False),
        corrupt_limit=0,
    )
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def make_loader(balance: float) -> DataLoader:
        return data.make_loader(
            dataset,
            Preprocessing(8),
            crop_area=(0.3, 1.0),
            balance=balance,
            seed=0,
            threads=2,
            workers=0,
            sharding=sharding,
        )

    digests = []
    for balance, count in ((0.0, 4), (1.0, 2)):
        batches = make_loader(balance).train(8, 3, stage="student")
        digests += [_digest(batch) for batch in itertools.islice(batches, count)]
        batches.close()
    loader = make_loader(0.0)
    batches = loader.distillation(8, 3, stage="student")
    digests += [_digest(batch) for batch in itertools.islice(batches, 2)]
    batches.close()
    digests += [_digest(batch) for batch in loader.evaluation("test", 8)]

    kernel = np.random.default_rng(0).normal(size=(3, len(dataset.classes))).astype(np.float32)

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.mean(images, axis=(1, 2)) @ variables["kernel"]

    (measured,) = evaluate.evaluate(
        jax.jit(tallies.count, donate_argnums=0),
        context.evaluation_transform(loader, mesh),
        [evaluate.Model(jax.jit(apply), {"kernel": kernel})],
        loader.evaluation("test", 8),
        classes=len(dataset.classes),
        wanted=evaluate.Wanted(confusion=True, predictions=True, logits=True),
    ).models
    for name in ("predictions", "confidences", "logits"):
        measured[name] = measured[name].tolist()
    return {"seen": digests, "measured": measured}


def _digest(batch: Any) -> str:
    whole = multihost_utils.process_allgather(batch, tiled=True)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in whole)).hexdigest()
