"""Costs of small programs, counted by hand."""

import gzip
from pathlib import Path

import pytest

from dit_video.cli.plan.chips import CHIPS, Chip, Wiring, chip_of, wiring
from dit_video.cli.plan.costs import Cost, Efficiency, cost, product
from dit_video.cli.plan.hlo import parse

ROUND = Chip("round", flops=1e12, hbm=1e9, bandwidth=1e9, link=1e9, unit=128, units=1, wrap=4)  # round numbers
LINE = Wiring(ROUND, ((0, 0), (1, 0)))


def of(text: str, wiring: Wiring = LINE) -> Cost:
    return cost(parse(text), wiring, Efficiency())


MATMUL = """\
ENTRY %main (a: f32[256,128], b: f32[128,512]) -> f32[256,512] {
  %a = f32[256,128]{1,0} parameter(0)
  %b = f32[128,512]{1,0} parameter(1)
  ROOT %c = f32[256,512]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_a_product():
    got = of(MATMUL)
    assert got.flops == 2 * 256 * 128 * 512
    assert got.compute == got.flops / 1e12
    assert got.bytes == 4 * (256 * 128 + 128 * 512 + 256 * 512)
    assert got.seconds == got.memory == got.bytes / 1e9  # longer than the product


def test_a_side_shorter_than_the_unit_costs_the_unit():
    short = MATMUL.replace("128", "64")
    assert of(short).flops == of(MATMUL).flops / 2
    assert of(short).compute == of(MATMUL).compute


LOOP = """\
%fused (p0: f32[6,128,128], p1: s32[], p2: f32[128,128]) -> f32[128,128] {
  %p0 = f32[6,128,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %cut = f32[1,128,128]{2,1,0} dynamic-slice(%p0, %p1, %z, %z), dynamic_slice_sizes={1,128,128}
  %flat = f32[128,128]{1,0} bitcast(%cut)
  %p2 = f32[128,128]{1,0} parameter(2)
  ROOT %dot = f32[128,128]{1,0} dot(%p2, %flat), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (p: (s32[], f32[128,128], f32[6,128,128])) -> (s32[], f32[128,128], f32[6,128,128]) {
  %p = (s32[], f32[128,128]{1,0}, f32[6,128,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[128,128]{1,0} get-tuple-element(%p), index=1
  %w = f32[6,128,128]{2,1,0} get-tuple-element(%p), index=2
  %y = f32[128,128]{1,0} fusion(%w, %i, %x), kind=kOutput, calls=%fused
  ROOT %out = (s32[], f32[128,128]{1,0}, f32[6,128,128]{2,1,0}) tuple(%i, %y, %w)
}

%condition (q: (s32[], f32[128,128], f32[6,128,128])) -> pred[] {
  %q = (s32[], f32[128,128]{1,0}, f32[6,128,128]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(6)
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (s: (s32[], f32[128,128], f32[6,128,128])) -> (s32[], f32[128,128], f32[6,128,128]) {
  %s = (s32[], f32[128,128]{1,0}, f32[6,128,128]{2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[128,128]{1,0}, f32[6,128,128]{2,1,0}) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_costs_as_often_as_it_runs_and_reads_one_layer_at_a_time():
    got = of(LOOP)
    assert got.flops == 6 * 2 * 128**3
    assert got.bytes == 6 * (3 * 128 * 128 * 4 + 4)  # a layer, the activation, the result, the counter


UPDATE = """\
%fused (p0: f32[6,128,128], p1: f32[128,128], p2: s32[]) -> f32[6,128,128] {
  %p0 = f32[6,128,128]{2,1,0} parameter(0)
  %p1 = f32[128,128]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %z = s32[] constant(0)
  %one = f32[1,128,128]{2,1,0} bitcast(%p1)
  ROOT %put = f32[6,128,128]{2,1,0} dynamic-update-slice(%p0, %one, %p2, %z, %z)
}

ENTRY %main (a: f32[6,128,128], b: f32[128,128], i: s32[]) -> f32[6,128,128] {
  %a = f32[6,128,128]{2,1,0} parameter(0)
  %b = f32[128,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %c = f32[6,128,128]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""


def test_what_is_changed_in_place_costs_the_change():
    assert of(UPDATE).bytes == 2 * 128 * 128 * 4 + 4


GATHER = """\
ENTRY %main (a: f32[1000000], b: f32[500000]) -> f32[1000000] {
  %a = f32[1000000]{0} parameter(0)
  %b = f32[500000]{0} parameter(1)
  %g = f32[1000000]{0} all-gather(%b), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  ROOT %c = f32[1000000]{0} add(%a, %g)
}
"""
BESIDE = """\
ENTRY %main (a: f32[1000000], b: f32[500000]) -> f32[1000000] {
  %a = f32[1000000]{0} parameter(0)
  %b = f32[500000]{0} parameter(1)
  %s = (f32[500000]{0}, f32[1000000]{0}) all-gather-start(%b), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %m = f32[1000000]{0} multiply(%a, %a)
  %g = f32[1000000]{0} all-gather-done(%s)
  ROOT %c = f32[1000000]{0} add(%m, %g)
}
"""


def test_a_collective_costs_what_nothing_covers():
    alone, beside = of(GATHER), of(BESIDE)
    assert alone.collectives == beside.collectives == pytest.approx(2e-3)  # half of 4 MB comes over one link
    assert alone.exposed == pytest.approx(2e-3)
    assert beside.exposed == 0  # reading 4 MB and writing 4 take longer
    assert alone.seconds == pytest.approx(2e-3 + 12e-3)
    assert beside.seconds == pytest.approx(8e-3 + 12e-3)


def test_a_short_cover_leaves_the_rest():
    got = of(BESIDE.replace("%m = f32[1000000]{0} multiply(%a, %a)", "%m = f32[1000000]{0} bitcast(%a)"))
    assert got.exposed == pytest.approx(2e-3)


FUSED = """\
%begin (p: f32[500000]) -> f32[1000000] {
  %p = f32[500000]{0} parameter(0)
  %g0 = f32[1000000]{0:S(1)} all-gather(%p), channel_id=5, replica_groups={{0,1}}, dimensions={0}
  ROOT %s0 = f32[1000000]{0:S(1)} custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%finish (q: f32[500000]) -> f32[1000000] {
  %q = f32[500000]{0} parameter(0)
  %g1 = f32[1000000]{0:S(1)} all-gather(%q), channel_id=5, replica_groups={{0,1}}, dimensions={0}
  ROOT %s1 = f32[1000000]{0:S(1)} custom-call(%g1), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[1000000], b: f32[500000]) -> f32[1000000] {
  %a = f32[1000000]{0} parameter(0)
  %b = f32[500000]{0} parameter(1)
  %s = f32[1000000]{0:S(1)} fusion(%b), kind=kCustom, calls=%begin
  %m = f32[1000000]{0} multiply(%a, %a)
  %d = f32[1000000]{0:S(1)} fusion(%b), kind=kCustom, calls=%finish
  ROOT %c = f32[1000000]{0} add(%m, %m)
}
"""


def test_a_collective_in_two_fusions_is_one_with_what_lies_between_beside_it():
    got = of(FUSED)
    assert got.collectives == pytest.approx(2e-3)
    assert got.exposed == 0


SCATTER = """\
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[1000000]) -> f32[500000] {
  %p = f32[1000000]{0} parameter(0)
  %z = s32[] constant(0)
  %r = f32[1000000]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %c = f32[500000]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={500000}
}

ENTRY %main (a: f32[1000000]) -> f32[500000] {
  %a = f32[1000000]{0:S(1)} parameter(0)
  %one = f32[500000]{0:S(1)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %two = f32[500000]{0:S(1)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_sum_of_which_a_part_is_kept_is_half_an_all_reduce_and_a_channel_may_come_back():
    assert of(SCATTER).exposed == pytest.approx(2 * 2e-3)
    assert of(SCATTER.replace("all-reduce-scatter.1", "other")).exposed == pytest.approx(2 * 4e-3)


def test_rings_and_lines():
    ring = Wiring(ROUND, tuple((i, 0) for i in range(4)))
    line = Wiring(ROUND, tuple((i, 0) for i in range(3)))
    square = Wiring(ROUND, tuple((i, j) for i in range(4) for j in range(4)))
    assert ring.seconds("all-gather", 4e9, (0, 1, 2, 3)) == pytest.approx(3e9 / 2e9)  # both ways round
    assert line.seconds("all-gather", 3e9, (0, 1, 2)) == pytest.approx(2e9 / 1e9)
    assert square.seconds("all-gather", 16e9, tuple(range(16))) == pytest.approx(15e9 / 4e9)
    assert square.seconds("all-gather", 4e9, (0, 1)) == pytest.approx(2e9 / 1e9)  # a part of a ring is a line
    assert ring.seconds("all-reduce", 4e9, (0, 1, 2, 3)) == 2 * ring.seconds("reduce-scatter", 4e9, (0, 1, 2, 3))
    assert ring.seconds("all-to-all", 4e9, (0, 1, 2, 3)) == pytest.approx(4e9 * 4 / (4 * 2e9))
    assert ring.seconds("all-gather", 4e9, (2,)) == 0


def test_a_convolution_counts_the_taps_that_meet_the_picture():
    text = """\
ENTRY %main (x: f32[1,4,8], k: f32[3,8,16]) -> f32[1,4,16] {
  %x = f32[1,4,8]{2,1,0} parameter(0)
  %k = f32[3,8,16]{2,1,0} parameter(1)
  ROOT %y = f32[1,4,16]{2,1,0} convolution(%x, %k), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
    main = parse(text).entry
    count, terms, side = product(main, main.root)
    assert (count, side) == (64, 16)
    assert count * terms == 16 * 8 * (4 * 3 - 2)  # two of twelve fall off the edges


def test_chips_are_known_by_their_devices():
    assert chip_of("TPU v5 lite").name == "v5e"
    assert chip_of("TPU v5").name == "v5p"
    assert chip_of("TPU v6 lite").name == "v6e"
    assert chip_of("NVIDIA H200").name == "H200"
    assert chip_of("cpu") is None
    assert all(chip.bandwidth > chip.link for chip in CHIPS.values())


def test_the_clock_follows_from_the_peak():
    """v5e runs at 1.5 GHz, v5p at 1.75 GHz: four operations on 1024 numbers a cycle and core."""
    assert CHIPS["v5e"].vector == pytest.approx(4096 * 1.5e9, rel=0.01)
    assert CHIPS["v5p"].vector == pytest.approx(2 * 4096 * 1.75e9, rel=0.01)


def test_devices_without_places_are_behind_one_switch():
    class Device:
        pass

    assert wiring(CHIPS["H200"], [Device()] * 4).seconds("all-gather", 450e9, (0, 1, 2, 3)) == pytest.approx(0.75)


def test_a_program_that_the_tpu_compiler_made():
    """The gradient of six layers of a 1024 x 1024 product over 512 rows, weights and rows split over four chips of v5e,
    as libtpu 0.0.42 compiled it: three products a layer, one collective of weights a layer and pass in the forward and
    the backward loop, part of them laid over products."""
    text = gzip.decompress((Path(__file__).parents[2] / "goldens" / "tpu_program.txt.gz").read_bytes()).decode()
    square = Wiring(CHIPS["v5e"], ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0)))
    got = of(text, square)
    assert got.flops == 6 * 3 * 2 * 128 * 1024 * 1024
    gathered, summed = 1024 * 1024 * 2, 1024 * 1024 * 4
    assert got.wire == 6 * (2 * gathered + summed)
    assert 0 < got.exposed < got.collectives
    assert got.seconds < got.compute + got.memory + got.collectives
