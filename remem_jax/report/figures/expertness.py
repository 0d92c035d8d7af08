"""Figure of the expertness and sparsity of each block's MLP.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Definition 5.3 and Figure 5.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from remem_jax.report.figures import drawing

_FIELDS = ("null_mean", "null_deviation", "sparsity")
_BOUND = 2.0  # Standard deviations of the null model.


@drawing.styled
def expertness(
    models: Sequence[Mapping[str, Any]],
    *,
    clusters: int,
    threshold: float,
    name: str = "expertness",
    title: str = "Expertness and sparsity of the MLPs by block",
) -> drawing.Drawing | None:
    """Draws expertness, that of the null model, and sparsity, by block.

    Args:
        models: For each model, a "title" and "layers": "layer" (from 0 at the bottom), "shares"
            (expertness for each seed of the clustering), "null_mean" and "null_deviation" (of one
            shuffle of the null model) and "sparsity"; numbers may be None.
        clusters: Number of cluster pairs, K.
        threshold: Largest activation that counts as inactive, in units of the mean.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure, without models that have no finite numbers; None if there are no others.
    """
    drawn = [model for model in models if any(map(_has_numbers, model["layers"]))]
    if not drawn:
        return None
    figure = drawing.new(rows=2, size=(5.4, 6.0))
    upper, lower = figure.axes
    upper.set_ylabel(f"Expertness (fraction, K = {clusters})")
    lower.set(xlabel="Block (1 = bottom)", ylabel="Inactive activations (fraction)")
    lower.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    marks = drawing.styles(str(index) for index in range(len(drawn)))
    labels = drawing.labels(model["title"] for model in drawn)
    for model, style, label in zip(drawn, marks.values(), labels, strict=True):
        layers = sorted(model["layers"], key=lambda layer: layer["layer"])
        _panels(upper, lower, layers, style, label)
    depth = max(layer["layer"] for model in drawn for layer in model["layers"]) + 1
    upper.set_xlim(0.5, depth + 0.5)
    for axes in (upper, lower):
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    drawing.legend(figure)
    return drawing.Drawing(
        name,
        title,
        "Top: the fraction of the activations' energy that lies within the pairs of a partition "
        "into paired clusters; marks are means over seeds of the clustering, and bars show the "
        "range. Thin dashed lines: the null model of independent neurons, with a band of "
        f"± {_BOUND:g} standard deviations of one shuffle. Bottom: the fraction of an input's "
        f"activations that are at most {threshold:g} times their mean magnitude. Block 1 is the "
        "closest to the input.",
        figure,
        ("model", "block", "seed_place", "expertness", *_FIELDS),
        [
            [model["title"], layer["layer"] + 1, index, share, *(layer[f] for f in _FIELDS)]
            for model in drawn
            for layer in model["layers"]
            for index, share in enumerate(layer["shares"] or [None])
        ],
    )


def _has_numbers(layer: Mapping[str, Any]) -> bool:
    return any(map(drawing.is_finite, (*layer["shares"], layer["sparsity"])))


def _panels(
    upper: Axes,
    lower: Axes,
    layers: Sequence[Mapping[str, Any]],
    style: drawing.Style,
    label: str,
) -> None:
    blocks = [layer["layer"] + 1 for layer in layers]
    finite = [[s for s in layer["shares"] if drawing.is_finite(s)] or [np.nan] for layer in layers]
    means = np.array([np.mean(shares) for shares in finite])
    below = means - [min(shares) for shares in finite]
    above = [max(shares) for shares in finite] - means
    look: dict[str, Any] = {"color": style.color, "marker": style.marker, "label": label}
    # Rounding may put a mean slightly outside the range of its values.
    bars = np.maximum([below, above], 0)
    upper.errorbar(blocks, means, bars, linestyle="-", capsize=2.5, **look)
    null, deviation, sparsity = (
        np.array([drawing.finite(layer[field]) for layer in layers]) for field in _FIELDS
    )
    upper.plot(blocks, null, color=style.color, linewidth=0.9, dashes=(4, 2), zorder=1.5)
    reach = _BOUND * np.nan_to_num(deviation)
    drawing.band(upper, blocks, null - reach, null + reach, style.color)
    lower.plot(blocks, sparsity, linestyle="-", **look)
