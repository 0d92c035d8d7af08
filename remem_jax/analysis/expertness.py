"""How far an MLP is a mixture of experts (ReMem, Definition 5.3), and how sparse it is.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Section 5.1; the clusters are those of
Dhillon 2001, https://doi.org/10.1145/502512.502550.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from remem_jax import random_streams
from remem_jax.checks import at_least, require

UNUSED = -1  # The cluster of what has no energy, which can be put anywhere.

Energies = Float[np.ndarray, "input neuron"]


class Partition(NamedTuple):
    """Inputs and neurons in paired clusters.

    Attributes:
        share: Of the energy that lies inside the pairs, from 0 to 1.
        inputs: Cluster of each input, from 0; `UNUSED` where it activates nothing.
        neurons: The same of each neuron; `UNUSED` where nothing activates it.
    """

    share: float
    inputs: Int[np.ndarray, " input"]
    neurons: Int[np.ndarray, " neuron"]


class Null(NamedTuple):
    """Expertness of neurons that know nothing of each other.

    Attributes:
        mean: Over the shuffles.
        deviation: Standard deviation of one shuffle, not of the mean; 0 of a single one.
    """

    mean: float
    deviation: float


def energy(activations: Float[Array, "batch token neuron"]) -> Float[Array, "batch neuron"]:
    """Squared norm of each input's activation of each neuron, over its tokens."""
    return jnp.sum(jnp.square(activations.astype(jnp.float32)), axis=1)


def sparsity(
    activations: Float[Array, "batch token neuron"], *, threshold: float
) -> Float[Array, " batch"]:
    """Share of an input's activations that are small beside their mean, from 0 to 1.

    An activation is small if |a| <= threshold * mean |a|, the mean being that of all tokens and
    neurons of the same input. A GELU that is off is seldom exactly zero (it comes back to zero
    from -0.17 as its argument falls), so it needs a threshold: 0.1 calls those off that are below
    a tenth of the mean. With 0, only exact zeros are small, as Li et al. count them behind a
    ReLU. Neither depends on the scale of the activations.

    Args:
        activations: After the non-linearity.
        threshold: In units of the mean; at least 0.

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
    """Share of the energy inside pairs of clusters: sum_k cut(U_k, V_k) / cut(U, V).

    Source: Definition 5.3, Eq. 5, for given clusters. Differs from the paper: it is divided by
    the energy of all pairs, so that it lies between 0 and 1.
    """
    wide = energies.astype(np.float64)
    return float(np.sum(wide, where=inputs[:, None] == neurons[None]) / np.sum(wide))


def expertness(energies: Energies, *, clusters: int, seed: int) -> Partition:
    """The partition into paired clusters that keeps the most energy inside, as far as it is found.

    The best partition is hard to find, and the trivial one, of all in one pair, is no expert's.
    As in the paper the clusters are those of spectral co-clustering, which minimises a cut that
    is normalised by the sizes of the clusters: the share is that of these clusters, and at most
    the largest there is. It does not depend on the scale of the energies. Inputs and neurons
    without energy are left out, for they would be divided by.

    The clusters are a function of the energies and the seed, which is that of the randomised
    singular vectors and of the ten starts of k-means; with another version of scikit-learn, or
    number of threads, an input between two clusters may change sides.

    Args:
        energies: From `energy`, of all inputs.
        clusters: Number of pairs; the paper takes that of the classes.
        seed: See above.

    Raises:
        ValueError: If energies are negative or not finite, or there are fewer inputs or neurons
            with an energy than clusters, or less than two clusters.

    Source: Definition 5.3, Eq. 5; Dhillon 2001 by scikit-learn's `SpectralCoclustering`.
    """
    from sklearn import cluster  # Takes a second to import.

    require(
        bool(np.all(np.isfinite(energies)) and np.all(energies >= 0)),
        "energies must be finite and at least 0; does the model give NaN?",
    )
    used = [np.flatnonzero(np.sum(energies, axis=axis, dtype=np.float64) > 0) for axis in (1, 0)]
    for name, found in zip(("inputs", "neurons"), used, strict=True):
        require(
            2 <= clusters <= len(found),
            f"clusters must be from 2 to the {len(found)} {name} with an energy, got {clusters}.",
        )
    kept = energies[np.ix_(*used)].astype(np.float64)
    model = cluster.SpectralCoclustering(n_clusters=clusters, random_state=seed)
    model.fit(kept / kept.max())
    inputs, neurons = (np.full(length, UNUSED) for length in energies.shape)
    inputs[used[0]], neurons[used[1]] = model.row_labels_, model.column_labels_
    return Partition(share(energies, inputs, neurons), inputs, neurons)


def null(energies: Energies, *, clusters: int, seeds: Sequence[int]) -> Null:
    """Expertness where the inputs of each neuron are shuffled: what is found in pure chance.

    Each neuron keeps its energies, and with them how sparse it is; which neurons are active
    together is lost.

    Args:
        energies: As for `expertness`.
        clusters: The same.
        seeds: One for each shuffle, which is also that of its clusters.

    Raises:
        ValueError: As `expertness`, or if there are no seeds.
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
