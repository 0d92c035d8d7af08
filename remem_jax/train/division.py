"""The gradient of a batch, divided into SAM's groups, microbatches and devices."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from remem_jax import sam
from remem_jax.mesh import AXIS
from remem_jax.records import Labels, Metrics, Params
from remem_jax.train.state import State


class Division(NamedTuple):
    """How the computation of a batch's gradient is divided.

    Attributes:
        group: SAM's m, the number of (neighbouring) examples that share one ascent. 0 is the whole
            batch; the batch size over the number of devices gives each device its own ascent.
        accumulate: Number of microbatches of each device's share. They are computed one after
            another, so that memory holds the activations of one. Groups are computed one after
            another, too; groups smaller than a microbatch become the microbatches.
        mesh: Devices that share the batch, which is sharded by its first axis over the mesh axis
            `AXIS`; None for one device.
        looped: Whether SAM's two passes are one loop; see `sam.at_worst_point`.
    """

    group: int = 0
    accumulate: int = 1
    mesh: jax.sharding.Mesh | None = None
    looped: bool = False

    @property
    def devices(self) -> int:
        """Number of devices that share the batch."""
        return 1 if self.mesh is None else self.mesh.shape[AXIS]

    def counts(self, examples: int) -> tuple[int, int]:
        """Returns the number of groups in a batch, and of microbatches of a group on a device.

        Raises:
            ValueError: If the batch cannot be divided like this.
        """
        groups, left = divmod(examples, self.group or examples)
        if left:
            raise ValueError(
                f"A batch of {examples} examples does not divide into groups of {self.group}, "
                "which share an ascent."
            )
        if groups > 1 and groups % self.devices:
            raise ValueError(
                f"{groups} groups of {self.group} examples do not divide among {self.devices} "
                "devices."
            )
        microbatches = self.accumulate
        if groups > 1:
            microbatches = -(-self.accumulate * self.devices // groups)
        total = microbatches * max(groups, self.devices)
        if examples % total:
            raise ValueError(
                f"A batch of {examples} examples does not divide into {total} microbatches, of "
                f"{max(groups, self.devices)} {'groups' if groups > 1 else 'devices'}."
            )
        return groups, microbatches


WHOLE = Division()


class Examples(NamedTuple):
    """Examples of a gradient, with a dropout key for each of their microbatches."""

    images: Float[Array, "batch height width channel"]
    labels: Labels
    keys: Shaped[PRNGKeyArray, " microbatch"]


# (metrics, batch statistics) of the clean pass
Auxiliary = tuple[Metrics, Params]
# (parameters, examples) -> (gradient of the mean loss, metrics and statistics); see `sam.Gradient`
Gradient = Callable[[Params, Examples], tuple[Params, Auxiliary]]


def divided(
    clean: Gradient,
    ascent: optax.GradientTransformationExtraArgs | None,
    division: Division,
    examples: int,
) -> tuple[Gradient, int]:
    """Divides the computation of a gradient.

    Args:
        clean: The gradient of the mean loss of some examples.
        ascent: `sam.sam(rho)`, or None.
        division: How the batch is divided.
        examples: Global batch size.

    Returns:
        The gradient of a whole batch, and its number of microbatches.
    """
    if ascent is None:
        division = division._replace(group=0)
    groups, microbatches = division.counts(examples)
    # A loop over microbatches holds the activations of one, and gradients are averaged over
    # devices outside of it.
    looped = division.looped and microbatches == 1
    if groups > 1:
        of_group = sam.at_worst_point(_accumulated(clean, microbatches), ascent, looped=looped)
        of_share = _accumulated(of_group, groups // division.devices)
        return _averaged(of_share, division.mesh), groups * microbatches
    if microbatches > 1:
        of_batch = _averaged(_accumulated(clean, microbatches), division.mesh)
        worst = sam.at_worst_point(of_batch, ascent, looped=False)
        return worst, division.devices * microbatches
    # XLA divides the whole batch among the devices.
    return sam.at_worst_point(clean, ascent, looped=looped), 1


def _accumulated(gradient: Gradient, microbatches: int) -> Gradient:
    """Returns the mean gradient of equal microbatches, computed one after another."""
    if microbatches == 1:
        return gradient

    def accumulated(params: Params, examples: Examples) -> tuple[Params, Auxiliary]:
        def add(total: Params, microbatch: Examples) -> tuple[Params, Auxiliary]:
            grads, auxiliary = gradient(params, microbatch)
            return jax.tree.map(jnp.add, total, grads), auxiliary

        divided = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), examples)
        total, auxiliary = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), divided)
        mean = functools.partial(jnp.mean, axis=0)
        return jax.tree.map(lambda g: g / microbatches, total), jax.tree.map(mean, auxiliary)

    return accumulated


def _averaged(gradient: Gradient, mesh: jax.sharding.Mesh | None) -> Gradient:
    """Returns the mean gradient over all devices, each of which takes its share of the examples."""
    if mesh is None:
        return gradient
    replicated, sharded = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)

    # With shard_map, because the perturbed parameters differ between devices. If they had an axis
    # for the device, XLA would use grouped convolutions and gather the images on each device.
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(replicated, sharded),
        out_specs=replicated,
        check_vma=False,  # Otherwise JAX would sum gradients of replicated parameters at once.
    )
    def averaged(params: Params, examples: Examples) -> tuple[Params, Auxiliary]:
        return jax.lax.pmean(gradient(params, examples), AXIS)

    return averaged


def require_whole_statistics(state: State, microbatches: int) -> None:
    """Raises ValueError if batch statistics would be those of microbatches."""
    if microbatches > 1 and jax.tree.leaves(state.statistics):
        raise ValueError(
            f"Batch statistics ({', '.join(state.statistics)}) need the whole batch, which is "
            f"divided into {microbatches} microbatches."
        )
