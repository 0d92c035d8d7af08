"""SAM over groups of examples in NumPy, in float64, one group at a time, on a small network.

The network embeds patches of 2 x 2 pixels by a tanh layer, averages them, and classifies.
"""

from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Found(NamedTuple):
    """Results of a step.

    Attributes:
        loss: Mean over the batch, before any ascent.
        gradient: Mean over the groups, each at its own perturbed point.
        ascent_norm: Mean over the groups of the norms of their gradients before the ascent.
    """

    loss: float
    gradient: Arrays
    ascent_norm: float


def norm(arrays: Arrays) -> float:
    """Returns the L2 norm over all arrays."""
    return float(np.sqrt(sum(np.sum(array**2) for array in arrays.values())))


def gradient(params: Arrays, images: np.ndarray, targets: np.ndarray) -> tuple[float, Arrays]:
    """Returns the mean cross-entropy with soft labels, and its gradient."""
    examples, side, _, channels = images.shape
    patches = images.reshape(examples, side // 2, 2, side // 2, 2, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(examples, -1, 4 * channels)
    hidden = np.tanh(patches @ params["embedding"].reshape(4 * channels, -1))
    pooled = hidden.mean(axis=1)
    logits = pooled @ params["head"] + params["bias"]
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    d_logits = (probs - targets) / examples
    d_hidden = (d_logits @ params["head"].T)[:, None] / hidden.shape[1] * (1 - hidden**2)
    grads = {
        "embedding": np.einsum("epi,eph->ih", patches, d_hidden).reshape(params["embedding"].shape),
        "head": pooled.T @ d_logits,
        "bias": d_logits.sum(axis=0),
    }
    return float(-(targets * np.log(probs)).sum(axis=-1).mean()), grads


def sam(
    params: Arrays, images: np.ndarray, targets: np.ndarray, *, rho: float, group: int
) -> Found:
    """Averages over groups, each of which ascends along its gradient before taking it."""
    params = {name: np.asarray(array, np.float64) for name, array in params.items()}
    groups = []
    for i in range(0, len(images), group):
        examples = images[i : i + group], targets[i : i + group]
        loss, ascent = gradient(params, *examples)
        length = norm(ascent)
        perturbed = {name: params[name] + rho * ascent[name] / length for name in params}
        groups.append(Found(loss, gradient(perturbed, *examples)[1], length))
    return Found(
        float(np.mean([result.loss for result in groups])),
        {name: np.mean([result.gradient[name] for result in groups], axis=0) for name in params},
        float(np.mean([result.ascent_norm for result in groups])),
    )
