"""Figures of the decoders that measure information: reconstructions, learning curves, sensitivity.

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Appendix A.5.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from remem_jax.report.figures import drawing, image_grid

_MAP = "cividis"
_EXCESS = "Excess, nats per sub-pixel"
_COLUMNS = 4  # Maps in a row.
_SIDE = 1.7  # Side of a map in inches.
_SPREAD = 0.7  # Vertical range of a setting's marks, as a fraction of the distance to the next.


@drawing.styled
def pictures(rows: Sequence[Mapping[str, Any]], *, name: str, title: str) -> drawing.Drawing | None:
    """Draws images beside their reconstructions from each model's features.

    Args:
        rows: For each image, "image", "class" and "models": "title", "reconstruction", "loss" and
            "excess" (nats per sub-pixel). Pictures are height x width x 3, from 0 to 1.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure; None if there are no rows.
    """
    if not rows:
        return None
    titles = list(dict.fromkeys(model["title"] for row in rows for model in row["models"]))
    tiles = []
    for row in rows:
        by_title = {model["title"]: model for model in row["models"]}
        models = [
            _tile(by_title[model_title]) if model_title in by_title else None
            for model_title in titles
        ]
        tiles.append(image_grid.Row("", [image_grid.Tile(row["image"], row["class"]), *models]))
    names = ("title", "loss", "excess")
    return drawing.Drawing(
        name,
        title,
        "Left: images that no decoder was trained on, with their classes. Right: reconstructions "
        "from each model's features. Below each: the loss of the image and, in brackets, its "
        "excess over the lower bound, in nats per sub-pixel; a lower excess means that the "
        "features keep more.",
        image_grid.figure(tiles, {0: "image", **dict(enumerate(titles, start=1))}, gap_before=1),
        ("place", "class", "model", "loss", "excess"),
        [
            [number, row["class"], *fields]
            for number, row in enumerate(rows, start=1)
            for fields in drawing.fields(row["models"], names)
        ],
    )


def _tile(model: Mapping[str, Any]) -> image_grid.Tile:
    text = f"{drawing.finite(model['loss']):.3f} ({drawing.finite(model['excess']):+.3f})"
    return image_grid.Tile(model["reconstruction"], text)


@drawing.styled
def maps(models: Sequence[Mapping[str, Any]], *, name: str, title: str) -> drawing.Drawing | None:
    """Draws the reconstruction loss of each pixel, with one colour scale for all models.

    Args:
        models: For each model, a "title" and "pixels": the excess of each pixel, height x width,
            averaged over images and channels.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure; None if there are no models or nothing is finite.
    """
    pixels: list[Float[np.ndarray, "height width"]] = [
        np.asarray(model["pixels"], np.float64) for model in models
    ]
    finite = [values[np.isfinite(values)] for values in pixels]
    if not sum(len(values) for values in finite):
        return None
    all_values = np.concatenate(finite)
    low, high = float(all_values.min()), float(all_values.max())
    columns = min(_COLUMNS, len(models))
    lines = -(-len(models) // columns)
    size = (max(columns * _SIDE + 1.2, 3.6), lines * (_SIDE + 0.35) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    mappable = None
    for axes, model, values in zip(panels, models, pixels, strict=False):
        mappable = axes.imshow(values, cmap=_MAP, vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(drawing.label(model["title"], 22), fontsize=drawing.SMALL)
    if mappable is not None:
        bar = figure.colorbar(mappable, ax=list(panels), aspect=25)
        bar.set_label(_EXCESS, fontsize=drawing.SMALL)
        bar.ax.tick_params(labelsize=drawing.SMALL)
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
    return drawing.Drawing(
        name,
        title,
        "The reconstruction loss of each pixel above its lower bound, averaged over held-out "
        "images and channels; one scale for all models. Darker: the features keep more.",
        figure,
        ("model", "row", "column", "excess"),
        [
            [model["title"], row, column, float(value)]
            for model, values in zip(models, pixels, strict=True)
            for (row, column), value in np.ndenumerate(values)
        ],
    )


@drawing.styled
def curves(models: Sequence[Mapping[str, Any]], *, name: str, title: str) -> drawing.Drawing | None:
    """Draws the learning curves of the decoders, which show whether they converged.

    Args:
        models: For each model, a "title" and "seeds": "seed" and "curve", pairs of a step and the
            loss on held-out images.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure; None if there is no finite loss.
    """
    rows = list(_steps(models))
    missing = sum(not drawing.is_finite(row[-1]) for row in rows)
    if missing == len(rows):
        return None
    figure = drawing.new()
    axes = figure.axes[0]
    axes.set(xlabel="Update of the decoder", ylabel="Held-out loss, nats per sub-pixel")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True))
    styles = drawing.styles(str(index) for index in range(len(models)))
    labels = drawing.labels(model["title"] for model in models)
    for model, style, label in zip(models, styles.values(), labels, strict=True):
        for seed in model["seeds"]:
            axes.plot(
                [step for step, _ in seed["curve"]],
                [drawing.finite(loss) for _, loss in seed["curve"]],
                color=style.color,
                linestyle=style.dashes,
                linewidth=1.2,
                marker=style.marker,
                markevery=max(1, len(seed["curve"]) // 6),
                markersize=5,
                label=label,
            )
    drawing.legend(figure)
    return drawing.Drawing(
        name,
        title,
        "The loss on images that the decoder was not trained on; one line per seed of the "
        "decoder." + drawing.left_out(missing, "Losses"),
        figure,
        ("model", "seed", "step", "loss"),
        rows,
    )


def _steps(models: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for model in models:
        for seed in model["seeds"]:
            for step, loss in seed["curve"]:
                yield [model["title"], seed["seed"], step, loss]


@drawing.styled
def sensitivity(
    settings: Sequence[Mapping[str, Any]], *, name: str, title: str
) -> drawing.Drawing | None:
    """Draws the models' information for each setting of the decoders, to compare the rankings.

    Args:
        settings: For each setting, a "label" and "models": "title", "excess" (nats per sub-pixel)
            and its "deviation" over seeds of the decoder, or None.
        name: Stem of the file names.
        title: Title of the figure.

    Returns:
        The figure; None if there is no finite excess.
    """
    titles = list(dict.fromkeys(model["title"] for row in settings for model in row["models"]))
    marks = [(index, model) for index, row in enumerate(settings) for model in row["models"]]
    finite_marks = [(index, model) for index, model in marks if drawing.is_finite(model["excess"])]
    if not finite_marks:
        return None
    figure = drawing.new(size=(5.8, max(2.2, 1.2 + 0.45 * len(settings))))
    axes = figure.axes[0]
    axes.set_xlabel(f"{_EXCESS}\nleft is better")
    axes.set_yticks(range(len(settings)), [drawing.label(row["label"], 36) for row in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)  # The first setting is at the top.
    axes.xaxis.set_major_locator(MaxNLocator(5))
    series = zip(titles, drawing.styles(titles).values(), drawing.labels(titles), strict=True)
    for index, (model_title, style, label) in enumerate(series):
        of_model = [(row, model) for row, model in finite_marks if model["title"] == model_title]
        shift = _SPREAD * ((index + 0.5) / len(titles) - 0.5)
        axes.errorbar(
            [model["excess"] for _, model in of_model],
            [row + shift for row, _ in of_model],
            xerr=[drawing.finite(model["deviation"]) for _, model in of_model],
            color=style.color,
            marker=style.marker,
            linestyle="none",
            capsize=2.5,
            label=label,
        )
    drawing.legend(figure)
    return drawing.Drawing(
        name,
        title,
        "The reconstruction loss above its lower bound: one row per setting of the decoder, one "
        "mark per model; bars: one sample standard deviation over seeds of the decoder. The "
        "ranking is reliable if the order of the models is the same in all rows."
        + drawing.left_out(len(marks) - len(finite_marks), "Values"),
        figure,
        ("setting", "model", "excess", "deviation"),
        [
            [settings[index]["label"], model["title"], model["excess"], model["deviation"]]
            for index, model in marks
        ],
    )
