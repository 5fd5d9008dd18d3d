"""Templates of captions as patterns that captions are held against."""

import re
from collections.abc import Iterable

from dit_video.data.toyworld import captions


def _one_of(table: dict) -> str:
    return "(?:" + "|".join(re.escape(word) for words in table.values() for word in words) + ")"


NOUN = f"(?:{_one_of(captions.SIZE_WORDS)} )?{_one_of(captions.COLOUR_WORDS)} {_one_of(captions.SHAPE_WORDS)}"
SLOTS = {
    "a": f"an? {NOUN}", "b": f"an? {NOUN}", "the": f"the {NOUN}", "the2": f"the {NOUN}", "np": NOUN, "np2": NOUN,
    "does": "[^,;:.]+", "does2": "[^,;:.]+", "doing": "[^,;:.]+", "doing2": "[^,;:.]+",
    "where": "[^,;:.]*", "camera": "(?:, .+)?", "first": "(?:.+, )?",
}  # fmt: skip


def speaks_in(caption: str, templates: Iterable[str]) -> bool:
    """Whether a caption is of one of the templates, whatever its words, case and full stop."""
    said = caption.lower().rstrip(".!")
    return any(
        re.fullmatch(re.escape(t).replace(r"\{", "{").replace(r"\}", "}").format(**SLOTS), said) for t in templates
    )
