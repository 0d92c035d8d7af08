"""How flat the loss of a model is around its parameters: the loss at the worst point near them.

The worst point at a distance is found to first order, as in SAM: along the gradient of the loss
over all images. Source: Foret et al. 2021, https://arxiv.org/abs/2010.01412, Eq. 2.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from remem_jax import losses
from remem_jax.records import Apply, Params

# Model inputs, classes, and the examples that count.
Examples = tuple[
    Float[Array, "batch height width channel"], Int[Array, " batch"], Float[Array, " batch"]
]


class Flatness(NamedTuple):
    """The loss at the parameters of a model, and at the worst point at a distance from them.

    Attributes:
        loss: Mean cross-entropy at the parameters, in nats.
        worst: The same at the point at distance `radius` along its gradient.
        gradient_norm: L2 norm of the gradient over all parameters.
    """

    loss: float
    worst: float
    gradient_norm: float


def measure(
    apply: Apply,
    params: Params,
    batches: Callable[[], Iterable[Examples]],
    *,
    radius: float,
) -> Flatness:
    """Measures the flatness of a model in evaluation mode.

    Args:
        apply: The model, given {"params": ...}.
        params: All of its parameters, over which the L2 distance is taken.
        batches: Returns the examples in batches; called twice.
        radius: Distance from the parameters, above 0.
    """

    @jax.jit
    def total(params: Params, examples: Examples) -> Float[Array, ""]:
        images, labels, counted = examples
        logits = apply({"params": params}, images)
        each = jax.vmap(lambda row, label: losses.cross_entropy(row[None], label[None]))
        return jnp.sum(each(logits, labels) * counted)

    differentiated = jax.jit(jax.value_and_grad(total))
    loss, count, gradient = 0.0, 0.0, jax.tree.map(jnp.zeros_like, params)
    for examples in batches():
        value, grads = differentiated(params, examples)
        loss, count = loss + float(value), count + float(jnp.sum(examples[2]))
        gradient = jax.tree.map(jnp.add, gradient, grads)
    norm = optax.tree.norm(gradient)
    scale = radius / (norm + 1e-12)  # As in `sam`.
    worst = jax.tree.map(lambda p, g: p + scale * g, params, gradient)
    at_worst = sum(float(total(worst, examples)) for examples in batches())
    return Flatness(loss / count, at_worst / count, float(norm) / count)
