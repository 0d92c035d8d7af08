"""Finds the collective operations of a compiled program in the text of its HLO.

Every operation counts as often as it runs: in the body of a loop once for each iteration, and in
each branch of a conditional once. An asynchronous operation counts where it starts.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Where these start, their result is the tuple (operand, output, ...).
_IN_AND_OUT = ("all-gather-start", "collective-permute-start")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([0-9,<= ]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%?([\w.\-]+)$")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
        dtype: HLO's name of its type.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        if self.dtype == "pred":
            return self.size
        bits = re.search(r"\d+", self.dtype)
        return -(-self.size * int(bits[0] if bits else 8) // 8)


class Collective(NamedTuple):
    """An operation by which devices exchange arrays.

    Attributes:
        kind: One of `KINDS`.
        arrays: Its whole arrays, after gathering or before scattering.
        times: How often it runs; None in a loop of unknown length.
        group: Number of devices that exchange arrays with one another; None for all.
        source: Name of the operation in the program that was compiled.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int | None
    group: int | None
    source: str

    @property
    def bytes(self) -> int:
        """Size of its arrays in bytes, for one time that it runs."""
        return sum(array.bytes for array in self.arrays)


class _Instruction(NamedTuple):
    name: str
    result: str
    opcode: str
    rest: str


_Program = Mapping[str, Sequence[_Instruction]]


def find(text: str) -> list[Collective]:
    """Returns the collectives of a program, in the order in which they are called.

    Args:
        text: A module of optimised HLO: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: If the text is not such a module.
    """
    entry, program = _parse(text)
    by_name: dict[Any, Collective] = {}
    for name, times in _times(entry, program).items():
        for instruction in program.get(name, ()):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            rest = instruction.rest
            arrays = tuple(_arrays(instruction, program[name]))
            collective = Collective(kind, arrays, times, _group(rest), _source(rest))
            key = _split_channel(rest) or (name, instruction.name)
            before = by_name.get(key, collective)
            by_name[key] = min(collective, before, key=lambda piece: piece.times or math.inf)
    return list(by_name.values())


def _split_channel(rest: str) -> str | None:
    """Returns the channel of a collective that a TPU splits into pieces, to overlap other work.

    The text shows each piece like a whole collective, also inside a loop that it overlaps.
    """
    channel = re.search(r"channel_id=(\d+)", rest)
    return channel[1] if channel and "chain_id=" in rest else None


def _parse(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Returns the name of the entry computation, and the instructions of each computation."""
    entry, program = "", {}
    current: list[_Instruction] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = program[header[2]] = []
            entry = header[2] if header[1] else entry
            continue
        named = _INSTRUCTION.match(line)
        if not named:
            continue
        end = _shape_end(line, named.end())
        opcode = _OPCODE.match(line, end)
        if opcode:
            result, rest = line[named.end() : end], line[opcode.end() :]
            current.append(_Instruction(named[1], result, opcode[1], rest))
    if not entry:
        raise ValueError("The text is not a module of HLO: it has no ENTRY.")
    return entry, program


def _shape_end(line: str, start: int) -> int:
    """Returns the end of a shape that starts at this position of the line."""
    if line[start] != "(":
        return line.find(" ", start)
    depth = 0
    for at in range(start, len(line)):
        depth += (line[at] == "(") - (line[at] == ")")
        if not depth:
            return at + 1
    return len(line)


def _times(entry: str, program: _Program) -> dict[str, int | None]:
    """Returns how often each computation runs; None if it is unknown."""
    total: dict[str, int | None] = {}

    def visit(name: str, times: int | None) -> None:
        before = total.get(name, 0)
        total[name] = None if times is None or before is None else before + times
        for instruction in program.get(name, ()):
            loop = instruction.opcode == "while"
            for attribute, called in _called(instruction.rest):
                trips = _trips(instruction, program) if loop and attribute == "body" else 1
                visit(called, None if times is None or trips is None else times * trips)

    visit(entry, 1)
    return total


def _called(rest: str) -> Iterator[tuple[str, str]]:
    for attribute, names in _CALLS.findall(rest):
        for name in names.strip("{}").split(","):
            yield attribute, name.strip().lstrip("%")


def _trips(loop: _Instruction, program: _Program) -> int | None:
    """Returns the number of iterations of a loop: XLA's trip count, or the bound in its condition.

    Loops of `lax.scan`, and of `lax.fori_loop` from 0, count from 0 in steps of 1.
    """
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
    if known:
        return int(known[1])
    condition = dict(_called(loop.rest)).get("condition", "")
    instructions = program.get(condition, ())
    constants = {
        instruction.name: int(instruction.rest.split(")")[0])
        for instruction in instructions
        if instruction.opcode == "constant" and re.match(r"-?\d+\)", instruction.rest)
    }
    compared = [instruction for instruction in instructions if instruction.opcode == "compare"]
    if len(compared) != 1 or "direction=LT" not in compared[0].rest:
        return None
    bounds = [constants[name] for name in _operands(compared[0].rest) if name in constants]
    return bounds[0] if len(bounds) == 1 else None


def _operands(rest: str) -> list[str]:
    """Returns the names of the operands, which are printed with or without their shapes."""
    inside = re.sub(r"/\*.*?\*/", "", rest[: rest.find(")")] if "[" not in rest else rest)
    operands, depth, start = [], 0, 0
    for at, letter in enumerate(inside):
        closes = letter == ")" and not depth
        if closes or (letter == "," and not depth):
            operands.append(inside[start:at].strip())
            start = at + 1
        if closes:
            break
        depth += (letter in "([{") - (letter in ")]}")
    else:
        operands.append(inside[start:].strip())
    names = [_NAME.search(operand.split(" ")[-1]) for operand in operands]
    return [name[1] for name in names if name]


def _arrays(instruction: _Instruction, among: Sequence[_Instruction]) -> Iterator[Array]:
    """Yields the whole arrays of a collective."""
    result = instruction.result
    if instruction.opcode in _IN_AND_OUT:
        result = _elements(result)[1]
    if instruction.opcode.startswith("reduce-scatter"):
        results = {other.name: other.result for other in among}
        result = " ".join(results.get(name, "") for name in _operands(instruction.rest))
    for dtype, shape in _ARRAY.findall(result):
        sizes = [int(size.strip(" <=")) for size in shape.split(",") if size.strip(" <=")]
        yield Array(dtype, tuple(sizes))


def _elements(shape: str) -> list[str]:
    """Returns the shapes of the elements of a tuple."""
    elements, depth, start = [], 0, 1
    for at, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and not depth):
            elements.append(shape[start:at])
            start = at + 1
    return elements


def _group(rest: str) -> int | None:
    """Returns the number of devices in a group."""
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    axes = re.search(r"replica_groups=(?:@)?mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if axes:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", axes[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return len(listed[1].split(",")) if listed else None


def _source(rest: str) -> str:
    named = re.search(r'op_name="([^"]*)"', rest)
    return named[1] if named else ""
