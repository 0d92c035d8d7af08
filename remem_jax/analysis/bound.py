"""How much the output of a mixture of experts can say of its input (ReMem, Proposition 5.4).

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Section 5.2.
"""

import math

from remem_jax.checks import above, at_least


def information_bits(*, experts: int, active_neurons: float, bits: float) -> float:
    """Largest mutual information of an input and the output of an MLP that is a mixture.

    The index of the expert says at most log2(experts) bits, and each neuron that is active in it
    no more than its own. A dense MLP is one expert, all of whose neurons are active.

    The paper's example is the MLP of a ViT-B, of 3072 neurons, in single precision; the text that
    we have lost its other numbers. With 100 experts, and 1 % of the neurons active in each, of
    the 1,204,224 bits of an image of 224 x 224 pixels there remain at most

        >>> round(information_bits(experts=100, active_neurons=0.01 * 3072, bits=32), 1)
        989.7

    Args:
        experts: Number of experts; the paper takes that of the classes.
        active_neurons: In each expert; a mean may be a fraction.
        bits: Of one activation: 32 in single precision.

    Returns:
        The bound in bits.

    Raises:
        ValueError: If there is no expert, a negative number of active neurons, or no bit.

    Source: Proposition 5.4, Eq. 6: I(MLP(h); x) <= log2(experts) + active_neurons * bits.
    """
    at_least("experts", experts, 1)
    at_least("active_neurons", active_neurons, 0)
    above("bits", bits, 0)
    return math.log2(experts) + active_neurons * bits
