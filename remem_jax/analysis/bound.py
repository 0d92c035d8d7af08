"""Bounds the mutual information of a mixture of experts (ReMem, Proposition 5.4).

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Section 5.2.
"""

import math

from remem_jax.checks import above, at_least


def information_bits(*, experts: int, active_neurons: float, bits: float) -> float:
    """Returns an upper bound on the mutual information of an MLP's input and output.

    The MLP is a mixture of experts. The index of the expert carries at most log2(experts) bits, and
    each active neuron at most `bits`. A dense MLP is a single expert with all neurons active.

    The paper's example is the MLP of a ViT-B, with 3072 neurons in single precision. Its other
    numbers are missing in the text that we have. With 100 experts and 1 % of the neurons active in
    each, at most this many of the 1,204,224 bits of a 224 x 224 image remain:

        >>> round(information_bits(experts=100, active_neurons=0.01 * 3072, bits=32), 1)
        989.7

    Args:
        experts: Number of experts. The paper uses the number of classes.
        active_neurons: Number of active neurons per expert; may be a mean.
        bits: Bits per activation; 32 in single precision.

    Returns:
        The bound in bits.

    Raises:
        ValueError: If `experts` < 1, `active_neurons` < 0 or `bits` <= 0.

    Source: Proposition 5.4, Eq. 6: I(MLP(h); x) <= log2(experts) + active_neurons * bits.
    """
    at_least("experts", experts, 1)
    at_least("active_neurons", active_neurons, 0)
    above("bits", bits, 0)
    return math.log2(experts) + active_neurons * bits
