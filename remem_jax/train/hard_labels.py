"""Hard labels in the losses of students: weights of classes, smoothing, images without a label.

Each function wraps a loss and changes the labels that it gets. This is enough because every loss
is linear in the labels: it averages the cross-entropy of the labels over the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from remem_jax.records import Labels, Outputs

# A loss of students with its `hard_labels` bound; see `steps.Loss`.
Loss = Callable[..., Float[Array, ""]]
Shares = Float[Array, "batch classes"]


def classes(labels: Labels, teacher_logits: Float[Array, "batch classes"]) -> Int[Array, " batch"]:
    """Returns one class for each image: that of its label, or the teacher's if it has none.

    Args:
        labels: Class indices, -1 without a label; or shares of all classes, of which the largest
            counts, all 0 without a label.
        teacher_logits: Logits of the teacher.
    """
    of_teacher = jnp.argmax(teacher_logits, axis=-1)
    if labels.ndim == 1:
        return jnp.where(labels >= 0, labels, of_teacher)
    return jnp.where(jnp.sum(labels, axis=-1) > 0, jnp.argmax(labels, axis=-1), of_teacher)


def with_classes(loss: Loss) -> Loss:
    """Passes `classes` to a loss, of the labels before other functions change them."""

    def passed(
        student: Outputs, teacher: Outputs, labels: Labels, **settings: Any
    ) -> Float[Array, ""]:
        of_images = classes(labels, teacher.logits)
        return loss(student, teacher, labels, classes=of_images, **settings)

    return passed


def with_class_weights(loss: Loss, weights: Float[Array, " classes"] | None) -> Loss:
    """Weights the hard labels of a loss by their classes; its other arguments are unchanged.

    The loss gets targets multiplied by the weights, whose cross-entropy is that of
    `losses.cross_entropy` with `class_weights`.

    Args:
        loss: The loss.
        weights: Weight of each class; None returns the loss itself.
    """
    if weights is None:
        return loss
    return _with_shares(loss, lambda shares: shares * weights[None])


def with_smoothing(loss: Loss, smoothing: float, *, unlabelled: bool) -> Loss:
    """Smooths the hard labels of a loss; its other arguments are unchanged.

    Args:
        loss: The loss.
        smoothing: Share of each label that is distributed evenly over all classes, as in
            `losses.cross_entropy`; 0 returns the loss itself.
        unlabelled: Whether images may lack labels; see `with_unlabelled`. They then get none.
    """
    if not smoothing:
        return loss

    def smoothed(shares: Shares) -> Shares:
        even = smoothing / shares.shape[-1]
        if unlabelled:
            return (1 - smoothing) * shares + even * jnp.sum(shares, axis=-1, keepdims=True)
        return (1 - smoothing) * shares + even

    return _with_shares(loss, smoothed)


def with_unlabelled(loss: Loss) -> Loss:
    """Lets images of a batch lack labels: the term of the labels is the mean over the others.

    The term of the teacher remains the mean over all images. The loss gets, as labels, the shares
    of all classes, multiplied by the number of images and divided by that of labelled images. An
    image without a label, whose class index is -1, has shares of 0 and so adds nothing.

    A mixture of a labelled image and another counts as its share of the labelled image, both in
    the sum and in the number of labelled images. If no image of a batch has a label, the term of
    the labels and its gradient are 0.

    Args:
        loss: The loss.
    """

    def scaled(shares: Shares) -> Shares:
        labelled = jnp.sum(shares)
        return shares * jnp.where(labelled > 0, len(shares) / jnp.maximum(labelled, 1e-6), 0.0)

    return _with_shares(loss, scaled)


def _with_shares(loss: Loss, change: Callable[[Shares], Shares]) -> Loss:
    """Changes the labels of a loss, given as shares of all classes."""

    def changed(
        student: Outputs, teacher: Outputs | None, labels: Labels, **settings: Any
    ) -> Float[Array, ""]:
        classes = student.logits.shape[-1]
        shares = jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels
        return loss(student, teacher, change(shares), **settings)

    return changed
