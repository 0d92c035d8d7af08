"""Sentences on how teachers rank by their information, and on how far that can be trusted."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from remem_jax.report import information, tables

Setting = Mapping[str, Any]


def label(setting: Setting) -> str:
    """A setting of decoders in words, short enough for an axis."""
    corners = "" if setting["align_corners"] else ", half-pixel"  # Aligned as in InfoPro.
    return f"rate {setting['learning_rate']:g}, beta2 {setting['second_beta']:g}{corners}"


def ranking(setting: Setting) -> tuple[str, ...]:
    """The models' titles, that whose features keep most of the image first."""
    return tuple(one["title"] for one in sorted(setting["models"], key=lambda m: m["excess"]))


def sentences(settings: Sequence[Setting]) -> list[str]:
    """What the measurements say together.

    Args:
        settings: Of the decoders; in each all "models", measured by each of the same seeds.
    """
    if len(settings[0]["models"]) < 2:
        return [_plateau(settings)]
    return [
        _stability(settings),
        _certainty(settings[0]),
        _plateau(settings),
        *_second(settings[0]),
    ]


def _stability(settings: Sequence[Setting]) -> str:
    found: dict[tuple[str, ...], list[str]] = {}
    for setting in settings:
        found.setdefault(ranking(setting), []).append(label(setting))
    first = ranking(settings[0])
    order = " before ".join(first)
    if len(settings) == 1:
        return f"The ranking by information is {order}; it was found with one setting of decoders."
    if len(found) == 1:
        return (
            f"The ranking by information is {order} with all {len(settings)} settings of the "
            "decoders that were tried: it does not depend on them."
        )
    others = "; ".join(
        f"{' before '.join(other)} with {', '.join(some)}"
        for other, some in found.items()
        if other != first
    )
    return (
        f"The ranking by information depends on the decoders: it is {order} with "
        f"{len(found[first])} of {len(settings)} settings, but {others}."
    )


def _certainty(setting: Setting) -> str:
    """Whether what lies between neighbours of the ranking is more than what seeds change."""
    models = sorted(setting["models"], key=lambda m: m["excess"])
    parts = []
    for first, second in itertools.pairwise(models):
        pairs = zip(first["seeds"], second["seeds"], strict=True)
        gaps = [other["excess"] - one["excess"] for one, other in pairs]
        ahead = sum(gap > 0 for gap in gaps)
        gap = tables.decimals(second["excess"] - first["excess"])
        parts.append(
            f"{first['title']} is ahead of {second['title']} by {gap} nats per sub-pixel, and "
            f"with {ahead} of {len(gaps)} seeds of the decoder"
        )
    return f"{'; '.join(parts)}."


def _plateau(settings: Sequence[Setting]) -> str:
    """Whether decoders had come to their end, beside what lies between the models."""
    unfinished = []
    for setting in settings:
        models = sorted(setting["models"], key=lambda m: m["excess"])
        gaps = [b["excess"] - a["excess"] for a, b in itertools.pairwise(models)]
        changes = [one["slope"] * one["last"] for one in models]
        # What all decoders still gain alike does not change the ranking.
        if not gaps or max(changes) - min(changes) > min(gaps) / 2:
            unfinished.append(label(setting))
    of = f"{len(settings) - len(unfinished)} of {len(settings)}"
    if len(settings[0]["models"]) < 2:
        one = settings[0]["models"][0]
        change = tables.decimals(one["slope"] * one["last"])
        return f"As many evaluations again, at the slope of the last, would change it by {change}."
    tail = f" It is not so with {'; '.join(unfinished)}." if unfinished else ""
    return (
        f"With {of} settings the decoders are near enough to their end: what as many evaluations "
        "again as the last half of them would change of one model more than of another, at their "
        f"slopes, is below half of the smallest difference between models.{tail}"
    )


def _second(setting: Setting) -> list[str]:
    models = setting["models"]
    if any(one["info_nce"] is None for one in models):
        return []
    order = sorted(models, key=lambda m: -m["info_nce"]["bound"])
    bounds = ", ".join(
        f"{one['title']} {one['info_nce']['bound']:.2f}{_behind(one['info_nce'])}" for one in order
    )
    return [
        f"InfoNCE, through noise of {models[0]['info_nce']['noise']:g} deviations of each feature "
        f"and in batches of {models[0]['info_nce']['batch']}, {_verdict(setting, order)}: "
        f"{bounds} nats."
    ]


def _verdict(setting: Setting, order: Sequence[Mapping[str, Any]]) -> str:
    """What the second estimate says of the ranking; nothing where seeds change it as much."""
    found = [one["info_nce"] for one in order]
    close = [
        first["bound"] - second["bound"]
        <= (first["deviation"] or 0.0) + (second["deviation"] or 0.0)
        for first, second in itertools.pairwise(found)
    ]
    if any(close) or min(one["bound"] for one in found) <= 0:
        return "does not tell all of the models apart"
    if tuple(one["title"] for one in order) == ranking(setting):
        return "agrees with this ranking"
    return "does not agree with this ranking"


def _behind(found: Mapping[str, Any]) -> str:
    return "" if found["deviation"] is None else f" ± {found['deviation']:.2f}"


def table(settings: Sequence[Setting]) -> tables.Table:
    """All measurements."""
    return tables.Table(
        "Information of the models, on validation",
        (
            "Decoders",
            "Model",
            "Reconstruction loss",
            "Above its floor",
            "±",
            "Still to come",
            "InfoNCE, nats",
        ),
        tuple(
            (
                label(setting),
                one["title"],
                tables.decimals(one["loss"]),
                tables.decimals(one["excess"]),
                tables.decimals(one["deviation"]),
                tables.decimals(one["slope"] * one["last"]),
                tables.decimals((one["info_nce"] or {}).get("bound"), 2),
            )
            for setting in settings
            for one in setting["models"]
        ),
        note=information.NOTE,
    )
