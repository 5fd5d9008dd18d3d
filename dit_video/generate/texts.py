"""Prompts, encoded: all of a call in one go, and kept, so that a large encoder comes once and goes again."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_video.core.log import Progress
from dit_video.core.types import Text
from dit_video.models.tokenizer import PAD

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline

KEPT = 64  # texts that are kept (megabytes each, with a released model), and that are encoded in one go


class Texts:
    """The text encoder of a pipeline, and what it has made."""

    def __init__(self, pipe: "VideoPipeline"):
        self.pipe = pipe
        self.rows: dict[tuple[str, int], Text] = {}  # one row each, by the text and the width of the row

    def read(self, texts: Sequence[str], progress: Progress, ahead: Iterable[Sequence[str]] = ()) -> Text:
        """Encoded prompts, on the host; then a large encoder is let go. `ahead`: groups of texts that will be asked for
        next, which are encoded in the same go, so that the encoder need not come once more for each.

        Each text goes through alone and is kept: what a clip is given depends neither on its batch nor on what was made
        before. (It does on how wide the rows are, by the longest text of a group.)"""
        wanted, new = self._widths(texts), {}
        if any(key not in self.rows for key in wanted):
            for group in chain([wanted], map(self._widths, ahead)):
                if len(new) >= KEPT:
                    break
                new |= dict.fromkeys(key for key in group if key not in self.rows)
            weights = self.pipe.params.with_room("text")
            with progress.phase("compile"), self.pipe.programs.on_mesh():
                for text, width in new:
                    self.rows[text, width] = self._read(weights, text, width)
            self.pipe.params.let_go("text")
        rows = [self.rows[key] for key in wanted]
        old = [key for key in self.rows if key not in new and key not in wanted]
        for key in old[: max(0, len(self.rows) - KEPT)]:
            del self.rows[key]
        return Text(*map(np.concatenate, zip(*rows, strict=True)))

    def _read(self, weights: Any, text: str, width: int) -> Text:
        tokens = self.pipe.model.tokenizer.encode([text], max_length=self.pipe.model.dit.text_len)
        ids = np.pad(tokens.ids, ((0, 0), (0, width - tokens.ids.shape[1])), constant_values=PAD)
        ready = self.pipe.programs.prepare({"read": ((), self.pipe.programs.read, (weights, ids, tokens.length))})
        return Text(*map(np.asarray, ready["read"](weights, self.pipe.spread(ids), self.pipe.spread(tokens.length))))

    def _widths(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Each text with the rows that the longest of all takes."""
        width = self.pipe.model.tokenizer.encode(
            [*dict.fromkeys(texts)], max_length=self.pipe.model.dit.text_len
        ).ids.shape[1]
        return [(text, width) for text in texts]
