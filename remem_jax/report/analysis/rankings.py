"""Sentences on the ranking of models by information, and on its reliability."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import information, tables

Setting = Mapping[str, Any]


def label(setting: Setting) -> str:
    """Describes a setting of the decoders, short enough for an axis."""
    corners = "" if setting["align_corners"] else ", half-pixel"  # Aligned as in InfoPro.
    return f"rate {setting['learning_rate']:g}, beta2 {setting['second_beta']:g}{corners}"


def ranking(setting: Setting) -> tuple[str, ...]:
    """Returns the models' titles, ordered by information, most first."""
    return tuple(model["title"] for model in sorted(setting["models"], key=lambda m: m["excess"]))


def sentences(settings: Sequence[Setting]) -> list[str]:
    """Summarises the measurements.

    Args:
        settings: Settings of the decoders; each has all "models", measured with the same seeds.
    """
    if len(settings[0]["models"]) < 2:
        return [_plateau(settings)]
    return [
        _stability(settings),
        _certainty(settings[0]),
        _plateau(settings),
        *_second_estimate(settings[0]),
    ]


def _stability(settings: Sequence[Setting]) -> str:
    by_order: dict[tuple[str, ...], list[str]] = {}
    for setting in settings:
        by_order.setdefault(ranking(setting), []).append(label(setting))
    first = ranking(settings[0])
    order = " before ".join(first)
    if len(settings) == 1:
        return f"The ranking by information is {order}, measured with one setting of the decoders."
    if len(by_order) == 1:
        return (
            f"The ranking by information is {order} with all {len(settings)} settings of the "
            "decoders that were tried, so it does not depend on them."
        )
    others = "; ".join(
        f"{' before '.join(other)} with {', '.join(labels)}"
        for other, labels in by_order.items()
        if other != first
    )
    return (
        f"The ranking by information depends on the decoders: it is {order} with "
        f"{len(by_order[first])} of {len(settings)} settings, but {others}."
    )


def _certainty(setting: Setting) -> str:
    """Compares the gaps between neighbours in the ranking with the variation between seeds."""
    models = sorted(setting["models"], key=lambda m: m["excess"])
    gaps_of_neighbours = []
    for first, second in itertools.pairwise(models):
        pairs = zip(first["seeds"], second["seeds"], strict=True)
        gaps = [higher["excess"] - lower["excess"] for lower, higher in pairs]
        ahead = sum(gap > 0 for gap in gaps)
        gap = tables.decimals(second["excess"] - first["excess"])
        gaps_of_neighbours.append(
            f"{first['title']} is ahead of {second['title']} by {gap} nats per sub-pixel, for "
            f"{ahead} of {len(gaps)} seeds of the decoder"
        )
    return f"{'; '.join(gaps_of_neighbours)}."


def _plateau(settings: Sequence[Setting]) -> str:
    """Compares the decoders' remaining change with the differences between models."""
    unfinished = []
    for setting in settings:
        models = sorted(setting["models"], key=lambda m: m["excess"])
        gaps = [b["excess"] - a["excess"] for a, b in itertools.pairwise(models)]
        changes = [model["slope"] * model["last"] for model in models]
        # A change that all decoders share does not affect the ranking.
        if not gaps or max(changes) - min(changes) > min(gaps) / 2:
            unfinished.append(label(setting))
    converged = f"{len(settings) - len(unfinished)} of {len(settings)}"
    if len(settings[0]["models"]) < 2:
        model = settings[0]["models"][0]
        change = tables.decimals(model["slope"] * model["last"])
        return f"Extrapolated over as many evaluations again, the excess would change by {change}."
    tail = f" Exceptions: {'; '.join(unfinished)}." if unfinished else ""
    return (
        f"With {converged} settings, the decoders have converged well enough: extrapolating the "
        "last half of the evaluations over as many again would change the differences between "
        f"models by less than half of the smallest difference.{tail}"
    )


def _second_estimate(setting: Setting) -> list[str]:
    models = setting["models"]
    if any(model["info_nce"] is None for model in models):
        return []
    order = sorted(models, key=lambda m: -m["info_nce"]["bound"])
    bounds = ", ".join(
        f"{model['title']} {model['info_nce']['bound']:.2f}{_deviation(model['info_nce'])}"
        for model in order
    )
    return [
        f"InfoNCE, with noise of {models[0]['info_nce']['noise']:g} standard deviations of each "
        f"feature and batches of {models[0]['info_nce']['batch']}, {_verdict(setting, order)}: "
        f"{bounds} nats."
    ]


def _verdict(setting: Setting, order: Sequence[Mapping[str, Any]]) -> str:
    """Returns whether the second estimate agrees with the ranking, if seeds do not blur it."""
    bounds = [model["info_nce"] for model in order]
    close = [
        first["bound"] - second["bound"]
        <= (first["deviation"] or 0.0) + (second["deviation"] or 0.0)
        for first, second in itertools.pairwise(bounds)
    ]
    if any(close) or min(model["bound"] for model in bounds) <= 0:
        return "does not separate all models"
    if tuple(model["title"] for model in order) == ranking(setting):
        return "agrees with this ranking"
    return "does not agree with this ranking"


def _deviation(info_nce: Mapping[str, Any]) -> str:
    return "" if info_nce["deviation"] is None else f" ± {info_nce['deviation']:.2f}"


def table(settings: Sequence[Setting]) -> tables.Table:
    """Builds the table of all measurements."""
    return tables.Table(
        "Information of the models, on validation",
        (
            "Decoders",
            "Model",
            "Reconstruction loss",
            "Above its lower bound",
            "±",
            "Remaining change",
            "InfoNCE, nats",
        ),
        tuple(
            (
                label(setting),
                model["title"],
                tables.decimals(model["loss"]),
                tables.decimals(model["excess"]),
                tables.decimals(model["deviation"]),
                tables.decimals(model["slope"] * model["last"]),
                tables.decimals((model["info_nce"] or {}).get("bound"), 2),
            )
            for setting in settings
            for model in setting["models"]
        ),
        note=information.NOTE,
    )
