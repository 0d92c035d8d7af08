"""Measures how much an MLP resembles a mixture of experts (ReMem, Definition 5.3); its sparsity.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Section 5.1. The co-clustering is that
of Dhillon 2001, https://doi.org/10.1145/502512.502550.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from remem_jax import random_streams
from remem_jax.checks import at_least, require

UNUSED = -1  # Cluster of inputs and neurons without energy.

Energies = Float[np.ndarray, "input neuron"]


class Partition(NamedTuple):
    """Inputs and neurons in paired clusters.

    Attributes:
        share: Share of the energy inside the pairs, from 0 to 1.
        inputs: Cluster of each input, from 0; `UNUSED` if it activates no neuron.
        neurons: Cluster of each neuron, from 0; `UNUSED` if no input activates it.
    """

    share: float
    inputs: Int[np.ndarray, " input"]
    neurons: Int[np.ndarray, " neuron"]


class Null(NamedTuple):
    """Expertness of independent neurons, the null hypothesis.

    Attributes:
        mean: Mean over the shuffles.
        deviation: Standard deviation of one shuffle, not of the mean; 0 if there is only one.
    """

    mean: float
    deviation: float


def energy(activations: Float[Array, "batch token neuron"]) -> Float[Array, "batch neuron"]:
    """Returns the squared norm of each neuron's activations over the tokens of an input."""
    return jnp.sum(jnp.square(activations.astype(jnp.float32)), axis=1)


def sparsity(
    activations: Float[Array, "batch token neuron"], *, threshold: float
) -> Float[Array, " batch"]:
    """Returns the share of each input's activations that are small, from 0 to 1.

    An activation is small if |a| <= threshold * mean |a|, with the mean over all tokens and neurons
    of the same input. The output of an inactive GELU is seldom exactly zero (its minimum is -0.17),
    so it needs a threshold: with 0.1, activations below a tenth of the mean are small. With 0, only
    exact zeros are, as Li et al. count them after a ReLU. Neither depends on the scale of the
    activations.

    Args:
        activations: Activations after the non-linearity.
        threshold: Threshold relative to the mean; at least 0.

    Raises:
        ValueError: If the threshold is negative.

    Source: Li et al. 2022, https://arxiv.org/abs/2210.06313, for ReLU; the threshold is ours.
    """
    at_least("threshold", threshold, 0)
    sizes = jnp.abs(activations.astype(jnp.float32))
    small = sizes <= threshold * jnp.mean(sizes, axis=(1, 2), keepdims=True)
    return jnp.mean(small.astype(jnp.float32), axis=(1, 2))


def share(
    energies: Energies, inputs: Int[np.ndarray, " input"], neurons: Int[np.ndarray, " neuron"]
) -> float:
    """Returns the share of the energy inside pairs of clusters: sum_k cut(U_k, V_k) / cut(U, V).

    Source: Definition 5.3, Eq. 5, for given clusters. Differs from the paper: the sum is divided by
    the total energy, so that the share lies between 0 and 1.
    """
    wide = energies.astype(np.float64)
    return float(np.sum(wide, where=inputs[:, None] == neurons[None]) / np.sum(wide))


def expertness(energies: Energies, *, clusters: int, seed: int) -> Partition:
    """Partitions inputs and neurons into paired clusters with much of the energy inside the pairs.

    Finding the best partition is infeasible. As in the paper, the clusters come from spectral
    co-clustering, which minimises a cut that is normalised by the sizes of the clusters (otherwise,
    a single pair of clusters with everything in it would be optimal). The share is therefore a
    lower bound on the largest one. It does not depend on the scale of the energies. Inputs and
    neurons without energy are left out, because the normalisation would divide by zero.

    The clusters are a function of the energies and the seed, which is used for the randomised
    singular vectors and the ten starts of k-means. With another version of scikit-learn or number
    of threads, an input between two clusters may change to the other.

    Args:
        energies: The output of `energy`, for all inputs.
        clusters: Number of pairs. The paper uses the number of classes.
        seed: Random seed; see above.

    Raises:
        ValueError: If energies are negative or not finite, if there are fewer inputs or neurons
            with energy than clusters, or if `clusters` is below 2.

    Source: Definition 5.3, Eq. 5; Dhillon 2001 by scikit-learn's `SpectralCoclustering`.
    """
    from sklearn import cluster  # Imported here because it takes long.

    require(
        bool(np.all(np.isfinite(energies)) and np.all(energies >= 0)),
        "energies must be finite and at least 0; are the model's outputs NaN?",
    )
    used = [np.flatnonzero(np.sum(energies, axis=axis, dtype=np.float64) > 0) for axis in (1, 0)]
    for name, indices in zip(("inputs", "neurons"), used, strict=True):
        require(
            2 <= clusters <= len(indices),
            f"clusters must be from 2 to {len(indices)}, the {name} with energy; got {clusters}.",
        )
    kept = energies[np.ix_(*used)].astype(np.float64)
    model = cluster.SpectralCoclustering(n_clusters=clusters, random_state=seed)
    model.fit(kept / kept.max())
    inputs, neurons = (np.full(length, UNUSED) for length in energies.shape)
    inputs[used[0]], neurons[used[1]] = model.row_labels_, model.column_labels_
    return Partition(share(energies, inputs, neurons), inputs, neurons)


def null(energies: Energies, *, clusters: int, seeds: Sequence[int]) -> Null:
    """Computes the expertness that chance alone gives, by shuffling the inputs of each neuron.

    Each neuron keeps its energies, and so its sparsity, but it becomes random which neurons are
    active together.

    Args:
        energies: As in `expertness`.
        clusters: As in `expertness`.
        seeds: One seed per shuffle, also used for its clusters.

    Raises:
        ValueError: As in `expertness`, or if there are no seeds.
    """
    require(len(seeds) > 0, "seeds must hold at least one value.")
    shares = [
        expertness(
            random_streams.generator(seed, "expertness", "shuffle").permuted(energies, axis=0),
            clusters=clusters,
            seed=seed,
        ).share
        for seed in seeds
    ]
    deviation = float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0
    return Null(float(np.mean(shares)), deviation)
