"""What a Pallas kernel does, read from the Mosaic program that the compiled one carries: its grid, the products and
vector operations of a step of it, the blocks that come and go.

XLA counts none of this. A step of the grid runs every branch that has a product in it; a branch without one (what comes
first or last along the innermost axis) runs once along that axis.
"""

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from dit_video.cli.plan.chips import padded
from dit_video.cli.plan.hlo import BITS

VECTOR = re.compile(r'"stable_mosaic\.(?:arith\.(?:add|sub|mul|div|max|min|neg|cmp|select|trunc|ext)\w*|math\.\w+|'
                    r'vector\.multi_reduction|tpu\.transpose)"')  # fmt: skip
TYPE = re.compile(r"(?:vector|memref)<((?:\d+x)+)(\w+)")


@dataclass(frozen=True)
class Kernel:
    """Of one call. `padded` are products with sides filled up to those of the matrix units, `shared` says that several
    cores may take a part each."""

    name: str
    flops: float
    padded: float
    vector: float
    bytes: float
    shared: bool


@lru_cache(maxsize=64)
def read_kernel(call: str, unit: int) -> Kernel:
    """The kernel in a custom call's text. Raises `ValueError` when there is none in it."""
    body = re.search(r'body\\?"\s*:\s*\\?"([A-Za-z0-9+/=]+)', call)
    if body is None:
        raise ValueError("a custom call of Mosaic's without its program")
    return measure(_text(base64.b64decode(body[1])), unit)


def _text(program: bytes) -> str:
    """Bytecode in words. The dialect's operations carry the names that JAX stores them under."""
    from jax._src.interpreters import mlir
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)
    with context:
        return str(ir.Module.parse(program))


def measure(text: str, unit: int) -> Kernel:
    """From a Mosaic module's text, in MLIR's generic form."""
    functions = re.split(r'(?=^  "stable_mosaic\.func\.func")', text, flags=re.MULTILINE)[1:]
    main = next(f for f in functions if "iteration_bounds" in f)
    bounds = [int(n) for n in re.search(r"iteration_bounds = array<i64: ([\d, ]+)>", main)[1].split(",")]
    steps, kinds = prod(bounds), re.search(r"dimension_semantics = \[([^\]]*)\]", main)[1].split(", ")
    flops = full = vector = 0.0
    for lines, once in _branches(main):
        times = steps / bounds[-1] if once else steps
        for line in lines:
            if "tpu.matmul" in line:
                count, side, terms = _product(line)
                flops += times * 2 * count * terms
                full += times * 2 * count * padded(side, unit) / side * padded(terms, unit)
            elif VECTOR.search(line):
                vector += times * max((_count(dims) for dims, _ in TYPE.findall(line)), default=0)
    return Kernel(
        re.search(r'sym_name = "([^"]+)"', main)[1], flops, full, vector, _traffic(main, functions, bounds),
        any("parallel" in kind and bound > 1 for kind, bound in zip(kinds, bounds, strict=True)),
    )  # fmt: skip


def _branches(main: str) -> list[tuple[list[str], bool]]:
    """Lines outside of branches, and those of every branch; with it whether it runs once along the innermost axis."""
    outside, branches, inside = [], [], None
    for line in main.splitlines():
        if line.startswith('    "stable_mosaic.scf.if"'):
            inside = []
        elif inside is not None and re.match(r"    }\)", line):
            branches.append((inside, not any("tpu.matmul" in one for one in inside)))
            inside = None
        else:
            (outside if inside is None else inside).append(line)
    return [(outside, False), *branches]


def _count(dims: str) -> int:
    return prod(int(n) for n in dims.split("x") if n)


def _product(line: str) -> tuple[int, int, int]:
    """(numbers in the result, its minor side, terms of each)."""
    types = [tuple(int(n) for n in dims.split("x") if n) for dims, _ in TYPE.findall(line)]
    (left, *_, out) = types
    axis = int(re.search(r"dot_dimension_numbers<\[(\d+)\]", line)[1])
    return prod(out), out[-1], left[axis]


def _traffic(main: str, functions: list[str], bounds: list[int]) -> float:
    """Bytes of blocks: one is fetched or written whenever its place changes as the grid is walked."""
    prefetched = int(re.search(r"scalar_prefetch = (\d+)", main)[1])
    signature = re.search(r"function_type = \((.*?)\) -> \(\)", main)[1]
    arrays = [part for part in re.split(r", (?=memref|i32)", signature) if part.startswith("memref")][prefetched:]
    total = 0.0
    for array, index in zip(arrays, re.findall(r"transform_indices = @(\w+)", main), strict=False):
        dims, dtype = TYPE.search(array).groups()
        function = next(f for f in functions if f'sym_name = "{index}"' in f)
        moves = [axis for axis in range(len(bounds)) if axis in _depends(function)]
        visits = prod(bounds[: max(moves) + 1]) if moves else 1
        total += visits * _count(dims) * _bits(dtype) / 8
    return total


def _bits(dtype: str) -> int:
    return BITS.get(dtype) or int(re.sub(r"\D", "", dtype))


def _depends(function: str) -> set[int]:
    """Axes of the grid that a block's place depends on."""
    known: dict[str, set[int]] = {}
    for line in function.splitlines():
        made = re.match(r"\s+(%\d+)(?::\d+)? = (.*)", line)
        used = re.findall(r"%[\w]+", made[2] if made else line)
        axes = set().union(*(known.get(v) or ({int(v[4:])} if v.startswith("%arg") else set()) for v in used), set())
        if made:
            known[made[1]] = axes
        elif "func.return" in line:
            return axes
    return set()
