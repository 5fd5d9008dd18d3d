"""The tokenizer: SentencePiece, unigram, with T5's conventions (pad 0, end 1, unknown 2; the end is appended).

No byte fallback: the fast tokenizers that other programs read the same files with would lose the bytes. A character
outside the vocabulary is `<unk>`; no text is refused.
"""

import html
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dit_video.core.errors import BadInput, MissingError
from dit_video.models import spiece

PAD, END, UNKNOWN = 0, 1, 2
ROWS = 16  # ids are padded to a multiple of it, so that few shapes are compiled


class Tokens(NamedTuple):
    """Ids of a batch of prompts, the number of them that are real, and the text that did not fit ("" when all did)."""

    ids: Int[np.ndarray, "B S"]
    length: Int[np.ndarray, "B"]
    dropped: tuple[str, ...]


def clean(prompt: str) -> str:
    """A prompt as the pipelines of the Wan family clean it: repaired Unicode, no HTML escapes, single spaces.

    They use ftfy where it is installed. What it does by default is done here from the standard library, in the same
    order, except that text decoded with the wrong codec ("cafÃ©") is left as it is.
    """
    text = prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for _ in range(2):
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", text.translate(_REPAIRS))
    return re.sub(r"\s+", " ", text).strip()


def _repairs() -> dict[int, str | None]:
    quotes = dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    wide = (*range(0xFF01, 0xFFF0), *range(0xFB00, 0xFB07), 0x3000)
    ligatures = (*range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), 0x132, 0x133, 0x149)
    repairs = {code: unicodedata.normalize("NFKC", chr(code)) for code in (*wide, *ligatures)}
    # Windows' quotes and dashes, read as Latin-1, are controls that no one types.
    repairs |= {c: bytes([c]).decode("cp1252") for c in range(0x80, 0xA0) if c not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
    repairs = {ord(c): q for c, q in quotes.items()} | {
        code: "".join(quotes.get(c, c) for c in text) for code, text in repairs.items()
    }
    control = (*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
    return repairs | dict.fromkeys(control)


_REPAIRS = _repairs()


@dataclass(frozen=True)
class Tokenizer:
    """A trained vocabulary; `model` is the content of its `spiece.model`."""

    model: bytes

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Reads `spiece.model` or, where it lacks, `tokenizer.json`.

        Raises `MissingError` when neither is there and `BadInput` for one that cannot be read.
        """
        folder = Path(path)
        if (file := folder / "spiece.model").is_file():
            spiece.read_model(data := file.read_bytes())
            return cls(data)
        if (file := folder / "tokenizer.json").is_file():
            try:
                return cls(spiece.write_model(spiece.read_json(file.read_text(encoding="utf-8"))))
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"{file} cannot be read: {error}") from None
        raise MissingError(f"no tokenizer in {folder}: looked for spiece.model and tokenizer.json")

    def save(self, path: str | Path) -> None:
        """Writes `spiece.model`, `tokenizer.json` and `tokenizer_config.json`, which transformers reads."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spiece.model").write_bytes(self.model)
        (folder / "tokenizer.json").write_text(spiece.write_json(self.vocabulary), encoding="utf-8")
        config = {
            "tokenizer_class": "T5Tokenizer",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "extra_ids": 0,
            "additional_special_tokens": [],
            "model_max_length": 512,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @cached_property
    def vocabulary(self) -> spiece.Pieces:
        return spiece.read_model(self.model)

    @cached_property
    def _processor(self):
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    def __len__(self) -> int:
        return len(self.vocabulary.pieces)

    def pieces(self, text: str) -> list[str]:
        """The pieces of one cleaned text, without the end; the ones that are not in the vocabulary too."""
        return self._processor.encode(clean(text), out_type=str)

    def encode(self, texts: Sequence[str], max_length: int = 512) -> Tokens:
        """Ids of each text and the end, at most `max_length` of them; the rest comes back in `dropped`.

        S is the longest, rounded up to a multiple of 16. An empty text is the end alone: the unprompted case.
        """
        if isinstance(texts, str):
            raise BadInput("encode() takes a list of prompts, got one string")
        if max_length < 1:
            raise BadInput(f"max_length={max_length}: the end takes one id")
        cleaned = [clean(text) for text in texts]
        rows = [[*ids[: max_length - 1], END] for ids in self._processor.encode(cleaned, out_type=int)]
        dropped = tuple(
            "".join(self._processor.encode(text, out_type=str)[max_length - 1 :]).replace(spiece.SPACE, " ").strip()
            if len(row) == max_length
            else ""
            for text, row in zip(cleaned, rows, strict=True)
        )
        length = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), -(-max(length, default=1) // ROWS) * ROWS), PAD, np.int32)
        for row, kept in zip(ids, rows, strict=True):
            row[: len(kept)] = kept
        return Tokens(ids, length, dropped)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a row of ids, specials left out. Case and accents are gone where the rules took them."""
        return self._processor.decode([int(n) for n in ids if n not in (PAD, END)])


def folding_rules() -> dict[str, str]:
    """Character -> what a small vocabulary reads it as: Latin letters lose case and accents, spaces, quotes and
    dashes become the ASCII ones, full-width, mathematical and circled letters plain ones, combining marks nothing.

    Unicode's own rules (`nmt_nfkc_cf`) do it for all scripts and are 240 kB; a vocabulary of Latin pieces has no use
    for the others.
    """
    rules = dict.fromkeys("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u1680\u2028\u2029", " ")
    rules |= dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9`\u00b4", "'")
    rules |= dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    rules |= dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    letters = {
        "\u00e6": "ae",
        "\u00f0": "d",
        "\u00f8": "o",
        "\u00fe": "th",
        "\u0111": "d",
        "\u0127": "h",
        "\u0131": "i",
    }
    letters |= {"\u0142": "l", "\u014b": "n", "\u0153": "oe"}
    rules |= letters | {small.upper(): plain for small, plain in letters.items()} | {"\u00d7": "x", spiece.SPACE: "_"}
    for code in (*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x1D400, 0x1D800), *_CIRCLED):
        char = chr(code)
        category = unicodedata.category(char)
        if char in rules:
            continue
        if category in ("Cc", "Cf", "Mn", "Mc", "Me"):
            if not 0x600 <= code < 0x900:  # signs that stand before a letter: other readers would drop the letter too
                rules[char] = ""
            continue
        bare = "".join(c for c in unicodedata.normalize("NFKD", char) if unicodedata.category(c) != "Mn").casefold()
        if bare and bare != char and bare.isascii() and bare.isprintable():
            rules[char] = bare
    return rules


_CIRCLED = range(0x1F100, 0x1F16A)


def train(texts: Iterable[str], vocab_size: int, path: str | Path | None = None) -> Tokenizer:
    """A unigram vocabulary of at most `vocab_size` pieces (Kudo 2018), saved to the folder `path` if one is given.

    The same texts give the same bytes. Every printable ASCII character is in it, so English text has no `<unk>`. Raises
    `BadInput` when these characters alone are more pieces.
    """
    import tempfile

    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    ascii_pieces = "".join(chr(c) for c in range(33, 127) if not chr(c).isupper() and chr(c) != "`")
    texts = [clean(text) for text in texts]
    least = len(set(ascii_pieces).union(*texts)) + 4  # and what stands for padding, end, unknown and a space
    if vocab_size < least:
        raise BadInput(f"a tokenizer of {vocab_size} pieces: the characters of these texts alone are {least}")
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as rules:
        for char, folded in sorted(folding_rules().items()):
            rules.write(f"{ord(char):X}\t{' '.join(f'{ord(c):X}' for c in folded)}\n")
        rules.flush()
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type="unigram",
            normalization_rule_tsv=rules.name,
            required_chars=ascii_pieces,
            character_coverage=1.0,
            byte_fallback=False,
            num_threads=1,
            shuffle_input_sentence=False,
            pad_id=PAD,
            eos_id=END,
            unk_id=UNKNOWN,
            bos_id=-1,
            minloglevel=2,
        )
    # Only the vocabulary and the rules are kept: the trainer also records a temporary file's name.
    tokenizer = Tokenizer(spiece.write_model(spiece.read_model(written.getvalue())))
    if path is not None:
        tokenizer.save(path)
    return tokenizer
