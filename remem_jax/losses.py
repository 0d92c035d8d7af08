"""Losses: functions of logits or features that return one float32 number for the batch.

They are in nats, except `dist`, which is computed from correlations, and `features`, a squared
error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.records import Labels

# Added to the product of two norms, as in DIST's code.
_EPSILON = 1e-8
# Norm below which a centred row or column whose largest entry is 1 counts as constant. In float32,
# rounding of logits of 16 gives a column of 512 a norm of 2e-5; 1e-3 is well above it.
_CONSTANT = 1e-3
# Added to the variance of tokens and logits; the epsilon of Flax's LayerNorm.
_VARIANCE = 1e-6


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


def distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes the mean divergence of the student's softened predictions from the teacher's.

    Both sets of logits are divided by the temperature T. The result is multiplied by T**2, so
    that its gradient keeps its size when T changes.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        temperature: T, above 0; 1 softens nothing. May be traced.

    Returns:
        T**2 * KL(teacher || student) in nats, averaged over the batch.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature
    teacher = jax.nn.log_softmax(teacher)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * jnp.mean(divergence)


def knowledge_distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Computes the weighted mean of the cross-entropy of the labels and `distillation`.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        labels: As in `cross_entropy`.
        temperature: T of `distillation`, above 0.
        weight: Share w of `distillation`, from 0 (labels only) to 1 (teacher only).

    Returns:
        (1 - w) * cross_entropy + w * distillation, in nats.

    Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 3.
    """
    hard = cross_entropy(student_logits, labels)
    soft = distillation(student_logits, teacher_logits, temperature)
    return (1 - weight) * hard + weight * soft


def dist(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: Float[Array, ""] | float,
    *,
    inter_weight: Float[Array, ""] | float,
    intra_weight: Float[Array, ""] | float,
    masked: bool,
) -> Float[Array, ""]:
    """Computes how far the student's softened predictions are from correlating with the teacher's.

    Two terms, each T**2 * (1 - mean of Pearson's correlations of student and teacher): `inter`
    over the rows (the classes of an image), `intra` over the columns (the images of a class). A
    column is as long as the batch, so `intra` needs the whole global batch.

    The official formula adds 1e-8 to the product of the two norms. If a class is absent from the
    batch and the teacher is sharp, that is more than the product: the class's correlation is near
    0 even for a student equal to the teacher, and its gradient pulls that student away. With 128
    images, 397 classes and a margin of 16 between logits, this holds for most classes. And if a
    student's column is constant, as with a head of zeros, its gradient is divided by 1e-8.

    With `masked` there is no epsilon, and the teacher may be arbitrarily sharp:

    - Each row and column is first divided by its largest entry, in log space, so that it does not
      underflow. A correlation does not depend on the scale, so an absent class counts as in
      the official formula with a less sharp teacher. Leaving it out instead would lose most
      of the teacher in a small batch.
    - Rows and columns whose centred norm in the teacher is below 1e-3 are left out of the mean:
      one-hot columns without their class, the only image of a batch, equal logits.
    - The student's norm counts as at least 1e-3, which bounds the gradient. As the limit for the
      teacher is the same, a student equal to the teacher has a correlation of 1 in all that count.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        temperature: T, above 0. May be traced.
        inter_weight: Weight of the term over images (beta), at least 0.
        intra_weight: Weight of the term over classes (gamma), at least 0.
        masked: False is the official formula.

    Returns:
        inter_weight * inter + intra_weight * intra; each term is from 0 to 2 * T**2. With
        `masked` it is 0, up to rounding, if the student's logits are the teacher's.

    Source: Huang et al. 2022, https://arxiv.org/abs/2205.10536, inter-class and intra-class
    relations; T**2 and the epsilon are in its code only.
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature
    teacher = jax.nn.log_softmax(teacher)
    distance = _scaled_distance if masked else _official_distance
    inter = distance(student, teacher, axis=1)
    intra = distance(student, teacher, axis=0)
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _official_distance(
    student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, axis: int
) -> Float[Array, ""]:
    """Returns 1 - mean correlation of probabilities along an axis, given their logarithms."""
    student, teacher = _centred(jnp.exp(student), axis), _centred(jnp.exp(teacher), axis)
    norms = _norm(student, axis) * _norm(teacher, axis)
    return 1 - jnp.mean(jnp.sum(student * teacher, axis) / (norms + _EPSILON))


def _scaled_distance(
    student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, axis: int
) -> Float[Array, ""]:
    """Returns `_official_distance` without epsilon, over the rows or columns that vary."""

    def scaled(log_probs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        # A correlation does not depend on the scale, whose gradient would be 0.
        largest = jax.lax.stop_gradient(jnp.max(log_probs, axis, keepdims=True))
        return _centred(jnp.exp(log_probs - largest), axis)

    student, teacher = scaled(student), scaled(teacher)
    teacher_norm = _norm(teacher, axis)
    counts = teacher_norm >= _CONSTANT
    norms = jnp.maximum(_norm(student, axis), _CONSTANT) * jnp.maximum(teacher_norm, _CONSTANT)
    distances = 1 - jnp.sum(student * teacher, axis) / norms
    counted = jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(counts, distances, 0.0)) / counted


def _centred(x: Float[Array, "batch classes"], axis: int) -> Float[Array, "batch classes"]:
    return x - jnp.mean(x, axis, keepdims=True)


def _norm(x: Float[Array, "batch classes"], axis: int) -> Float[Array, " other"]:
    """Returns the L2 norm, with a gradient of 0 at 0, where that of the square root is NaN."""
    square = jnp.sum(x**2, axis)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def dist_distillation(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    labels: Labels,
    *,
    temperature: Float[Array, ""] | float,
    weight: Float[Array, ""] | float,
    masked: bool,
) -> Float[Array, ""]:
    """Computes the loss of DIST: cross-entropy of the labels, and correlation with the teacher.

    Args:
        student_logits: Unnormalised log-probabilities.
        teacher_logits: The same for the teacher; no gradient reaches them.
        labels: As in `cross_entropy`.
        temperature: T of `dist`, above 0.
        weight: Weight of both terms of `dist` (beta = gamma; 1 in the paper), at least 0; 0 is
            the cross-entropy alone.
        masked: As in `dist`.

    Returns:
        cross_entropy + weight * (inter + intra).

    Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, section 3.
    """
    hard = cross_entropy(student_logits, labels)
    soft = dist(
        student_logits,
        teacher_logits,
        temperature,
        inter_weight=1.0,
        intra_weight=1.0,
        masked=masked,
    )
    return hard + weight * soft


def standardise(
    logits: Float[Array, "batch classes"],
) -> Float[Array, "batch classes"]:
    """Brings each image's logits to a mean of 0 and a standard deviation of 1 over the classes.

    Equal logits become zeros; near them the derivative is at most 1,000.

    Args:
        logits: Unnormalised log-probabilities.

    Returns:
        The same shape, in float32. It does not depend on the scale or the mean of the logits.

    Source: Sun et al. 2024, https://arxiv.org/abs/2403.01732, algorithm 1. The temperature is a
    separate argument of `distillation`, and a small number is added to the variance, as in
    `features`, where the authors' code adds one to the deviation.
    """
    logits = logits.astype(jnp.float32)
    mean = jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.var(logits, axis=-1, keepdims=True)
    return (logits - mean) * jax.lax.rsqrt(variance + _VARIANCE)


def features(
    student: Float[Array, "batch *token feature"], teacher: Float[Array, "batch *token feature"]
) -> Float[Array, ""]:
    """Computes the mean squared error of predictions of the teacher's standardised tokens.

    Every token of the teacher is first brought to a mean of 0 and a variance of 1 over its
    features, without learned scales. So a student that predicts 0 has a loss of 1 with any
    teacher (0 for a constant token), and a weight means the same for all teachers.

    Args:
        student: Predictions of the standardised tokens.
        teacher: Tokens; no gradient reaches them.

    Returns:
        The mean over batch, tokens and features, at least 0.

    Source: Romero et al. 2015, https://arxiv.org/abs/1412.6550 (hints, through a regressor); Wei et
    al. 2022, https://arxiv.org/abs/2205.14141 (whitened targets). Differs from both: FitNets
    trains on hints first and on labels later, Wei et al. have a smooth L1 distance.
    """
    target = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    mean = jnp.mean(target, axis=-1, keepdims=True)
    variance = jnp.var(target, axis=-1, keepdims=True)
    target = (target - mean) * jax.lax.rsqrt(variance + _VARIANCE)
    return jnp.mean((student.astype(jnp.float32) - target) ** 2)
