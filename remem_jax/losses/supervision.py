"""Losses of labels, in nats: cross-entropy, weights of classes, and the information of MCMI."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.records import Labels


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    smoothing: float = 0.0,
    class_weights: Float[Array, " classes"] | None = None,
) -> Float[Array, ""]:
    """Computes the mean cross-entropy of the labels.

    With class weights, it is that of targets multiplied by the weights of their classes. The mean
    is over the images, as in the class-balanced loss and as in torch's CrossEntropyLoss with
    targets that are probabilities; torch divides by the sum of the weights if they are indices.

    Args:
        logits: Unnormalised log-probabilities.
        labels: Class indices, or for each image the shares of all classes.
        smoothing: Share of each target that is distributed evenly over all classes.
        class_weights: Weight of each class, such as `effective_number_weights`; None is 1.

    Returns:
        The mean over the batch, in nats.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    if class_weights is not None:
        log_probs = log_probs * class_weights[None]
    if labels.ndim == 1:
        label_log_probs = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    else:
        label_log_probs = jnp.sum(labels * log_probs, axis=-1)
    return -jnp.mean((1 - smoothing) * label_log_probs + smoothing * jnp.mean(log_probs, axis=-1))


def effective_number_weights(labels: np.ndarray, classes: int, beta: float) -> np.ndarray:
    """Computes the weights of the class-balanced loss.

    A class of n images has the weight (1 - beta) / (1 - beta**n), the inverse of its effective
    number of images, normalised to a mean of 1 over the classes. It is the same for all classes at
    beta = 0, and approaches the inverse of n for beta near 1. A class without images has weight 1.

    Args:
        labels: Class of each training image.
        classes: Number of classes.
        beta: At least 0, below 1.

    Returns:
        The weights, float32, (classes,).

    Source: Cui et al. 2019, https://arxiv.org/abs/1901.05555, equation 4.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    present = counts > 0
    weights = np.ones(classes)
    weights[present] = (1 - beta) / (1 - beta ** counts[present])
    weights[present] /= weights[present].mean()
    return weights.astype(np.float32)


def conditional_mutual_information(
    logits: Float[Array, "batch classes"], labels: Labels
) -> Float[Array, ""]:
    """Computes the information of predictions on the images, given their labels: I(X; Y' | Y).

    It is the mean over the batch of KL(p || Q), where p is the prediction for an image, and Q, the
    centroid of the image's class, is the mean of p over the batch's images of that class. A
    teacher of MCMI minimises cross_entropy - weight * conditional_mutual_information.

    Where labels are shares w of all classes, an image belongs to each class y with weight w[y]:
    Q[y] is the weighted mean of p, and the result the weighted mean of KL(p || Q[y]).

    - It is 0, up to rounding, if predictions are equal within each class; so a class with one
      image adds 0, and a class without images is ignored.
    - No gradient flows through the centroids, as in the authors' code, and none would: they
      minimise the mean of the divergences, so its derivative with respect to them is 0. The
      gradient is exact, derivatives of higher order are not.
    - Its expectation over batches is at most the value for all images. To second order, images
      that scatter about their centroid give 1 - present / batch of it, where `present` is the
      number of classes in the batch: a fifth is lost with 512 images of 100 classes, more than
      half with 128. It needs the whole global batch.

    Differs from the authors' code: there, the centroids are means over all training images, taken
    once before the teacher is fine-tuned, and the divergence from them has no upper bound.

    Args:
        logits: Unnormalised log-probabilities.
        labels: As in `cross_entropy`; shares are at least 0, and not all of them 0.

    Returns:
        The mean over the batch, in nats; from 0 (up to rounding) to log(classes).

    Source: Ye et al. 2024, https://arxiv.org/abs/2401.08732, and its code,
    https://github.com/iclr2024mcmi/ICLRMCMI. Centroids of the batch and mixed labels are our own.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    weights = jax.nn.one_hot(labels, logits.shape[-1]) if labels.ndim == 1 else labels
    weights = weights.astype(jnp.float32)
    class_weights = jnp.sum(weights, axis=0, keepdims=True)
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    in_class = weights / jnp.where(class_weights > 0, class_weights, 1.0)
    centroids = matmul(in_class.T, jnp.exp(jax.lax.stop_gradient(log_probs)))
    # A centroid underflows only where the probabilities do, which then multiply a finite number.
    log_centroids = jnp.log(jnp.maximum(centroids, jnp.finfo(jnp.float32).tiny))

    image_weights = jnp.sum(weights, axis=-1, keepdims=True)
    log_ratios = image_weights * log_probs - matmul(weights, log_centroids)
    return jnp.sum(jnp.exp(log_probs) * log_ratios) / jnp.sum(weights)


def supervised(
    logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    smoothing: float,
    mcmi: float,
    class_weights: Float[Array, " classes"] | None = None,
) -> Float[Array, ""]:
    """Computes the loss of teachers: cross-entropy minus lambda times the conditional information.

    Args:
        logits: Unnormalised log-probabilities.
        labels: As in `cross_entropy`.
        smoothing: As in `cross_entropy`.
        mcmi: Lambda of MCMI, the weight of `conditional_mutual_information`; 0 leaves it out.
        class_weights: As in `cross_entropy`; the information is not weighted.

    Returns:
        The mean over the batch, in nats.
    """
    value = cross_entropy(logits, labels, smoothing=smoothing, class_weights=class_weights)
    return value - mcmi * conditional_mutual_information(logits, labels) if mcmi else value
