"""Draws a confusion matrix, readable for two classes as well as for a thousand."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from scipy.cluster import hierarchy
from scipy.spatial import distance

from remem_jax.report.figures import drawing
from remem_jax.report.figures.drawing import Drawing

# Largest numbers of classes.
_COUNTED = 12  # Each cell has its number of images.
_NAMED = 30  # Rows and columns have the names of the classes.
_CELLS = 200  # Each cell is drawn; beyond that, they are smaller than a pixel.
_LETTERS = 18  # Of a class name.
_SIZE = (6.4, 5.9)  # Inches.
_SCALE = colors.PowerNorm(0.5, 0, 1)  # Shows rare errors beside correct predictions.
_CELL_COLORS = colormaps["Blues"]
_DOT_COLORS = colors.ListedColormap(colormaps["Blues"](np.linspace(0.35, 1, 256)))  # No white.

Confusion = Int[np.ndarray, "classes classes"]


@drawing.styled
def draw(confusion: Confusion, classes: Sequence[str], title: str) -> Drawing:
    """Draws a confusion matrix as shares of the true class.

    Above `_NAMED` classes, similar ones are neighbours, and names do not fit. Above `_CELLS`, there
    is a dot for each kind of error.

    Args:
        confusion: Number of images by true class (rows) and predicted class.
        classes: Names of the classes.
        title: Title of the figure.
    """
    number, images = len(classes), confusion.sum(axis=1, keepdims=True)
    order = similar_first(confusion) if number > _NAMED else np.arange(number)
    shares = (confusion / np.maximum(images, 1))[np.ix_(order, order)]
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    shown = (_dots if number > _CELLS else _cells)(axes, shares)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("Share of the true class, %")
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    _label(axes, classes)
    if number <= _COUNTED:
        _count(axes, confusion, shares)
    rows = [
        (classes[true], classes[predicted], int(confusion[true, predicted]))
        for true, predicted in np.argwhere(confusion).tolist()
    ]
    return Drawing(
        "confusion", title, _caption(number), figure, ("true", "predicted", "images"), rows
    )


def similar_first(confusion: Confusion) -> Int[np.ndarray, " classes"]:
    """Returns an order of the classes in which those that are confused with each other are close.

    It is that of the leaves of an average-linkage clustering. The similarity of two classes is the
    mean share of either that is predicted as the other.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    tree = hierarchy.linkage(distance.squareform(distances, checks=False), "average")
    return hierarchy.leaves_list(tree)


def _cells(axes: Axes, shares: np.ndarray) -> AxesImage:
    return axes.imshow(shares, cmap=_CELL_COLORS, norm=_SCALE, interpolation="nearest")


def _dots(axes: Axes, shares: np.ndarray) -> PathCollection:
    """Draws a dot for each kind of error, the most frequent on top, and a line for the diagonal."""
    errors = shares.copy()
    np.fill_diagonal(errors, 0)
    true, predicted = np.nonzero(errors)
    values = errors[true, predicted]
    top = np.argsort(values, kind="stable")
    last = len(shares) - 1
    axes.plot([0, last], [0, last], color="#d9d9d9", linewidth=1)
    axes.set_aspect("equal")
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylim(last + 0.5, -0.5)
    return axes.scatter(
        predicted[top],
        true[top],
        c=values[top],
        s=6,
        marker="s",
        linewidths=0,
        cmap=_DOT_COLORS,
        norm=_SCALE,
        rasterized=True,  # As paths, ten thousand dots would take megabytes.
    )


def _label(axes: Axes, classes: Sequence[str]) -> None:
    if len(classes) > _NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names, places = drawing.labels(classes, _LETTERS), range(len(classes))
    # Short names of few classes fit side by side.
    upright = len(classes) * max(map(len, names)) > 40
    axes.set_xticks(places, names, rotation=90 if upright else 0, fontsize=drawing.SMALL)
    axes.set_yticks(places, names, fontsize=drawing.SMALL)


def _count(axes: Axes, confusion: Confusion, shares: np.ndarray) -> None:
    """Writes the number of images into each cell that has some."""
    for true, predicted in np.argwhere(confusion):
        color = "white" if _SCALE(shares[true, predicted]) > 0.6 else "black"
        text = f"{confusion[true, predicted]:,}"
        axes.text(
            predicted, true, text, color=color, ha="center", va="center", fontsize=drawing.SMALL
        )


def _caption(classes: int) -> str:
    colour = "The colour is the share of the images of the true class, on a square-root scale."
    if classes <= _COUNTED:
        return f"{colour} Numbers are images."
    if classes <= _NAMED:
        return colour
    order = f"{colour} Classes that are confused with each other are neighbours."
    if classes <= _CELLS:
        return order
    return f"{order} Each dot is a kind of error; correct predictions are on the diagonal."
