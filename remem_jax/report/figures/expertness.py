"""The figure of how far each block's MLP is a mixture of experts, and how sparse it is.

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
    """Expertness beside that of the null model, and sparsity, by block.

    Args:
        models: Each a "title" and "layers": "layer" (from 0 at the bottom), "shares" (expertness
            by each seed of the clustering), "null_mean" and "null_deviation" (of one shuffle of
            the null model) and "sparsity"; numbers may be None.
        clusters: Pairs of clusters, K.
        threshold: Of an activation that counts as off, in units of the mean.
        name: Stem of the files' names.
        title: What the figure shows.

    Returns:
        The figure; None if no model has a layer with numbers. Models without are left out.
    """
    shown = [model for model in models if any(map(_has_numbers, model["layers"]))]
    if not shown:
        return None
    figure = drawing.new(rows=2, size=(5.4, 6.0))
    upper, lower = figure.axes
    upper.set_ylabel(f"Expertness (share, K = {clusters})")
    lower.set(xlabel="Block (1 = bottom)", ylabel="Activations that are off (share)")
    lower.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    marks = drawing.styles(str(place) for place in range(len(shown)))
    labels = drawing.labels(model["title"] for model in shown)
    for model, style, label in zip(shown, marks.values(), labels, strict=True):
        layers = sorted(model["layers"], key=lambda layer: layer["layer"])
        _panels(upper, lower, layers, style, label)
    depth = max(layer["layer"] for model in shown for layer in model["layers"]) + 1
    upper.set_xlim(0.5, depth + 0.5)
    for axes in (upper, lower):
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    drawing.legend(figure)
    return drawing.Drawing(
        name,
        title,
        "Above: the share of the activations' energy that a partition into paired clusters keeps "
        "inside the pairs; marks are means over the seeds of the clustering, bars reach from the "
        "least to the greatest. Thin dashed lines: the null model, neurons that know nothing of "
        f"each other, with a band of ± {_BOUND:g} standard deviations of one shuffle. Below: the "
        f"share of an input's activations that are at most {threshold:g} times their mean size. "
        "Block 1 is the bottom; the last is next to the head.",
        figure,
        ("model", "block", "seed_place", "expertness", *_FIELDS),
        [
            [model["title"], layer["layer"] + 1, place, share, *(layer[f] for f in _FIELDS)]
            for model in shown
            for layer in model["layers"]
            for place, share in enumerate(layer["shares"] or [None])
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
    # Rounding may put a mean a little outside of its values.
    bars = np.maximum([below, above], 0)
    upper.errorbar(blocks, means, bars, linestyle="-", capsize=2.5, **look)
    null, deviation, sparsity = (
        np.array([drawing.finite(layer[field]) for layer in layers]) for field in _FIELDS
    )
    upper.plot(blocks, null, color=style.color, linewidth=0.9, dashes=(4, 2), zorder=1.5)
    reach = _BOUND * np.nan_to_num(deviation)
    drawing.band(upper, blocks, null - reach, null + reach, style.color)
    lower.plot(blocks, sparsity, linestyle="-", **look)
