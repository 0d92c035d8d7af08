"""Losses of students in torch, written from the formulas of their papers, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.oracles import peers


def value_and_grads(loss: Callable[..., Any], *arrays: Any) -> tuple[float, list[np.ndarray]]:
    """Returns a loss of tensors, and its gradients with respect to all of them."""
    torch = peers.torch()
    leaves = [torch.tensor(np.asarray(array, np.float64), requires_grad=True) for array in arrays]
    value = loss(*leaves)
    value.backward()
    return value.item(), [leaf.grad.numpy() for leaf in leaves]


def tensor(array: Any) -> Any:
    """Returns an array as a tensor, in float64 unless it has integers."""
    array = np.asarray(array)
    return peers.torch().tensor(array if array.dtype.kind in "iu" else array.astype(np.float64))


def divergence(teacher: Any, student: Any) -> Any:
    """Returns KL(teacher || student) over the last axis, given logarithms of probabilities."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def standardised(logits: Any) -> Any:
    """Returns logits of mean 0 and deviation 1 over the classes (Sun et al. 2024)."""
    mean = logits.mean(-1, keepdim=True)
    deviation = ((logits - mean) ** 2).sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    return (logits - mean) / (1e-7 + deviation.sqrt())


def standardised_kd(student: Any, teacher: Any, temperature: float) -> Any:
    """Returns T**2 KL of standardised logits."""
    log_probs = [
        (standardised(logits) / temperature).log_softmax(-1) for logits in (teacher, student)
    ]
    return temperature**2 * divergence(*log_probs).mean()


def decoupled(student: Any, teacher: Any, classes: Any, temperature: float) -> tuple[Any, Any]:
    """Returns T**2 KL of the class, and T**2 KL of the others (Zhao et al. 2022), per image."""
    targets, others = [], []
    for s, t, y in zip(
        student / temperature, teacher / temperature, map(int, classes), strict=True
    ):
        rest = [i for i in range(len(s)) if i != y]
        q, p = s.softmax(-1), t.softmax(-1)
        p_rest, q_rest = p[rest].sum(), q[rest].sum()
        targets.append(p[y] * (p[y] / q[y]).log() + p_rest * (p_rest / q_rest).log())
        others.append(divergence((p[rest] / p_rest).log(), (q[rest] / q_rest).log()))
    torch = peers.torch()
    scale = temperature**2
    return scale * torch.stack(targets), scale * torch.stack(others)


def similarities(student: Any, teacher: Any, others: Any, theirs: Any, temperature: float) -> Any:
    """Returns KL over the softmax of cosine similarities to others, for each vector.

    Args:
        student: Vectors (..., feature).
        teacher: The teacher's vectors.
        others: Vectors (..., entry, feature), with which those of the student are compared.
        theirs: The same for the teacher's.
        temperature: Temperature of the similarities.
    """
    log_probs = []
    for vectors, entries in ((teacher, theirs), (student, others)):
        lengths = (vectors**2).sum(-1, keepdim=True).sqrt()
        cosines = (vectors / lengths) @ entries.transpose(-1, -2)
        log_probs.append((cosines / temperature).log_softmax(-1))
    return divergence(*log_probs)


def relations(student: Any, teacher: Any, predicted: Any, tokens: Any, queue: Any) -> Any:
    """Returns LightlyTrain's loss: global and local, both at the temperature 0.07.

    Args:
        student: Predictions of the teacher's pooled features.
        teacher: The teacher's pooled features.
        predicted: Predictions of the teacher's tokens.
        tokens: The teacher's tokens.
        queue: Normalised features of the teacher.
    """
    among = similarities(student, teacher, queue, queue, 0.07)
    units, theirs = (x / (x**2).sum(-1, keepdim=True).sqrt() for x in (predicted, tokens))
    within = similarities(predicted, tokens, units, theirs, 0.07)
    return among.mean() + within.mean()


def whitened_error(predicted: Any, tokens: Any) -> Any:
    """Returns the mean squared error of tokens of mean 0 and variance 1 over their features."""
    mean = tokens.mean(-1, keepdim=True)
    variance = ((tokens - mean) ** 2).mean(-1, keepdim=True)
    return ((predicted - (tokens - mean) / (variance + 1e-6).sqrt()) ** 2).mean()
