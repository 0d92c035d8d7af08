"""Figures of critical neurons: their number, and the images that they respond to.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Appendix C.2, Figures 7 to 15.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from remem_jax.report.figures import drawing, image_grid

_DECADES = 100.0  # Ratio of largest to smallest value above which an axis is logarithmic.


@drawing.styled
def criticality(
    blocks: Sequence[Mapping[str, Any]], *, name: str, title: str
) -> drawing.Drawing | None:
    """Draws the criticality of all neurons of some blocks, in descending order.

    Args:
        blocks: For each block, "model" (title), "layer" (from 0 at the bottom) and "values", the
            criticality of each neuron. Values that are not finite have no rank.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure; None if there is no finite value.
    """
    ranked = [_ranked(np.asarray(block["values"], np.float64)) for block in blocks]
    finite_values = [value for values in ranked for _, value in values if math.isfinite(value)]
    if not finite_values:
        return None
    figure = drawing.new()
    axes = figure.axes[0]
    axes.set(xlabel="Neuron by rank (1 = most critical)", ylabel="Criticality")
    if max(map(len, ranked)) > _DECADES:
        axes.set_xscale("log")
    axes.grid(visible=True, which="major")
    positive = [value for value in finite_values if value > 0]
    is_log = min(finite_values) >= 0 and bool(positive) and max(positive) > _DECADES * min(positive)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # The default formatters write powers as formulas, which the settings disable.
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    styles = drawing.styles(str(index) for index in range(len(blocks)))
    labels = drawing.labels(
        f"{drawing.label(block['model'], 28)}, block {block['layer'] + 1}" for block in blocks
    )
    for values, style, label in zip(ranked, styles.values(), labels, strict=True):
        finite = [value for _, value in values if math.isfinite(value)]
        axes.plot(
            np.arange(1, len(finite) + 1),
            [value if value > 0 or not is_log else math.nan for value in finite],
            color=style.color,
            linestyle=style.dashes,
            marker=style.marker,
            markevery=(0.02, 0.15),  # Fractions of the axes' diagonal.
            markersize=5,
            label=label,
        )
    drawing.legend(figure)
    caption = (
        "The criticality of a neuron is the largest relative change of the head's input when the "
        "neuron is set to zero. Block 1 is the closest to the input."
    )
    if is_log and len(positive) < len(finite_values):
        caption += f" Zeros, which this scale cannot show: {len(finite_values) - len(positive)}."
    total = sum(len(values) for values in ranked)
    return drawing.Drawing(
        name,
        title,
        caption + drawing.left_out(total - len(finite_values), "Neurons"),
        figure,
        ("model", "block", "rank", "neuron", "criticality"),
        [
            [
                block["model"],
                block["layer"] + 1,
                rank if math.isfinite(value) else None,
                neuron,
                value,
            ]
            for block, values in zip(blocks, ranked, strict=True)
            for rank, (neuron, value) in enumerate(values, start=1)
        ],
    )


def _ranked(values: Float[np.ndarray, " neuron"]) -> list[tuple[int, float]]:
    """Returns neurons with their values in descending order; ties by index, NaN last."""
    pairs = [(neuron, float(value)) for neuron, value in enumerate(values)]
    return sorted(pairs, key=lambda p: -p[1] if math.isfinite(p[1]) else math.inf)


@drawing.styled
def grid(
    neurons: Sequence[Mapping[str, Any]], *, name: str, title: str, caption: str = ""
) -> drawing.Drawing | None:
    """Draws a row for each neuron: inputs that maximise it, and images that it influences most.

    Args:
        neurons: For each neuron, "neuron" (index), "criticality", "visualisations" (pictures, one
            for each seed; may be empty) and "images", the most influenced first, each "image" (a
            picture), "class" and "influence". Pictures are height x width x 3, from 0 to 1.
        name: Stem of the file names.
        title: Title of the figure.
        caption: Text to put before the explanation of the figure.

    Returns:
        The figure; None if there is no neuron with a picture.
    """
    drawn = [n for n in neurons if len(n["visualisations"]) or n["images"]]
    if not drawn:
        return None
    seeds = max(len(neuron["visualisations"]) for neuron in drawn)
    rows = [
        image_grid.Row(
            f"neuron {neuron['neuron']}\n{neuron['criticality']:.3g}",
            [
                *(image_grid.Tile(picture) for picture in neuron["visualisations"]),
                *[None] * (seeds - len(neuron["visualisations"])),
                *(image_grid.Tile(image["image"], image["class"]) for image in neuron["images"]),
            ],
        )
        for neuron in drawn
    ]
    heads = {0: "maximising inputs"} if seeds else {}
    if any(neuron["images"] for neuron in drawn):
        heads[seeds] = "most influenced images"
    sentences = [
        caption,
        "Left: index and criticality of the neuron.",
        "Middle: inputs optimised to maximise its activation, one per seed." if seeds else "",
        "Right: the images whose features it changes most, in descending order, with their "
        "classes.",
    ]
    return drawing.Drawing(
        name,
        title,
        " ".join(sentence for sentence in sentences if sentence),
        image_grid.figure(rows, heads, gap_before=seeds),
        ("neuron", "criticality", "place", "class", "influence"),
        [
            [neuron["neuron"], neuron["criticality"], rank, image["class"], image["influence"]]
            for neuron in drawn
            for rank, image in enumerate(neuron["images"], start=1)
        ],
    )
