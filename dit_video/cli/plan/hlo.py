"""A compiled program as its text says it: computations, instructions, shapes. Only what costs are read from."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """One array. `space` 0 is the device's memory; others are nearer (TPU: vector memory) or the host's (5)."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def count(self) -> int:
        return prod(self.dims)

    @property
    def space(self) -> int:
        match = re.search(r"S\((\d+)\)", self.layout)
        return int(match[1]) if match else 0

    @property
    def bytes(self) -> float:
        """As it lies in memory: the minor dimensions fill whole tiles."""
        dims = list(self.dims)
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if tile and dims:
            minor = [int(i) for i in order.split(",")]
            for side, dim in zip(reversed(tile[1].split(",")), minor, strict=False):
                dims[dim] = -(-dims[dim] // int(side)) * int(side)
        digits = re.sub(r"\D.*", "", self.dtype.lstrip("sufc"))
        return prod(dims) * BITS.get(self.dtype, int(digits or 32)) / 8

    @property
    def memory(self) -> float:
        """Bytes in the device's memory."""
        return self.bytes if self.space == 0 else 0.0


@dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[Shape, ...]  # several for a tuple
    opcode: str
    operands: tuple[str, ...]
    rest: str  # all that follows the operands
    text: str  # inside the parentheses: the number of a parameter, the value of a constant
    root: bool = False

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under these keys: calls, body, condition, branch_computations, to_apply."""
        found = []
        for key in keys:
            match = re.search(rf"\b{key}=(?:{{([^}}]*)}}|%?([\w.\-]+))", self.rest)
            if match:
                found += [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]
        return found

    @cached_property
    def channel(self) -> str | None:
        match = re.search(r"\bchannel_id=(\d+)", self.rest)
        return match and match[1]

    @property
    def size(self) -> float:
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Computation:
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @cached_property
    def parameters(self) -> list[Instruction]:
        return sorted((i for i in self.instructions if i.opcode == "parameter"), key=lambda i: int(i.text))

    @cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Who uses a value, and as which operand."""
        out: dict[str, list[tuple[Instruction, int]]] = {}
        for instruction in self.instructions:
            for position, name in enumerate(instruction.operands):
                out.setdefault(name, []).append((instruction, position))
        return out

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    def operand(self, instruction: Instruction, position: int) -> Instruction:
        return self.by_name[instruction.operands[position]]


@dataclass
class Module:
    computations: dict[str, Computation]
    entry: Computation


def shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), layout) for dtype, dims, layout in ARRAY.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


_NAMED = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")


def parse(text: str) -> Module:
    """The text of `compiled.as_text()`."""
    computations, current, entry, lines = {}, None, None, []
    for line in text.splitlines():
        head = None if line.startswith((" ", "}")) else _HEAD.match(line)
        if head:
            current = computations[head[2]] = Computation(head[2])
            entry = current if head[1] else entry
        elif current is not None and _NAMED.match(line):
            lines.append((current, [line]))
        elif lines and line != "}" and current is lines[-1][0]:
            lines[-1][1].append(line)  # notes on a kernel go over several lines
        elif line == "}":
            current = None
    for computation, parts in lines:
        whole = "".join(parts)
        computation.instructions.append(_instruction(whole, _NAMED.match(whole)))
    return Module(computations, entry or list(computations.values())[-1])


def _instruction(line: str, found: re.Match[str]) -> Instruction:
    at = found.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    opens = line.index("(", end)
    closes = _closing(line, opens)
    inside = line[opens + 1 : closes]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    opcode = line[end:opens].strip()
    return Instruction(found[2], shapes(line[at:end]), opcode, operands, line[closes + 1 :], inside, bool(found[1]))


def trip_count(loop: Instruction, module: Module) -> int:
    """How often a while loop runs: as the compiler noted it, else from its condition, a counter from zero below a
    constant."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if noted:
        return int(noted[1])
    inside = module.computations[loop.called("condition")[0]]
    values = [int(i.text) for i in _deep(inside, module) if i.opcode == "constant" and re.fullmatch(r"\d+", i.text)]
    return max([v for v in values if v > 0], default=1)


def _deep(computation: Computation, module: Module) -> list[Instruction]:
    """Its instructions and those of the fusions in it."""
    out = []
    for instruction in computation.instructions:
        out.append(instruction)
        for name in instruction.called("calls"):
            out += _deep(module.computations[name], module)
    return out


def groups(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """The first group of devices that take part in a collective together, as positions in the mesh."""
    rest = instruction.rest
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest):
        sent = [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
        return next((pair for pair in sent if pair[0] != pair[1]), (0,))  # the others keep what they have
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return tuple(int(i) for i in listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        sizes = [int(i) for i in iota[3].split(",")]
        return tuple(
            _iota(sizes, [int(i) for i in iota[4].split(",")] if iota[4] else [*range(len(sizes))], int(iota[2]))
        )
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", rest
    )
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        own = re.findall(r"'([^']+)'", mesh[4])
        names = list(axes)
        order = [names.index(n) for n in names if n not in own] + [names.index(n) for n in own]
        places = _iota(list(axes.values()), order, prod(axes[n] for n in own))
        if mesh[2] is None:
            return tuple(places)
        sizes = [int(i) for i in mesh[2].split(",")]
        turned = [int(i) for i in mesh[3].split(",")] if mesh[3] else [*range(len(sizes))]
        ids = _iota(sizes, turned, prod(sizes))
        return tuple(ids[place] for place in places)
    return tuple(range(devices))


def _iota(sizes: list[int], order: list[int], count: int) -> list[int]:
    """The first `count` of 0, 1, 2, ... laid out in `sizes` and read with its axes in `order`."""
    strides = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
    turned, out = [(sizes[i], strides[i]) for i in order], []
    for number in range(count):
        position = 0
        for size, stride in reversed(turned):
            number, digit = divmod(number, size)
            position += digit * stride
        out.append(position)
    return out
