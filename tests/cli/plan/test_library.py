"""NVIDIA's programs: what cuBLAS and cuDNN are called for is counted, and what cannot be read is not guessed.

The texts are as XLA prints them for a GPU, with shapes of ours; operations are counted by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dit_video.cli.plan import describe
from dit_video.cli.plan.chips import CHIPS, Chip, Wiring
from dit_video.cli.plan.costs import Cost, Efficiency, cost
from dit_video.cli.plan.hlo import parse
from dit_video.cli.plan.predict import Plan, Target

FLAT = Wiring(Chip("flat", flops=1e12, hbm=1e9, bandwidth=1e9, link=1e9, float32=2.0), ((0,),))  # round numbers


def of(*lines: str) -> Cost:
    body = "\n".join(f"  {line}" for line in lines)
    return cost(parse(f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"), FLAT, Efficiency())


def gemm(dtype: str = "bf16", target: str = "__cublas$gemm") -> Cost:
    return of(
        f"%a = {dtype}[768,2304]{{1,0}} parameter(0)",
        f"%b = {dtype}[8192,768]{{1,0}} parameter(1)",
        f"%both = ({dtype}[2304,8192]{{0,1}}, s8[4194304]{{0}}) custom-call(%a, %b), "
        f'custom_call_target="{target}", backend_config={{"operation_queue_id":"0","gemm_backend_config":'
        '{"alpha_real":1,"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},'
        '"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]},"epilogue":"DEFAULT"}}',
        f"ROOT %out = {dtype}[2304,8192]{{0,1}} get-tuple-element(%both), index=0",
    )


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul"])
def test_a_product_of_cublas(target):
    got = gemm(target=target)
    assert got.flops == 2 * 2304 * 8192 * 768
    assert got.compute == got.flops / 1e12
    assert got.bytes == 2 * (768 * 2304 + 8192 * 768 + 2304 * 8192)  # without the room that it works in
    assert got.kernel_seconds == got.unread == 0


def test_a_product_of_float32_takes_twice_as_long():
    assert gemm("f32").flops == gemm().flops
    assert gemm("f32").compute == 2 * gemm().compute
    dot = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    plain = of(
        "%a = f32[64,64]{1,0} parameter(0)", "%b = f32[64,64]{1,0} parameter(1)",
        f"ROOT %c = f32[64,64]{{1,0}} dot(%a, %b), {dot}",
    )  # fmt: skip
    assert plain.compute == 2 * plain.flops / 1e12


def attention(target: str, results: str, config: bool = True) -> Cost:
    numbers = (
        'backend_config={"operation_queue_id": "0", "cudnn_fmha_backend_config": {"algorithm": {"algo_id": "0", '
        '"tuning_knobs": {"17": "1", "24": "0"}}, "fmha_scale": 0.125, "intermediate_tensor_shape": {"element_type": '
        '"BF16", "dimensions": ["3", "8", "128", "512"], "tuple_shapes": []}, "is_flash_attention": true}}'
    )
    return of(
        "%q = bf16[3,128,8,64]{3,2,1,0} parameter(0)",
        "%k = bf16[3,512,8,64]{3,2,1,0} parameter(1)",
        "%v = bf16[3,512,8,64]{3,2,1,0} parameter(2)",
        f'ROOT %out = ({results}) custom-call(%q, %k, %v), custom_call_target="{target}", '
        "operand_layout_constraints={bf16[3,128,8,64]{3,2,1,0}, bf16[3,512,8,64]{3,2,1,0}, bf16[3,512,8,64]{3,2,1,0}}, "
        "api_version=API_VERSION_STATUS_RETURNING" + (f", {numbers}" if config else ""),
    )


def test_attention_of_cudnn():
    one = 2 * 3 * 8 * 128 * 512 * 64  # a product of queries with keys
    query, key = 3 * 128 * 8 * 64 * 2, 3 * 512 * 8 * 64 * 2
    there = attention("__cudnn$fmhaSoftmax", "bf16[3,8,128,64]{3,1,2,0}, f32[3,8,128]{2,1,0}, u8[0]{0}")
    assert there.flops == 2 * one
    assert there.bytes == 2 * query + 2 * key + 4 * 3 * 8 * 128
    assert there.kernel_seconds == there.seconds > 0
    grads = "bf16[3,8,128,64]{3,1,2,0}, bf16[3,8,512,64]{3,1,2,0}, bf16[3,8,512,64]{3,1,2,0}, u8[1585280]{0}"
    assert attention("__cudnn$fmhaScaleBiasSoftmaxBackward", grads).flops == 5 * one


def convolution(target: str, *shapes: str) -> Cost:
    left, right, out = (f"bf16[{shape}]{{3,2,1,0}}" for shape in shapes)
    return of(
        f"%a = {left} parameter(0)", f"%b = {right} parameter(1)",
        f"ROOT %c = ({out}, u8[0]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, "
        f'dim_labels=b01f_o01i->b01f, custom_call_target="{target}"',
    )  # fmt: skip


def test_convolutions_of_cudnn():
    video, kernel, out = "4,32,32,64", "32,3,3,64", "4,32,32,32"
    products = 2 * 4 * 32 * 32 * 32 * 9 * 64
    assert convolution("__cudnn$convForward", video, kernel, out).flops == products
    assert convolution("__cudnn$convBackwardInput", out, kernel, video).flops == products
    assert convolution("__cudnn$convBackwardFilter", video, out, kernel).flops == products


UNKNOWN = (
    "%a = bf16[64,64]{1,0} parameter(0)",
    'ROOT %c = bf16[64,64]{1,0} custom-call(%a), custom_call_target="__cudnn$tomorrow"',
)


def test_what_is_not_known_is_said():
    assert of(*UNKNOWN).unread == 1
    assert of(*UNKNOWN[:1], UNKNOWN[1].replace("__cudnn$tomorrow", "__cub$sort")).unread == 0  # bytes are all of it
    assert attention("__cudnn$fmhaSoftmax", "bf16[3,8,128,64]{3,1,2,0}, u8[0]{0}", config=False).unread == 1


def test_no_time_is_predicted_of_a_program_that_is_not_read():
    target = Target("NVIDIA H200", 1, [None], CHIPS["H200"], 1e12)
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace()]))
    text = "ENTRY %main (p: f32[]) -> f32[] {\n  " + "\n  ".join(UNKNOWN) + "\n}\n"
    unread = target.costs(SimpleNamespace(text=text), mesh)
    read = Cost(seconds=2.0)
    plan = Plan(target, "", {"total": 1}, True, read + unread, {"gradients": read, "update": unread}, 1e9, 8)
    report = plan.report()
    assert plan.mfu is report["mfu"] is report["step_seconds"] is report["by"] is None
    assert report["parts"] == {"gradients": 2.0, "update": None}
    text = describe(plan, report | {"experiment": "x", "mesh": (1, 1, 1, 1)}, False)
    assert "time: not predicted" in text and "in update" in text and "MFU" not in text
    known = replace(plan, cost=read, parts={"gradients": read})
    assert known.report()["step_seconds"] == 2.0 and known.mfu > 0


def test_a_small_model_has_operations_too():
    plan = Plan(Target("cpu", 1, [None], None, 1.0), "", {"total": 1}, True, Cost(), model_flops=2.5e9, tokens=8)
    text = describe(plan, plan.report() | {"experiment": "x", "mesh": (1, 1, 1, 1)}, False)
    assert "8 tokens, 0.0025 TFLOP of the model" in text
