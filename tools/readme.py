"""The README's fenced blocks, in order, for those who run them: the tests and the continuous integration.

    python tools/readme.py            # lists the blocks
    python tools/readme.py 1          # prints the first block, to be piped into bash

A line above a block may hold a tag:
    <!-- not run: REASON -->          the test does not run it
    <!-- run with: --steps 2 ... -->  the test adds these flags to each `dit-video train`, `plan` or `eval` of the block
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(
    r"(?:<!-- (?P<tag>not run|run with): (?P<text>.+?) -->\n)?^```(?P<language>(?!mermaid)\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

LONG = re.compile(r"dit-video (train|plan|eval)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what the tag above it says."""

    number: int
    language: str
    code: str
    skipped: str | None = None  # the reason
    extra: str = ""  # flags

    def script(self) -> str:
        """What the test runs: as printed, or with the tag's flags behind every command that may take hours."""
        if not self.extra:
            return self.code
        lines = self.code.replace("\\\n", " ").splitlines()
        return "\n".join(f"{line.partition('  #')[0]} {self.extra}" if LONG.match(line) else line for line in lines)


def blocks(text: str | None = None) -> list[Block]:
    """Every fenced block that names a language but a drawing's; one that names none is a tree, not a command."""
    text = README.read_text() if text is None else text
    out = []
    for i, m in enumerate(BLOCK.finditer(text), 1):
        tag, note = m["tag"], m["text"]
        skipped, extra = (note if tag == "not run" else None), (note if tag == "run with" else "")
        out.append(Block(i, m["language"], m["code"], skipped, extra))
    return out


if __name__ == "__main__":
    found = blocks()
    if len(sys.argv) > 1:
        print(found[int(sys.argv[1]) - 1].code, end="")
    else:
        for block in found:
            print(f"{block.number}. {block.language}{f' (not run: {block.skipped})' if block.skipped else ''}")
            print("    " + block.code.rstrip().replace("\n", "\n    "))
