"""What a compiled program costs on a chip: products, bytes and collectives, instruction by instruction in the order in
which they run, loops as often as they run.

An instruction takes the longest of its products, its vector operations and its bytes. What runs beside others, from a
`-start` to its `-done` (or a collective that the compiler fused into products), costs only what they do not cover.
"""

import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import prod
from typing import Any

from dit_video.cli.plan.chips import Wiring, padded
from dit_video.cli.plan.hlo import Computation, Instruction, Module, groups, trip_count
from dit_video.cli.plan.kernels import Kernel, read_kernel
from dit_video.cli.plan.library import Call, read_call

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
               "collective-broadcast")  # fmt: skip
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "opt-barrier", "add-dependency", "iota", "domain"}  # fmt: skip
ARITHMETIC = {"add", "subtract", "multiply", "divide", "maximum", "minimum", "select", "compare", "exponential", "tanh",
              "rsqrt", "sqrt", "log", "power", "negate", "abs", "and", "or", "logistic", "sine", "cosine", "floor",
              "round-nearest-even", "clamp", "reduce", "exponential-minus-one", "log-plus-one", "convert"}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Seconds on one device, and what they are for. `seconds` is less than the sum of the terms, which overlap."""

    seconds: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    collectives: float = 0.0
    exposed: float = 0.0  # of the collectives: what nothing covers
    flops: float = 0.0  # of matrix products, kernels among them
    kernel_seconds: float = 0.0  # of the seconds: in kernels
    bytes: float = 0.0  # to and from the device's memory
    wire: float = 0.0  # bytes of collectives
    unread: float = 0.0  # calls whose work is not known: with one, the seconds say nothing

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass(frozen=True)
class Efficiency:
    """How much of a peak is reached where nothing else is in the way."""

    products: float = 1.0
    kernels: float = 1.0
    memory: float = 1.0


@dataclass(frozen=True)
class Work:
    """What an instruction does by itself."""

    flops: float = 0.0
    padded: float = 0.0  # with sides filled up to those of the matrix units, in time of bfloat16
    vector: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def cost(module: Module, wiring: Wiring, efficiency: Efficiency) -> Cost:
    """Of the whole program on one device."""
    return _Reader(module, wiring, efficiency).computation(module.entry.name)


class _Reader:
    def __init__(self, module: Module, wiring: Wiring, efficiency: Efficiency):
        self.module, self.wiring, self.chip, self.efficiency = module, wiring, wiring.chip, efficiency
        self.flops, self.vector, self.bandwidth = (
            peak / self.chip.devices for peak in (self.chip.flops, self.chip.vector, self.chip.bandwidth)
        )
        self.computation = lru_cache(maxsize=None)(self._computation)

    def _computation(self, name: str) -> Cost:
        """A computation whose instructions run one after the other."""
        here = self.module.computations[name]
        ends, begun, total = self._ends(here), set(), Cost()
        pending: dict[str, list[Any]] = {}  # what runs beside: is it a collective, and the seconds that are left
        for position, instruction in enumerate(here.instructions):
            own = self._instruction(here, instruction)
            total += own
            # The links are idle meanwhile, the memory as far as the instruction itself leaves it.
            idle = {True: own.seconds - own.exposed, False: max(own.seconds - own.memory, 0.0)}
            for key, (wired, left) in [*pending.items()]:
                spent = min(left, idle[wired])
                idle[wired] -= spent
                pending[key][1] = left - spent
            for key, wired, seconds, size in self._begins(here, instruction):
                if key not in begun:
                    begun.add(key)
                    pending[key] = [wired, seconds]
                    total += Cost(collectives=seconds, wire=size) if wired else Cost(memory=seconds, bytes=size)
            for key in [key for key in pending if ends[key] <= position]:
                wired, left = pending.pop(key)
                total += Cost(seconds=left, exposed=left if wired else 0.0)
        return total

    def _begins(self, here: Computation, instruction: Instruction) -> list[tuple[str, bool, float, float]]:
        """(key, is it a collective, seconds, bytes) of what begins, or goes on, in an instruction. The parts of a
        collective that the compiler laid over several fusions share a channel."""
        found = []
        for computation, collective in self._collectives(here, instruction):
            spread = computation is not here and self._spread(instruction)
            key = f"channel {collective.channel}" if spread else instruction.name
            found.append((key, True, *self._collective(computation, collective)))
        if not found and instruction.opcode.endswith("-start"):
            size = moved(instruction)
            found = [(instruction.name, False, size / self.bandwidth, size)]
        return found

    def _spread(self, fusion: Instruction) -> bool:
        """Whether a fusion has a part of a collective beside its own work."""
        inner = [self.module.computations[name] for name in fusion.called("calls")]
        return any(c.name.startswith("async_collective") or any("AsyncCollective" in i.rest for i in c.instructions)
                   for c in inner)  # fmt: skip

    def _ends(self, here: Computation) -> dict[str, int]:
        """The position by which each has ended: that of its `-done`, or the last that has a part of it."""
        ends = {}
        for position, instruction in enumerate(here.instructions):
            begun = instruction
            while begun.opcode.endswith(("-done", "-update")) and begun.operands:
                begun = here.operand(begun, 0)
            for key, *_ in self._begins(here, begun):
                ends[key] = position
        return ends

    def _collectives(self, here: Computation, instruction: Instruction) -> list[tuple[Computation, Instruction]]:
        """The instruction, if it is one, or those in what it fuses or runs beside."""
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            return [(here, instruction)]
        if instruction.opcode not in ("fusion", "async-start"):
            return []
        inner = [self.module.computations[name] for name in instruction.called("calls")]
        return [found for c in inner for i in c.instructions for found in self._collectives(c, i)]

    def _collective(self, here: Computation, instruction: Instruction) -> tuple[float, float]:
        """Seconds and bytes. A fusion that keeps a part of a sum is what a reduce-scatter became."""
        kind = instruction.opcode.removesuffix("-start")
        group = groups(instruction, len(self.wiring.places))
        if here.name.startswith("all-reduce-scatter"):
            kind, size = "reduce-scatter", instruction.size
        elif kind == "reduce-scatter":
            size = sum(here.operand(instruction, i).size for i in range(len(instruction.operands)))
        elif instruction.opcode.endswith("-start") and len(instruction.shapes) > 1:
            size = max(shape.bytes for shape in instruction.shapes)
        else:
            size = instruction.size
        return self.wiring.seconds(kind, size, group), size

    def _instruction(self, here: Computation, instruction: Instruction) -> Cost:
        """What it takes by itself, loops and branches with what they run."""
        opcode = instruction.opcode
        if opcode == "while":
            return self.computation(instruction.called("body")[0]) * trip_count(instruction, self.module)
        if opcode == "conditional":
            names = instruction.called("branch_computations", "true_computation", "false_computation")
            return max((self.computation(name) for name in names), key=lambda cost: cost.seconds)
        if opcode == "call":
            return self.computation(instruction.called("to_apply")[0])
        if opcode in FREE or opcode.endswith(("-start", "-done", "-update")) or opcode in COLLECTIVES:
            return Cost()
        if opcode == "custom-call":
            if "tpu_custom_call" in instruction.rest:
                return self._kernel(read_kernel(instruction.rest, self.chip.unit))
            try:
                call = read_call(here, instruction)
            except ValueError:
                return Cost(unread=1.0)
            if call is not None:
                return self._library(call)
        work = self._work(here, instruction)
        products = work.padded / (self.flops * self.efficiency.products)
        compute = max(products, work.vector / self.vector)
        memory = work.bytes / (self.bandwidth * self.efficiency.memory)
        return Cost(max(compute, memory), compute, memory, flops=work.flops, bytes=work.bytes)

    def _kernel(self, kernel: Kernel) -> Cost:
        # Within a tile each product waits for the softmax of another's result: they take turns.
        share = 1.0 if kernel.shared else 1 / self.chip.sharing
        compute = (kernel.padded / self.flops + kernel.vector / self.vector) / (share * self.efficiency.kernels)
        memory = kernel.bytes / (self.bandwidth * self.efficiency.memory)
        seconds = max(compute, memory)
        return Cost(seconds, compute, memory, flops=kernel.flops, kernel_seconds=seconds, bytes=kernel.bytes)

    def _library(self, call: Call) -> Cost:
        efficiency = self.efficiency.kernels if call.kernel else self.efficiency.products
        compute = call.flops * self._slower(call.dtype) / (self.flops * efficiency)
        memory = call.bytes / (self.bandwidth * self.efficiency.memory)
        seconds = max(compute, memory)
        return Cost(
            seconds, compute, memory, flops=call.flops, kernel_seconds=seconds * call.kernel, bytes=call.bytes
        )  # fmt: skip

    def _slower(self, dtype: str) -> float:
        """How much longer than bfloat16's a product of such factors takes."""
        return self.chip.float32 if dtype == "f32" else 1.0

    def _work(self, here: Computation, instruction: Instruction) -> Work:
        """Products and vector operations, also of what is fused; bytes at its border."""
        return self._inside(here, instruction) + Work(bytes=self._bytes(here, instruction))

    def _inside(self, here: Computation, instruction: Instruction) -> Work:
        opcode = instruction.opcode
        if opcode == "fusion":
            inner = self.module.computations[instruction.called("calls")[0]]
            return sum((self._inside(inner, i) for i in inner.instructions), Work())
        if opcode in ("convolution", "dot"):
            count, contracted, side = product(here, instruction)
            flops = 2.0 * count * contracted
            full = padded(contracted, self.chip.unit) * padded(side, self.chip.unit) / (contracted * side)
            return Work(flops, flops * full * self._slower(here.operand(instruction, 0).shapes[0].dtype))
        if opcode in ARITHMETIC:
            of = here.operand(instruction, 0) if opcode == "reduce" else instruction
            return Work(vector=float(max(shape.count for shape in of.shapes)))
        return Work()

    def _bytes(self, here: Computation, instruction: Instruction) -> float:
        if instruction.opcode == "fusion":
            inner = self.module.computations[instruction.called("calls")[0]]
            read = sum(
                self._read(inner, parameter) for i, parameter in enumerate(inner.parameters)
                if any(shape.space == 0 for shape in here.operand(instruction, i).shapes)
            )  # fmt: skip
            return read + self._written(inner, inner.root, instruction)
        first = {name: i for i, name in reversed([*enumerate(instruction.operands)])}  # one may be there twice
        read = sum(self._used(here, instruction, i, here.by_name[name]) for name, i in first.items())
        return read + self._written(here, instruction, instruction)

    def _read(self, here: Computation, value: Instruction) -> float:
        """Bytes of a value that its users read: of one that is only cut into, the cuts."""
        uses = [self._used(here, user, i, value) for user, i in here.users.get(value.name, [])]
        whole = sum(shape.memory for shape in value.shapes)
        return min(whole, sum(uses)) if uses else 0.0

    def _used(self, here: Computation, user: Instruction, position: int, value: Instruction) -> float:
        if user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
            return user.size
        if user.opcode in ("dynamic-update-slice", "scatter") and position == 0:
            return 0.0  # written into
        if user.opcode == "bitcast":
            return self._read(here, user) if here.users.get(user.name) else sum(s.memory for s in value.shapes)
        if user.opcode == "fusion":
            inner = self.module.computations[user.called("calls")[0]]
            return self._read(inner, inner.parameters[position])
        return sum(shape.memory for shape in value.shapes)

    def _written(self, here: Computation, value: Instruction, outer: Instruction) -> float:
        """Bytes that a value costs to write: of one that is changed in place, the change."""
        if value.opcode == "tuple":
            parts = zip(value.operands, outer.shapes, strict=False)
            return sum(self._written(here, here.by_name[name], _only(outer, shape)) for name, shape in parts)
        if value.opcode == "bitcast" and value.operands:
            return self._written(here, here.operand(value, 0), outer)
        if not any(shape.space == 0 for shape in outer.shapes) or value.opcode == "parameter":
            return 0.0
        if value.opcode == "dynamic-update-slice":
            return here.operand(value, 1).size
        if value.opcode == "fusion":
            inner = self.module.computations[value.called("calls")[0]]
            return self._written(inner, inner.root, outer)
        return sum(shape.memory for shape in outer.shapes)


def _only(instruction: Instruction, shape: Any) -> Instruction:
    return replace(instruction, shapes=(shape,))


def moved(start: Instruction) -> float:
    """Bytes that an asynchronous copy or cut moves to or from the device's memory."""
    arrays = [shape for shape in start.shapes if shape.bytes > 64]
    if not arrays:
        return 0.0
    size = min(shape.bytes for shape in arrays)
    return size * max(1, sum(shape.space == 0 for shape in arrays[:2]))


def product(here: Computation, instruction: Instruction) -> tuple[float, float, float]:
    """(numbers in the result, terms of each on average, side of the operand that stays in the matrix unit)."""
    left, right = (here.operand(instruction, i).shapes[0].dims for i in (0, 1))
    out = instruction.shapes[0].dims
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        terms = prod(left[int(i)] for i in axes[1].split(",") if i) if axes else 1
        return prod(out), terms, out[-1] if out else 1
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = dict(re.findall(r"(\w+)=([\w.\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or ["", ""])[1]))
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    terms, spatial = float(right[of_right.index("i")]), [c for c in of_right if c.isdigit()]
    for n, digit in enumerate(sorted(spatial)):
        terms *= _taps(
            left[of_left.index(digit)], right[of_right.index(digit)], out[of_out.index(digit)],
            *(_numbers(window.get(key), n, default) for key, default in
              (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))),
        )  # fmt: skip
    side = max(out[of_out.index("f")], out[of_out.index("b")])
    return prod(out), terms, min(out[of_out.index("f")], side)


def _numbers(text: str | None, n: int, default: str) -> int:
    """The n-th of `1x2x3`; of `1_2x0_0` the first of the pair."""
    return int((text or "x".join([default] * (n + 1))).split("x")[n].partition("_")[0])


def _taps(size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, kernel_dilate: int) -> float:
    """Terms of a convolution along one axis that meet a number of the input, for each number of the output."""
    if kernel == 1:
        return 1.0
    met = 0
    for k in range(kernel):
        for o in range(out):
            at = o * stride + k * kernel_dilate - pad
            met += 0 <= at <= (size - 1) * dilate and at % dilate == 0
    return met / out
