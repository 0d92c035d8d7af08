"""Expertness, against planted mixtures and a slow loop over all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from remem_jax.analysis import expertness

CLUSTERS = 4


@pytest.fixture
def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies of a mixture with little noise, and the expert of each input and neuron."""
    inputs, neurons = rng.permutation(np.arange(60) % 4), rng.permutation(np.arange(40) % 4)
    inside = inputs[:, None] == neurons[None]
    energies = rng.uniform(0.5, 1.5, inside.shape) * np.where(inside, 1.0, 0.01)
    return energies, inputs, neurons


@pytest.fixture
def dense(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 1.5, (60, 40))


def partition_of(energies: np.ndarray, clusters: int = CLUSTERS) -> expertness.Partition:
    return expertness.expertness(energies, clusters=clusters, seed=0)


def test_a_planted_mixture_is_found(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    energies, inputs, neurons = planted

    partition = partition_of(energies)

    assert metrics.adjusted_rand_score(inputs, partition.inputs) == 1
    assert metrics.adjusted_rand_score(neurons, partition.neurons) == 1
    assert partition.share == pytest.approx(1 / 1.03, abs=0.01)  # 3 parts of noise of 0.01 each.


def test_inputs_and_neurons_of_an_expert_are_paired(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    energies, inputs, neurons = planted

    partition = partition_of(energies)

    both = np.concatenate([inputs, neurons])
    labels = np.concatenate([partition.inputs, partition.neurons])
    assert metrics.adjusted_rand_score(both, labels) == 1


def test_the_share_equals_a_loop_over_all_pairs(
    rng: np.random.Generator, dense: np.ndarray
) -> None:
    inputs, neurons = rng.integers(0, 3, 60), rng.integers(0, 3, 40)

    actual = expertness.share(dense, inputs, neurons)

    energy = sum(dense[i, j] for i in range(60) for j in range(40) if inputs[i] == neurons[j])
    assert actual == pytest.approx(energy / sum(dense.ravel()), rel=1e-12)


def test_order_and_scale_make_no_difference(
    rng: np.random.Generator, planted: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    energies = planted[0]
    shuffled = 1e-6 * energies[np.ix_(rng.permutation(60), rng.permutation(40))]

    actual = partition_of(shuffled)

    assert actual.share == pytest.approx(partition_of(energies).share, rel=1e-9)


def test_the_same_seed_gives_the_same_clusters(dense: np.ndarray) -> None:
    first, second = partition_of(dense), partition_of(dense)

    np.testing.assert_array_equal(first.inputs, second.inputs)
    np.testing.assert_array_equal(first.neurons, second.neurons)


def test_the_null_of_a_mixture_is_below_it(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    null = expertness.null(planted[0], clusters=CLUSTERS, seeds=range(3))

    assert null.mean < partition_of(planted[0]).share - 0.3
    assert 0 < null.deviation < 0.1


def test_dense_neurons_have_the_expertness_of_chance(dense: np.ndarray) -> None:
    null = expertness.null(dense, clusters=CLUSTERS, seeds=range(3))

    share = partition_of(dense).share

    assert abs(share - null.mean) < 0.05


def test_a_shuffle_keeps_the_energy_of_each_neuron(
    monkeypatch: pytest.MonkeyPatch, dense: np.ndarray
) -> None:
    shuffled = []

    def record(energies: np.ndarray, *, clusters: int, seed: int) -> expertness.Partition:
        del clusters, seed
        shuffled.append(energies)
        return expertness.Partition(0.5, np.zeros(60, int), np.zeros(40, int))

    monkeypatch.setattr(expertness, "expertness", record)

    null = expertness.null(dense, clusters=CLUSTERS, seeds=[3])

    np.testing.assert_array_equal(np.sort(shuffled[0], axis=0), np.sort(dense, axis=0))
    assert not np.array_equal(shuffled[0], dense)
    assert null == (0.5, 0.0)


def test_neurons_and_inputs_without_energy_belong_to_no_cluster(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    energies = np.insert(np.insert(planted[0], 7, 0.0, axis=1), [0, 9], 0.0, axis=0)

    partition = partition_of(energies)

    assert np.flatnonzero(partition.neurons == expertness.UNUSED).tolist() == [7]
    assert np.flatnonzero(partition.inputs == expertness.UNUSED).tolist() == [0, 10]
    assert partition.share == pytest.approx(partition_of(planted[0]).share, rel=1e-9)


def test_more_clusters_than_neurons_with_energy_are_refused(dense: np.ndarray) -> None:
    energies = dense * (np.arange(40) < 3)

    with pytest.raises(ValueError, match="clusters must be from 2 to 3, the neurons"):
        partition_of(energies)


def test_more_clusters_than_inputs_are_refused(dense: np.ndarray) -> None:
    with pytest.raises(ValueError, match="clusters must be from 2 to 5, the inputs"):
        partition_of(dense[:5], clusters=6)


def test_a_single_cluster_is_refused(dense: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"clusters must be from 2 .* got 1"):
        partition_of(dense, clusters=1)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_negative_and_infinite_energies_are_refused(dense: np.ndarray, value: float) -> None:
    dense[3, 4] = value

    with pytest.raises(ValueError, match="energies must be finite and at least 0"):
        partition_of(dense)


def test_energy_is_summed_over_tokens(rng: np.random.Generator) -> None:
    activations = rng.normal(size=(2, 3, 4))

    energy = expertness.energy(jnp.asarray(activations, jnp.float32))

    expected = [[np.sum(activations[i, :, j] ** 2) for j in range(4)] for i in range(2)]
    np.testing.assert_allclose(energy, expected, rtol=1e-6)


def test_sparsity_is_the_share_below_the_threshold() -> None:
    # Their means are 1 and 10.
    activations = jnp.array([[[0.0, -0.1], [0.2, 3.7]], [[0.0, 0.0], [39.0, -1.0]]])

    exact = expertness.sparsity(activations, threshold=0)
    near = expertness.sparsity(activations, threshold=0.11)

    np.testing.assert_array_equal(exact, [0.25, 0.5])
    np.testing.assert_array_equal(near, [0.5, 0.75])


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        expertness.sparsity(jnp.ones((1, 1, 1)), threshold=-0.1)
