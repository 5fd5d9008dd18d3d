"""The two files that a SentencePiece tokenizer is kept in: `spiece.model` (a protocol buffer) and `tokenizer.json`.

Either is made from the other here, without protobuf and without the `tokenizers` package: the subset that T5's
unigram tokenizers use. Sources: `sentencepiece_model.proto` of google/sentencepiece, `T5Tokenizer` of transformers.
"""

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dit_video.core.errors import BadInput

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of piece in the protocol buffer
SPACE = "\u2581"  # stands for a space inside a piece


@dataclass(frozen=True)
class Pieces:
    """A unigram vocabulary in the order of its ids, and the compiled rules that normalise a text before it is cut."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    charsmap: bytes

    def id(self, piece: str) -> int:
        return self.pieces.index(piece)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer; bytes, int, or the four bytes of a float."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise BadInput(f"spiece.model: field of wire type {wire}. The file is damaged or is not SentencePiece.")
        yield key >> 3, value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | float | bytes | str) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    if isinstance(value, float):
        return _number(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(value)) + value


def read_model(data: bytes) -> Pieces:
    """The vocabulary of a `spiece.model`. Raises `BadInput` for a model that is not unigram, or not a model at all."""
    pieces, scores, kinds, charsmap = [], [], [], b""
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = {1: b"", 2: b"\0\0\0\0", 3: NORMAL} | dict(_fields(value))
                pieces.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece[2])[0])
                kinds.append(piece[3])
            elif number == 2 and dict(_fields(value)).get(3, 1) != 1:
                raise BadInput("spiece.model is not a unigram model: T5's are, others are not read")
            elif number == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (IndexError, UnicodeDecodeError, struct.error, AttributeError) as error:
        raise BadInput(f"spiece.model cannot be read ({error}): it is damaged, or is not SentencePiece") from None
    return Pieces(tuple(pieces), tuple(scores), tuple(kinds), charsmap)


def write_model(vocabulary: Pieces) -> bytes:
    """A `spiece.model` that SentencePiece loads, with T5's special pieces (pad 0, end 1, unknown 2)."""
    specials = {45: "<unk>", 47: "</s>", 48: "<pad>"}
    ids = {40: "<unk>", 42: "</s>", 43: "<pad>"}
    trainer = _field(3, 1) + _field(4, len(vocabulary.pieces)) + _field(35, int(BYTE in vocabulary.kinds))
    trainer += b"".join(_field(number, vocabulary.id(piece)) for number, piece in ids.items())
    trainer += _field(41, (1 << 64) - 1)  # no piece for a beginning: -1
    trainer += b"".join(_field(number, piece) for number, piece in specials.items())
    normalizer = _field(2, vocabulary.charsmap) + _field(3, 1) + _field(4, 1) + _field(5, 1)
    rows = zip(vocabulary.pieces, vocabulary.scores, vocabulary.kinds, strict=True)
    out = b"".join(
        _field(1, _field(1, piece) + _field(2, float(score)) + _field(3, kind)) for piece, score, kind in rows
    )
    return out + _field(2, trainer) + _field(3, normalizer)


def write_json(vocabulary: Pieces) -> str:
    """A `tokenizer.json` with the steps of transformers' `T5Tokenizer`: rules, cut at spaces, unigram, end piece."""
    end = vocabulary.id("</s>")
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    stop = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": n, "content": piece, **special}
            for n, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.kinds, strict=True))
            if kind in (UNKNOWN, CONTROL)
        ],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(vocabulary.charsmap).decode(),
        }
        if vocabulary.charsmap
        else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [one, stop],
            "pair": [one, stop, other, stop],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.kinds.index(UNKNOWN),
            "vocab": [list(row) for row in zip(vocabulary.pieces, vocabulary.scores, strict=True)],
            "byte_fallback": BYTE in vocabulary.kinds,
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False, indent=1)


def read_json(text: str) -> Pieces:
    """The vocabulary of a `tokenizer.json`. Raises `BadInput` for one that is not a unigram model as T5's are."""
    tokenizer = json.loads(text)
    model = tokenizer.get("model") or {}
    if model.get("type") != "Unigram":
        raise BadInput(f"tokenizer.json holds a {model.get('type')} model; T5's is Unigram, others are not read")
    special = {token["id"] for token in tokenizer.get("added_tokens") or () if token.get("special")}

    def kind(n: int, piece: str) -> int:
        if n == model["unk_id"]:
            return UNKNOWN
        if model.get("byte_fallback") and piece.startswith("<0x"):
            return BYTE
        return CONTROL if n in special else NORMAL

    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    compiled = next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), "")
    pieces, scores = zip(*model["vocab"], strict=True)
    return Pieces(pieces, scores, tuple(map(kind, range(len(pieces)), pieces)), base64.b64decode(compiled or ""))
