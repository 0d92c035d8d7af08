"""Evaluation: exact counts per class, also on a last partial batch."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import linear_model, pipeline, preprocessing

from remem_jax import losses
from remem_jax.data import registry
from remem_jax.records import Apply, Batch, Variables, View

Counts = Callable[[Variables, Batch], dict[str, jax.Array]]


def make_counts(apply: Apply, view: View, classes: int) -> Counts:
    """Builds the function that counts, per class, what a model gets right in a batch.

    Args:
        apply: The model in evaluation mode.
        view: The view of evaluation.
        classes: Number of classes.

    Returns:
        A pure function; masked examples count for nothing.
    """

    def counts(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        images = view(jax.random.key(0), batch.image)
        logits = apply(variables, images)
        right = jnp.argmax(logits, axis=-1) == batch.label
        one_hot = jnp.where(batch.mask[:, None], jax.nn.one_hot(batch.label, classes), 0.0)
        per_example = jax.vmap(lambda row, label: losses.cross_entropy(row[None], label[None]))
        loss = per_example(logits, batch.label)
        return {
            "right": jnp.sum(jnp.where(right[:, None], one_hot, 0.0), axis=0),
            "seen": jnp.sum(one_hot, axis=0),
            "loss": jnp.sum(jnp.where(batch.mask, loss, 0.0)),
        }

    return counts


def evaluate(counts: Counts, variables: Variables, batches: Iterable[Batch]) -> dict[str, float]:
    """Metrics of a model over all batches.

    Args:
        counts: From `make_counts`, jitted.
        variables: Of the model.
        batches: All examples once; see `data.device.evaluation_batches`.

    Returns:
        "top1" and "mean_per_class" from 0 to 1 (the second over classes that occur:
        scikit-learn's balanced accuracy), and "loss" in nats.
    """
    right, seen, loss = 0.0, 0.0, 0.0
    for batch in batches:
        found = jax.device_get(counts(variables, batch))
        right = right + np.asarray(found["right"], np.float64)
        seen = seen + np.asarray(found["seen"], np.float64)
        loss = loss + float(found["loss"])
    right, seen = np.asarray(right), np.asarray(seen)
    occurs = seen > 0
    return {
        registry.TOP1: float(right.sum() / seen.sum()),
        registry.MEAN_PER_CLASS: float(np.mean(right[occurs] / seen[occurs])),
        "loss": loss / float(seen.sum()),
    }


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> float:
    """Top-1 of a logistic regression on frozen features.

    Args:
        train: Features (example, feature) and labels (example,).
        test: The same, of other images.

    Returns:
        Share of the test images classified rightly, from 0 to 1.
    """
    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(C=0.01, max_iter=300)
    )
    model.fit(*train)
    return float(model.score(*test))
