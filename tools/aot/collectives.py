"""What devices exchange in a compiled program, read off the text of its HLO.

Every operation counts as often as it runs: those of a loop's body as often as the loop goes round,
those of each branch of a conditional once. An asynchronous one counts where it starts.
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
# The result of these is (what goes in, what comes out, ...) where they start.
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
        dtype: As HLO has it.
        shape: Of it.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes, without padding."""
        if self.dtype == "pred":
            return self.size
        bits = re.search(r"\d+", self.dtype)
        return -(-self.size * int(bits[0] if bits else 8) // 8)


class Collective(NamedTuple):
    """One operation by which devices exchange arrays.

    Attributes:
        kind: One of `KINDS`.
        arrays: What it is of, each whole: what is gathered, or before it is scattered.
        times: How often it runs; None where it is in a loop of unknown length.
        group: How many devices exchange with one another; None where all do.
        source: What it comes from in the program that was compiled.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int | None
    group: int | None
    source: str

    @property
    def bytes(self) -> int:
        """Of its arrays, each time that it runs."""
        return sum(array.bytes for array in self.arrays)


class _Instruction(NamedTuple):
    name: str
    result: str
    opcode: str
    rest: str


_Program = Mapping[str, Sequence[_Instruction]]


def find(text: str) -> list[Collective]:
    """The collectives of a program, in the order in which they are called.

    Args:
        text: Of a module of optimised HLO: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: If it is no such text.
    """
    entry, program = _parse(text)
    found: dict[Any, Collective] = {}
    for name, times in _times(entry, program).items():
        for instruction in program.get(name, ()):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            rest = instruction.rest
            arrays = tuple(_arrays(instruction, program[name]))
            one = Collective(kind, arrays, times, _group(rest), _source(rest))
            which = _piece_of(rest) or (name, instruction.name)
            before = found.get(which, one)
            found[which] = min(one, before, key=lambda own: own.times or math.inf)
    return list(found.values())


def _piece_of(rest: str) -> str | None:
    """The channel of a collective that a TPU takes in pieces, beside other work.

    Each piece stands in the text as if it were the whole, also in a loop that it goes on beside.
    """
    channel = re.search(r"channel_id=(\d+)", rest)
    return channel[1] if channel and "chain_id=" in rest else None


def _parse(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Name of the entry computation, and the instructions of each computation."""
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
        raise ValueError("This is no text of a module of HLO: it has no ENTRY.")
    return entry, program


def _shape_end(line: str, start: int) -> int:
    """Where a shape that starts there ends."""
    if line[start] != "(":
        return line.find(" ", start)
    depth = 0
    for at in range(start, len(line)):
        depth += (line[at] == "(") - (line[at] == ")")
        if not depth:
            return at + 1
    return len(line)


def _times(entry: str, program: _Program) -> dict[str, int | None]:
    """How often each computation runs that the entry calls; None where that is not known."""
    found: dict[str, int | None] = {}

    def visit(name: str, times: int | None) -> None:
        before = found.get(name, 0)
        found[name] = None if times is None or before is None else before + times
        for instruction in program.get(name, ()):
            loop = instruction.opcode == "while"
            for attribute, called in _called(instruction.rest):
                rounds = _trips(instruction, program) if loop and attribute == "body" else 1
                visit(called, None if times is None or rounds is None else times * rounds)

    visit(entry, 1)
    return found


def _called(rest: str) -> Iterator[tuple[str, str]]:
    for attribute, names in _CALLS.findall(rest):
        for name in names.strip("{}").split(","):
            yield attribute, name.strip().lstrip("%")


def _trips(loop: _Instruction, program: _Program) -> int | None:
    """How often a loop goes round: as XLA says, or up to the number that its condition has.

    A loop of `lax.scan` or of `lax.fori_loop` from 0 counts up from 0 by 1.
    """
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
    if known:
        return int(known[1])
    condition = dict(_called(loop.rest)).get("condition", "")
    instructions = program.get(condition, ())
    constants = {
        one.name: int(one.rest.split(")")[0])
        for one in instructions
        if one.opcode == "constant" and re.match(r"-?\d+\)", one.rest)
    }
    compared = [one for one in instructions if one.opcode == "compare"]
    if len(compared) != 1 or "direction=LT" not in compared[0].rest:
        return None
    bounds = [constants[name] for name in _operands(compared[0].rest) if name in constants]
    return bounds[0] if len(bounds) == 1 else None


def _operands(rest: str) -> list[str]:
    """Names of the operands, which are printed with or without their shapes."""
    inside = re.sub(r"/\*.*?\*/", "", rest[: rest.find(")")] if "[" not in rest else rest)
    found, depth, start = [], 0, 0
    for at, letter in enumerate(inside):
        closes = letter == ")" and not depth
        if closes or (letter == "," and not depth):
            found.append(inside[start:at].strip())
            start = at + 1
        if closes:
            break
        depth += (letter in "([{") - (letter in ")]}")
    else:
        found.append(inside[start:].strip())
    names = [_NAME.search(one.split(" ")[-1]) for one in found]
    return [name[1] for name in names if name]


def _arrays(instruction: _Instruction, among: Sequence[_Instruction]) -> Iterator[Array]:
    """The whole arrays of a collective."""
    result = instruction.result
    if instruction.opcode in _IN_AND_OUT:
        result = _elements(result)[1]
    if instruction.opcode.startswith("reduce-scatter"):
        results = {one.name: one.result for one in among}
        result = " ".join(results.get(name, "") for name in _operands(instruction.rest))
    for dtype, shape in _ARRAY.findall(result):
        sizes = [int(size.strip(" <=")) for size in shape.split(",") if size.strip(" <=")]
        yield Array(dtype, tuple(sizes))


def _elements(shape: str) -> list[str]:
    """The shapes that a tuple is of."""
    found, depth, start = [], 0, 1
    for at, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and not depth):
            found.append(shape[start:at])
            start = at + 1
    return found


def _group(rest: str) -> int | None:
    """How many devices are in a group."""
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
