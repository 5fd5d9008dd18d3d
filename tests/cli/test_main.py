"""The front door: quick help, flags in either spelling, one-line errors, the documented exit codes."""

import argparse
import json
import subprocess
import sys
import types

import pytest

import dit_video
from dit_video.cli import main as front
from dit_video.core import errors

HEAVY = ("jax", "flax", "numpy", "optax", "grain", "av", "PIL")


def toy_verb(run):
    """A module that is a verb, with what the real ones have: a list of prompts, flags with `_`, fields."""

    def add_parser(subparsers):
        parser = subparsers.add_parser("toy", help="a verb for tests")
        parser.add_argument("prompt", nargs="*")
        parser.add_argument("--num_frames", type=int)
        parser.add_argument("--dry-run", action="store_true")
        parser.set_defaults(overrides={})

    return types.SimpleNamespace(add_parser=add_parser, run=run)


def strict_verb(run):
    """A verb with a verb of its own, and without fields."""

    def add_parser(subparsers):
        inner = subparsers.add_parser("toy").add_subparsers(dest="what", required=True)
        inner.add_parser("toyworld").add_argument("--count_to", type=int, default=1)

    return types.SimpleNamespace(add_parser=add_parser, run=run)


@pytest.fixture
def install(monkeypatch):
    """`install(run)` makes `dit-video toy` call `run(args)`."""

    def install(run, verb=toy_verb):
        monkeypatch.setattr(front, "verbs", lambda: {"toy": "a verb for tests", "other": "another"})
        monkeypatch.setattr(front, "import_module", lambda name: verb(run))

    return install


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["generate", "--help"], ["train", "--help"]])
def test_help_is_quick_and_loads_no_library(argv):
    code = (
        "import sys, time\n"
        "from dit_video.cli.main import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    loaded, _, seconds = done.stderr.strip().splitlines()[-1].rpartition(" ")
    assert loaded == "[]"
    # The processor's seconds, the interpreter's start among them: other work on the machine is not what is measured.
    assert float(seconds) < 0.5


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        front.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dit-video {dit_video.__version__}\n"


def test_help_lists_the_verbs_that_exist(capsys):
    with pytest.raises(SystemExit):
        front.main(["--help"])
    out = capsys.readouterr().out
    assert "exit codes:" in out
    for verb in front.VERBS:
        assert (f"    {verb} " in out) == (verb in front.verbs())


def test_no_verb_is_bad_input(capsys):
    with pytest.raises(SystemExit) as stop:
        front.main([])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: dit-video" in captured.err


@pytest.mark.parametrize("flag", ["--num_frames", "--num-frames"])
@pytest.mark.parametrize("dry", ["--dry_run", "--dry-run"])
def test_either_spelling_of_flags(install, flag, dry):
    seen = []
    install(lambda args: seen.append(args) or 0)
    # The value keeps its own dashes and underscores.
    assert front.main(["toy", "a_b-c", flag, "9", dry]) == 0
    assert front.main(["toy", f"{flag}=9", dry, "--", "--a-b"]) == 0
    assert (seen[0].prompt, seen[0].num_frames, seen[0].dry_run) == (["a_b-c"], 9, True)
    assert (seen[1].prompt, seen[1].num_frames, seen[1].dry_run) == (["--a-b"], 9, True)


def test_fields_are_collected(install):
    seen = []
    install(lambda args: seen.append(args) or 0)
    line = ["toy", "--data.path", "my-clips_1", "p", "--model.num-heads=3", "--num_frames", "5", "--low", "-2"]
    assert front.main(line) == 0
    assert seen[0].overrides == {"data.path": "my-clips_1", "model.num_heads": "3", "low": "-2"}
    assert seen[0].prompt == ["p"]
    assert seen[0].num_frames == 5


def test_a_field_without_a_value(install, capsys):
    install(lambda args: 0)
    assert front.main(["toy", "--num_frame"]) == 2
    assert "--num_frame wants a value. Did you mean --num_frames" in capsys.readouterr().err


def test_flags_of_a_verb_below_a_verb(install, capsys):
    seen = []
    install(lambda args: seen.append(args) or 0, strict_verb)
    assert front.main(["toy", "toyworld", "--count-to", "3", "--json"]) == 0
    assert (seen[0].what, seen[0].count_to, seen[0].json, seen[0].quiet) == ("toyworld", 3, True, False)
    assert front.main(["toy", "--quiet", "toyworld"]) == 0
    assert (seen[1].json, seen[1].quiet) == (False, True)
    assert front.main(["toy", "toyworld", "--coun-to", "3"]) == 2
    assert "unknown argument --coun-to. Did you mean --count_to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ohter"], "unknown verb 'ohter'. Did you mean other?"),
        (["a red circle"], 'dit-video generate "a red circle"'),
        (["--json", "toy"], "Flags follow it: dit-video toy --json"),
        (["toy", "--num_frames", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_lines_are_one_line_and_exit_2(install, capsys, argv, words):
    install(lambda args: 0)
    assert front.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInput("x"), 2),
        (errors.MissingError("x"), 3),
        (errors.OutOfMemory("x"), 4),
        (errors.NonFinite("x"), 5),
        (errors.Partial("x"), 6),
        (errors.Preempted("x"), 75),
        (errors.Interrupted("x"), 130),
        (errors.DitVideoError("x"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9999 bytes.\nmore"), 4),
        (ModuleNotFoundError("No module named 'ftfy'", name="ftfy"), 3),
        (ModuleNotFoundError("No module named 'dit_video.x'", name="dit_video.x"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_exit_codes(install, capsys, error, code):
    def run(args):
        raise error

    install(run)
    assert front.main(["toy"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dit-video: ")
    assert len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err
    assert ("--verbose" in captured.err) == (code == 1 and not isinstance(error, errors.DitVideoError))


def test_verbose_has_the_traceback(install, capsys):
    def run(args):
        raise ZeroDivisionError("division by zero")

    install(run)
    assert front.main(["toy", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_verbs_own_code_passes(install):
    install(lambda args: 6)
    assert front.main(["toy"]) == 6


def test_real_out_of_memory_of_the_device():
    """The class and wording that this JAX raises, not a made-up one."""
    jax = pytest.importorskip("jax")
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as caught:
        jax.block_until_ready(jax.jit(lambda: jax.numpy.ones((1 << 46,), "float32"))())
    assert front.diagnose(caught.value)[1] == 4


def test_the_installed_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dit_video.cli.main", "nonsense"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""


def test_json_of_an_error_leaves_stdout_alone(install, capsys):
    install(lambda args: print(json.dumps({"ok": True})) or 0)
    assert front.main(["toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True}


def test_children_are_found():
    parser = front.Parser()
    parser.add_subparsers(parser_class=front.Parser).add_parser("x").add_argument("--a_b")
    assert parser.flags()["__a_b"] == "--a_b"
    assert isinstance(parser, argparse.ArgumentParser)
