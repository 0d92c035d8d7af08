"""The gradient of a batch that is taken group by group, part by part, device by device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from remem_jax import optim
from remem_jax.mesh import AXIS
from remem_jax.records import Labels, Metrics, Params
from remem_jax.train.state import State


class Division(NamedTuple):
    """How a batch is divided where its gradient is taken.

    Attributes:
        group: Examples that share one ascent of SAM, its m: neighbours in the batch. 0 is the
            whole batch; the batch size over the number of devices is the share of each.
        accumulate: In how many parts a device takes its share through the model, one after
            another, so that memory holds the activations of one. Groups go one after another
            too, and where they are smaller than such a part, they are the parts.
        mesh: Devices that share the batch, divided by its first axis over the axis `AXIS`; None
            for one.
        looped: Whether SAM's passes are one loop: compiled once, and memory holds the activations
            of one pass, where XLA would make room for those of both. On a CPU, convolutions in
            a loop are slow.
    """

    group: int = 0
    accumulate: int = 1
    mesh: jax.sharding.Mesh | None = None
    looped: bool = False

    @property
    def devices(self) -> int:
        """How many devices share the batch."""
        return 1 if self.mesh is None else self.mesh.shape[AXIS]

    def counts(self, examples: int) -> tuple[int, int]:
        """Groups in a batch, and parts that a device takes of a group, one after another.

        Raises:
            ValueError: If so many examples do not divide so.
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
        parts = self.accumulate
        if groups > 1:
            parts = -(-self.accumulate * self.devices // groups)
        in_all = parts * max(groups, self.devices)
        if examples % in_all:
            raise ValueError(
                f"A batch of {examples} examples does not divide into {in_all} parts, of "
                f"{max(groups, self.devices)} {'groups' if groups > 1 else 'devices'}."
            )
        return groups, parts


WHOLE = Division()


class Examples(NamedTuple):
    """What a gradient is taken of: some examples, and one dropout key for each of their parts."""

    images: Float[Array, "batch height width channel"]
    labels: Labels
    keys: Shaped[PRNGKeyArray, " part"]


# (what is logged, batch statistics), of the clean pass
Found = tuple[Metrics, Params]
# (parameters, examples) -> (gradient of the mean loss, what was found on the way)
Gradient = Callable[[Params, Examples], tuple[Params, Found]]


def divided(
    clean: Gradient,
    ascent: optax.GradientTransformationExtraArgs | None,
    division: Division,
    examples: int,
) -> tuple[Gradient, int]:
    """The gradient of a batch of so many examples, divided, and the number of its parts."""
    if ascent is None:
        division = division._replace(group=0)
    groups, parts = division.counts(examples)
    # A loop over parts holds the activations of one; gradients pass outside of it.
    looped = division.looped and parts == 1
    if groups > 1:
        of_group = _ascending(_accumulated(clean, parts), ascent, looped=looped)
        of_share = _accumulated(of_group, groups // division.devices)
        return _averaged(of_share, division.mesh), groups * parts
    if parts > 1:
        of_batch = _averaged(_accumulated(clean, parts), division.mesh)
        return _ascending(of_batch, ascent), division.devices * parts
    # XLA divides what is whole among the devices.
    return _ascending(clean, ascent, looped=looped), 1


def _ascending(
    gradient: Gradient,
    ascent: optax.GradientTransformationExtraArgs | None,
    *,
    looped: bool = False,
) -> Gradient:
    """The gradient as `ascent` changes it; what else is found is that of the clean pass.

    Args:
        gradient: Before the ascent.
        ascent: `optim.sam`, which takes one more gradient; None changes nothing.
        looped: Whether the two gradients are turns of a loop.
    """
    if ascent is None:
        return gradient

    def changed(
        params: Params, clean: tuple[Params, Found], grad_fn: Callable[[Params], Params]
    ) -> tuple[Params, Found]:
        grads, (metrics, statistics) = clean
        grads, climbed = ascent.update(grads, ascent.init(params), params, grad_fn=grad_fn)
        norm = optim.ascent_norm(climbed)
        return grads, (metrics if norm is None else {**metrics, "ascent_norm": norm}, statistics)

    def ascended(params: Params, examples: Examples) -> tuple[Params, Found]:
        clean = gradient(params, examples)
        return changed(params, clean, lambda worst: gradient(worst, examples)[0])

    def ascended_in_loop(params: Params, examples: Examples) -> tuple[Params, Found]:
        def turn(carry: tuple[Params, Params], _: None) -> tuple[Any, Any]:
            at = gradient(carry[0], examples)
            # In place of the second gradient, the point at which it is to be taken.
            worst, found = changed(params, at, lambda worst: worst)
            return (worst, at[0]), found

        first = (params, jax.tree.map(jnp.zeros_like, params))
        (_, grads), found = jax.lax.scan(turn, first, length=2)
        return grads, jax.tree.map(lambda value: value[0], found)

    return ascended_in_loop if looped else ascended


def _accumulated(gradient: Gradient, parts: int) -> Gradient:
    """The mean gradient of equal parts of the examples, taken one after another."""
    if parts == 1:
        return gradient

    def accumulated(params: Params, examples: Examples) -> tuple[Params, Found]:
        def add(total: Params, part: Examples) -> tuple[Params, Found]:
            grads, found = gradient(params, part)
            return jax.tree.map(jnp.add, total, grads), found

        pieces = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), examples)
        total, found = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), pieces)
        mean = functools.partial(jnp.mean, axis=0)
        return jax.tree.map(lambda g: g / parts, total), jax.tree.map(mean, found)

    return accumulated


def _averaged(gradient: Gradient, mesh: jax.sharding.Mesh | None) -> Gradient:
    """The mean over all devices of the gradient that each takes of its share of the examples."""
    if mesh is None:
        return gradient
    everywhere, divided = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)

    # By hand, because the perturbed parameters differ between devices: XLA, given them on an axis
    # of their own, turns convolutions into grouped ones and gathers the images on each device.
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(everywhere, divided),
        out_specs=everywhere,
        check_vma=False,  # Else a gradient by what all devices share would be summed at once.
    )
    def averaged(params: Params, examples: Examples) -> tuple[Params, Found]:
        return jax.lax.pmean(gradient(params, examples), AXIS)

    return averaged


def require_divisible(
    state: State,
    ascent: optax.GradientTransformationExtraArgs | None,
    division: Division,
    parts: int,
) -> None:
    """Raises where the division cannot be what is asked for."""
    if division.group and ascent is None and optim.ascent_norm(state.opt_state) is not None:
        raise ValueError(
            f"The optimiser climbs with the whole batch, not with groups of {division.group}: "
            "give optim.sam as `ascent`."
        )
    if parts > 1 and jax.tree.leaves(state.statistics):
        raise ValueError(
            f"Batch statistics ({', '.join(state.statistics)}) are of a whole batch, not of "
            f"{parts} parts of it."
        )
