"""`dit-video`: finds the verb, parses, runs it, and turns what goes wrong into one line and an exit code.

Only the module of the verb that was asked for is loaded, and none for `--help` and `--version`, so that both answer
at once. A verb is a module of this folder with

    add_parser(subparsers)    # one call of subparsers.add_parser(NAME, help=..., description=...); imports no library
    run(args) -> int          # the exit code; results on stdout, all else on stderr

`--json`, `--verbose` and `--quiet` are given to every verb here. A parser that sets the default `overrides` (a dict)
takes every unknown `--a.b value` into it, as the fields of an experiment need.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from dit_video import __version__
from dit_video.core.errors import BadInput, DitVideoError, MissingError, OutOfMemory

VERBS = {
    "generate": "a prompt becomes a video file",
    "decode": "saved latents become a video file",
    "train": "run or resume an experiment",
    "data": "make data: clips of toyworld; a training source, encoded once",
    "eval": "measure whether generated videos do what their prompts say",
    "import": "a public checkpoint becomes a model folder",
    "export": "a model becomes files for other programs",
    "inspect": "how a clip was made; makes it again and compares",
    "doctor": "devices, versions, codecs, cache, disk; what to install",
    "warmup": "compiles ahead for given shapes",
    "plan": "memory and speed of a run, before it is paid for",
    "launch": "writes what a cluster runs: JobSet, queued resources, Slurm",
}

COMMON = {
    "--json": "one JSON object on stdout, and nothing else there",
    "--verbose": "say more; a traceback when something goes wrong",
    "--quiet": "warnings and errors only",
}

EPILOG = """\
examples:
  dit-video generate "a red circle moves right"
  dit-video train toyworld --workdir runs/a
  dit-video VERB --help

exit codes:
  0 ok · 1 unexpected · 2 bad input · 3 missing dependency, device or file · 4 out of memory
  5 non-finite numbers · 6 partial · 75 preempted, resumable · 124 hung · 130 interrupted
"""


def verbs() -> dict[str, str]:
    """The verbs that this installation has, with a line about each."""
    return {verb: line for verb, line in VERBS.items() if find_spec(f"dit_video.cli.{verb}") is not None}


def near(word: str, words: Sequence[str]) -> str:
    """` Did you mean X or Y?`, or nothing."""
    from difflib import get_close_matches

    matches = get_close_matches(word, words, n=2)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


class Parser(argparse.ArgumentParser):
    """argparse with whole flags only, and with errors as exceptions."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}. See {self.prog} --help")

    def flags(self) -> dict[str, str]:
        """Every long flag, of parsers below too, by its name with underscores."""
        own = {flag.replace("-", "_"): flag for flag in self._option_string_actions if flag.startswith("--")}
        for child in self.children():
            own |= child.flags()
        return own

    def children(self) -> list["Parser"]:
        """The parsers of a verb's own verbs (`data toyworld`)."""
        groups = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [child for choices in groups for child in choices.values()]

    def add_common(self) -> None:
        """The flags that every verb has."""
        for flag, line in COMMON.items():
            if flag not in self._option_string_actions:
                # Suppressed: a parser below would otherwise overwrite with its default what one above was given.
                self.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=line)
        for child in self.children():
            child.add_common()


def same_flags(argv: Sequence[str], parser: Parser) -> list[str]:
    """`argv` with `_` and `-` in flag names as `parser` spells them; values are left alone."""
    known, out = parser.flags(), []
    for i, token in enumerate(argv):
        if token == "--":
            return out + list(argv[i:])
        name, equals, value = token.partition("=")
        if token.startswith("--") and not any(c.isspace() for c in name):
            token = known.get(name.replace("-", "_"), name) + equals + value
        out.append(token)
    return out


def take_fields(argv: Sequence[str], parser: Parser) -> tuple[list[str], dict[str, str]]:
    """Splits off the flags that `parser` does not know: `{"data.path": "clips"}`.

    Before parsing, because a positional argument of any length would swallow their values.
    Raises `BadInput` for one without a value.
    """
    known, rest, fields = set(parser.flags().values()), [], {}
    queue = list(argv)
    while queue:
        token = queue.pop(0)
        name, equals, value = token.partition("=")
        if token == "--":
            return [*rest, token, *queue], fields
        if not token.startswith("--") or name in known:
            rest.append(token)
            continue
        if not equals:
            # A value may be a negative number, but not another flag.
            if not queue or queue[0].startswith("--"):
                raise BadInput(f"{token} wants a value.{near(token, sorted(known))}")
            value = queue.pop(0)
        fields[name[2:].replace("-", "_")] = value
    return rest, fields


def parse(argv: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """The module of the verb, and its arguments. Raises `BadInput`; `SystemExit` for `--help` and `--version`."""
    known = verbs()
    verb = next((token for token in argv if not token.startswith("-")), None)
    if argv and argv[0] in ("-h", "--help", "--version"):
        verb, argv = None, argv[:1]
    top = Parser(prog="dit-video", description="Text to video with diffusion transformers in JAX.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"dit-video {__version__}")
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    if verb is None:
        for name, line in known.items():
            subparsers.add_parser(name, help=line, add_help=False)
        top.parse_args(list(argv))
        top.print_help(sys.stderr)
        raise SystemExit(BadInput.exit_code)
    if verb not in known:
        hint = near(verb, list(known))
        if " " in verb and not hint:
            hint = f' To make a video of it: dit-video generate "{verb}".'
        raise BadInput(f"unknown verb {verb!r}.{hint} Verbs: {', '.join(known)}")
    if argv[0] != verb:
        raise BadInput(f"{argv[0]} stands before the verb. Flags follow it: dit-video {verb} {argv[0]}")
    module = import_module(f"dit_video.cli.{verb}")
    module.add_parser(subparsers)
    parser = subparsers.choices[verb]
    parser.add_common()
    given = same_flags(argv[1:], parser)
    args = argparse.Namespace(verb=verb, json=False, verbose=False, quiet=False)
    if isinstance(parser.get_default("overrides"), dict):
        given, args.overrides = take_fields(given, parser)
    # The verb's own parser is run directly: the one above would lose which of them did not know a flag.
    _, rest = parser.parse_known_args(given, args)
    if rest:
        flag = rest[0].partition("=")[0]
        raise BadInput(f"unknown argument {flag}.{near(flag, list(parser.flags().values()))} See {parser.prog} --help")
    return module, args


def diagnose(error: BaseException) -> tuple[str, int]:
    """One line about an exception, and the exit code for it."""
    text = str(error).strip()
    if isinstance(error, DitVideoError):
        return text, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    # XLA's errors are told by their text: importing jax to compare classes is slow, and the classes have moved before.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        first = text.splitlines()[0] if text else "the host's memory is full"
        return f"out of memory: {first}. Use fewer frames, a smaller size or a smaller batch", OutOfMemory.exit_code
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("dit_video"):
        return f"the package {error.name!r} is missing. Install it: pip install {error.name}", MissingError.exit_code
    return f"unexpected {type(error).__name__}: {text}. Run again with --verbose for the traceback", 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in argv
    try:
        module, args = parse(argv)
        from dit_video.core.log import setup

        verbose = args.verbose
        setup(1 if verbose else -1 if args.quiet else 0)
        return int(module.run(args) or 0)
    except BrokenPipeError:
        # The reader of our stdout has gone (`| head`); Python would complain once more at exit.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except (Exception, KeyboardInterrupt) as error:
        line, code = diagnose(error)
        if verbose and not isinstance(error, KeyboardInterrupt):
            import traceback

            traceback.print_exc()
        print(f"dit-video: {line}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
