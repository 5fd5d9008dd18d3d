"""What NVIDIA's libraries do in a custom call of a compiled program: matrix products of cuBLAS, convolutions and
attention of cuDNN. XLA hands nearly all of a model's operations to them, and counts none.
"""

import re
from dataclasses import dataclass
from math import prod

from dit_video.cli.plan.hlo import Computation, Instruction, Shape

TARGET = re.compile(r'custom_call_target="([^"]+)"')
# Calls that work hard: one of them that is not read leaves the time of its program unknown.
HARD = ("__cublas", "__cudnn", "__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu")


@dataclass(frozen=True)
class Call:
    """Of one call. `dtype` is that of the factors; `kernel` says that several products are fused."""

    flops: float
    bytes: float
    dtype: str
    kernel: bool = False


def read_call(here: Computation, instruction: Instruction) -> Call | None:
    """None for a custom call that is no library's. Raises `ValueError` for one whose work cannot be told."""
    found = TARGET.search(instruction.rest)
    target = found[1] if found else ""
    if not target.startswith(HARD):
        return None
    results = [*instruction.shapes]
    if len(results) > 1 and results[-1].dtype in ("s8", "u8"):
        results.pop()  # room to work in
    try:
        operands = [here.operand(instruction, i).shapes[0] for i in range(len(instruction.operands))]
        if target.startswith(("__cublas$gemm", "__cublas$lt$matmul")):
            flops = _gemm(instruction.rest, operands, results)
        elif target.startswith("__cudnn$conv"):
            flops = _convolution(target, instruction.rest, operands, results)
        elif target.startswith("__cudnn$fmha"):
            flops = _attention(target, instruction.rest, operands)
        else:
            raise ValueError(f"{target} is not known")
        moved = sum(shape.memory for shape in (*operands, *results))
        return Call(flops, moved, operands[0].dtype, target.startswith("__cudnn$fmha"))
    except (IndexError, TypeError) as error:  # the text is not of the form that is known
        raise ValueError(f"{target}: {error}") from None


def _numbers(text: str, key: str) -> list[int]:
    """`"key":["1","2"]` of a backend's config. Raises `TypeError` where there is none."""
    return [int(n) for n in re.findall(r"\d+", re.search(rf'"{key}"\s*:\s*\[([^\]]*)\]', text)[1])]


def _gemm(text: str, operands: list[Shape], results: list[Shape]) -> float:
    terms = prod(operands[0].dims[axis] for axis in _numbers(text, "lhs_contracting_dimensions"))
    return 2.0 * results[0].count * terms


def _convolution(target: str, text: str, operands: list[Shape], results: list[Shape]) -> float:
    """Its two gradients take the products that it takes. Taps that fall off the edges are counted."""
    if "BackwardInput" in target:
        out, kernel = operands[0], operands[1]
    elif "BackwardFilter" in target:
        out, kernel = operands[1], results[0]
    else:
        out, kernel = results[0], operands[1]
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", text)[1]
    return 2.0 * out.count * prod(dim for label, dim in zip(labels, kernel.dims, strict=True) if label != "o")


def _attention(target: str, text: str, operands: list[Shape]) -> float:
    """Queries with keys and weights with values; backward the four gradients of these, and the weights once more."""
    logits = prod(_numbers(text[text.index("intermediate_tensor_shape") :], "dimensions"))
    keys, values = operands[0].dims[-1], operands[2].dims[-1]
    return 2.0 * logits * (3 * keys + 2 * values if "Backward" in target else keys + values)
