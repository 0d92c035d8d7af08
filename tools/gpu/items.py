"""The items to measure, in the order of importance, with their time limits."""

from typing import Any

from tools.benchmarks import facts, rows
from tools.gpu import worker
from tools.gpu.budget import Item

# Shares of the time; see `Budget`. Time that is left goes to items that did not fit before.
SHARES = {"numerics": 0.33, "speed": 0.4, "table10": 0.27}
DEVICE = "device"  # Every run measures it again, and ends if it fails.
SEEDS = (0, 1, 2)  # Seeds of the mini version of Table 10.
ATTENTION = (8, 197, 12, 768)  # Batch, tokens, heads and features of a ViT-B/16 at 224 pixels.
# Item -> methods of its runs; the comparison that the paper claims comes first.
TABLE10 = {"table10": ("finetune", "remem"), "table10_parts": ("sam", "reweight")}
_ROWS = ("step", "sam", "kd", "forward", "lockstep")  # The rows that are measured first.
_TINY_ROWS = ("kd", "forward", "lockstep", "plan_microbatches")  # One row of each kind.
# Type -> programs whose results are compared with the CPU's.
_PROGRAMS = ("gradient", "sam_step", "kd_step")
PROGRAMS = {"float32": _PROGRAMS, "bfloat16": _PROGRAMS}
TINY_PROGRAMS = {"float32": _PROGRAMS, "bfloat16": ("gradient",)}


def make(manifest: dict[str, Any], *, tiny: bool) -> list[Item]:
    """Returns all items for a packed folder."""
    weights, size = manifest["weights"], manifest["image_size"]
    shape = (2, 17, 2, 16) if tiny else ATTENTION
    items = [_item(DEVICE, "numerics", "tools.gpu.items:identify", 60, 1)._replace(required=True)]
    items += [
        _item(
            f"numerics_{dtype}", "numerics", "tools.gpu.numerics:compare", 110, 20,
            dtype=dtype, weights=weights,
        )
        for dtype in PROGRAMS
    ]  # fmt: skip
    items.append(
        _item("attention", "numerics", "tools.gpu.attention:compare", 45, 15, shape=list(shape))
    )
    chosen = _TINY_ROWS if tiny else (*_ROWS, *(row for row in rows.GPU if row not in _ROWS))
    items += [_row(row) for row in chosen]
    items += [
        _item(
            name, "table10", "tools.gpu.table10:measure", 600, 90,
            weights=weights, image_size=size, methods=list(methods),
            seeds=list(SEEDS[:1] if tiny else SEEDS),
        )
        for name, methods in TABLE10.items()
    ][: 1 if tiny else None]  # fmt: skip
    return items


def identify(context: worker.Context, report: worker.Report, seconds: float) -> worker.Found:
    """Returns the devices that JAX finds.

    Raises:
        RuntimeError: If a GPU should be measured, and JAX finds none.
    """
    del report, seconds
    devices = facts.devices()
    if devices["backend"] != "gpu" and context.device == "gpu":
        raise RuntimeError(
            "JAX finds no GPU: install '.[cuda]', or set --device=cpu to try the tool"
        )
    return devices


def _row(row: str) -> Item:
    if row == "lockstep":
        return _item(row, "speed", "tools.gpu.speed:students", 150, 60)
    return _item(row, "speed", "tools.gpu.speed:measure", 140, 40, row=row)


def _item(name: str, section: str, call: str, limit: float, least: float, **arguments: Any) -> Item:
    return Item(name, section, call, arguments, limit, least)
