"""Reading compiled programs: shapes as they lie in memory, loops, groups of devices."""

import pytest

from dit_video.cli.plan.hlo import groups, parse, shapes, trip_count

PROGRAM = """\
HloModule m, is_scheduled=true

%body (p: (s32[], f32[4,256])) -> (s32[], f32[4,256]) {
  %p = (s32[]{:T(128)}, f32[4,256]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,256]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, f32[4,256]{1,0:T(8,128)}) tuple(%next, /*index=1*/%x)
}

%condition (p.1: (s32[], f32[4,256])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[4,256]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(40)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: f32[4,256]) -> f32[4,256] {
  %a = f32[4,256]{1,0:T(8,128)} parameter(0), metadata={op_name="a (b)"}
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, f32[4,256]{1,0:T(8,128)}) tuple(%zero, %a)
  %w = (s32[]{:T(128)}, f32[4,256]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[4,256]{1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""


def test_computations_and_instructions():
    module = parse(PROGRAM)
    assert list(module.computations) == ["body", "condition", "main"]
    assert module.entry.name == "main"
    loop = module.entry.by_name["w"]
    assert (loop.opcode, loop.operands, loop.called("body", "condition")) == ("while", ("t",), ["body", "condition"])
    assert module.entry.root.name == "r"
    assert [(i.name, n) for i, n in module.entry.users["a"]] == [("t", 1)]
    assert module.entry.operand(loop, 0).opcode == "tuple"


def test_an_instruction_over_several_lines():
    lines = 'custom-call(%a), custom_call_target="k", notes={{\n"x":"{y}"\n}}, backend_config={"body": "QQ=="}'
    module = parse(PROGRAM.replace("get-tuple-element(%w), index=1", lines))
    assert module.entry.root.opcode == "custom-call"
    assert '"body": "QQ=="' in module.entry.root.rest
    assert len(module.entry.instructions) == 5


def test_how_often_a_loop_runs():
    module = parse(PROGRAM)
    assert trip_count(module.entry.by_name["w"], module) == 40
    noted = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    module = parse(noted)
    assert trip_count(module.entry.by_name["w"], module) == 7


@pytest.mark.parametrize(
    "text, size, space",
    [
        ("f32[4,256]{1,0:T(8,128)}", 8 * 256 * 4, 0),  # rows are filled up to eight
        ("bf16[3,100]{1,0:T(8,128)(2,1)S(1)}", 8 * 128 * 2, 1),
        ("f32[100,3]{0,1:T(8,128)}", 8 * 128 * 4, 0),  # the first axis is the minor one
        ("f32[4,256]{1,0}", 4 * 256 * 4, 0),
        ("s8[10]", 10, 0),
        ("s4[10]", 5, 0),
        ("pred[7]", 7, 0),
    ],
)
def test_bytes_of_an_array(text, size, space):
    (shape,) = shapes(text)
    assert (shape.bytes, shape.space) == (size, space)
    assert shape.memory == (size if space == 0 else 0)


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", (0, 2)),
        ("source_target_pairs={{1,3},{3,1}}", (1, 3)),
        ("source_target_pairs={{0,0},{1,2},{2,1},{3,3}}", (1, 2)),  # the first that leaves its device
        ("source_target_pairs={{0,0},{1,1}}", (0,)),
        ("", (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_who_takes_part_in_a_collective(text, group):
    line = f"  %g = f32[8]{{0}} all-gather(%x), channel_id=3, {text}"
    module = parse("ENTRY %m (x: f32[2]) -> f32[8] {\n  %x = f32[2]{0} parameter(0)\n" + line + "\n}")
    assert groups(module.entry.by_name["g"], 8) == group
    assert module.entry.by_name["g"].channel == "3"
