"""The tokenizer: any text is accepted, case folds, what is cut off is reported, both files say the same."""

import json
import random
import shutil

import numpy as np
import pytest

from dit_video.core.errors import BadInput, MissingError
from dit_video.models import spiece
from dit_video.models.tokenizer import END, PAD, UNKNOWN, Tokenizer, clean, train

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star", "ring")
MOTIONS = ("moves left", "moves right", "bounces", "spins slowly", "stays still", "grows quickly")
CAPTIONS = [f"A {colour} {shape} {motion}." for colour in COLOURS for shape in SHAPES for motion in MOTIONS]
ODD = [
    "",
    " ",
    "A R\u00e9d \ufb01sh, na\u00efve caf\u00e9 \u00c6\u00d8\u00c5 Stra\u00dfe \u0130stanbul",
    "\uff26\uff35\uff2c\uff2c \U0001d401\U0001d428\U0001d425\U0001d41d \u24b6 \u2167 \u00bd \u00b2 \u2122",
    "\u201cquotes\u201d \u2014 don\u2019t\u2026 `tick`",
    "\u65e5\u672c\u8a9e red circle \u0939\u093f\u0928\u094d\u0926\u0940 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "e\u0301 E\u0301 A\u0903 b x\u0300\u0301\u0302\u0303",
    "1\ufe0f\u20e3 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f534",
    "tab\tnew\nline\r\nzero\u200bwidth \u00a0nbsp\u3000wide \u2028 \u0085",
    "\x00a\x01b \x93quoted\x94 \U0010ffff",
    "\ud83d\ude00 lone \ud800 surrogate",
    "&amp;lt;b&amp;gt; &eacute; &#xD800;",
    "</s> <unk> <pad> <extra_id_0> \u2581x \u2581\u2581 y",
    "circle" * 60,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train([*CAPTIONS, "the quick brown fox jumps over the lazy dog"], 160)


def ids_of(tokenizer, text):
    ids, length, _ = tokenizer.encode([text])
    return ids[0, : length[0]].tolist()


def random_texts(count):
    rng = random.Random(0)
    blocks = ((32, 127), (32, 0x250), (0x300, 0x370), (0x2000, 0x2100), (32, 0x3000), (0xFB00, 0xFFFF), (1, 0x110000))
    return ["".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(1, 12))) for _ in range(count)]


def test_captions_go_there_and_back_in_few_pieces(tokenizer):
    ids, length, dropped = tokenizer.encode(CAPTIONS)
    assert ids.shape[1] % 16 == 0
    assert ids.dtype == length.dtype == np.int32
    assert set(dropped) == {""}
    for caption, row, n in zip(CAPTIONS, ids, length, strict=True):
        assert tokenizer.decode(row) == caption.lower()
        assert row[n - 1] == END
        assert np.all(row[n:] == PAD)
        assert UNKNOWN not in row
    assert length.mean() < 20


def test_case_accents_and_fancy_letters_do_not_matter(tokenizer):
    plain = ids_of(tokenizer, "a red circle")
    fancy = ("A Red Circle", "\uff41 r\u00e9d CIRCLE", "\U0001d41a \u24e1ed\u00a0circle", " a  red\u200b\ncircle ")
    assert all(ids_of(tokenizer, text) == plain for text in fancy)
    assert ids_of(tokenizer, "a red square") != plain


def test_nothing_is_one_end(tokenizer):
    ids, length, dropped = tokenizer.encode(["", "  \n"])
    assert length.tolist() == [1, 1]
    assert ids.tolist() == [[END] + [PAD] * 15] * 2
    assert dropped == ("", "")


def test_no_text_is_refused_and_ascii_has_no_unknown(tokenizer):
    for text in [*ODD, *random_texts(300)]:
        assert ids_of(tokenizer, text)[-1] == END
    assert UNKNOWN not in ids_of(tokenizer, "".join(map(chr, range(32, 127))))
    assert ids_of(tokenizer, "\u65e5\u672c")[1:] == [UNKNOWN, END]  # neighbours that are not known are one


def test_what_is_cut_off_is_reported(tokenizer):
    long = "a red circle moves left. " * 4
    whole = tokenizer.encode([long])
    kept = tokenizer.encode([long, "a star"], max_length=12)
    assert kept.length.tolist() == [12, len(ids_of(tokenizer, "a star"))]
    assert kept.ids[0, 11] == END
    assert kept.dropped[1] == ""
    assert kept.ids[0, :11].tolist() == whole.ids[0, :11].tolist()
    both = tokenizer.decode(kept.ids[0]) + " " + kept.dropped[0]
    assert both.replace(" ", "") == clean(long).replace(" ", "")
    exact = tokenizer.encode([long], max_length=int(whole.length[0]))
    assert exact.dropped == ("",)


def test_bad_arguments(tokenizer):
    with pytest.raises(BadInput, match="list"):
        tokenizer.encode("a red circle")
    with pytest.raises(BadInput, match="max_length"):
        tokenizer.encode(["a"], max_length=0)


def test_cleaning():
    assert clean(" a  &amp;amp; b\n\u201cc\u201d ") == 'a & b "c"'
    assert clean("e\u0301") == "\u00e9"
    assert clean("\ufb01 \uff21 \x93x\x94 \x00\ufeff") == 'fi A "x"'
    assert clean("\ud83d\ude00 \ud800") == "\U0001f600 \ufffd"


def test_training_is_reproducible_and_small(tokenizer, tmp_path):
    again = train([*CAPTIONS, "the quick brown fox jumps over the lazy dog"], 160, tmp_path)
    assert again.model == tokenizer.model
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 60_000
    assert tokenizer.vocabulary.pieces[:3] == ("<pad>", "</s>", "<unk>")


def test_either_file_is_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "both")
    assert Tokenizer.from_folder(tmp_path / "both") == tokenizer
    (tmp_path / "json").mkdir()
    shutil.copy(tmp_path / "both/tokenizer.json", tmp_path / "json")
    other = Tokenizer.from_folder(tmp_path / "json")
    assert other == tokenizer
    assert [ids_of(other, text) for text in ODD] == [ids_of(tokenizer, text) for text in ODD]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingError, match=r"spiece.model and tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    with pytest.raises(BadInput, match="BPE"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(BadInput, match=r"spiece\.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("files", [("spiece.model",), ("tokenizer.json",), ("spiece.model", "tokenizer.json")])
def test_the_same_ids_as_transformers(tokenizer, tmp_path, files):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    for file in {"spiece.model", "tokenizer.json"} - set(files):
        (tmp_path / file).unlink()
    for kind in (transformers.T5Tokenizer, transformers.AutoTokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert len(theirs) == len(tokenizer)
        for text in [*CAPTIONS, *ODD[:-2], *random_texts(300)]:
            assert theirs(clean(text)).input_ids == ids_of(tokenizer, text), text


@pytest.mark.parity
def test_the_json_alone_in_tokenizers(tokenizer):
    """Runtimes without transformers read `tokenizer.json` as it stands."""
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_str(spiece.write_json(tokenizer.vocabulary))
    for text in [*CAPTIONS, *ODD[:-2]]:
        assert theirs.encode(clean(text)).ids == ids_of(tokenizer, text), text


@pytest.mark.parity
def test_cleaning_as_ftfy_does():
    ftfy = pytest.importorskip("ftfy")
    for text in ["\ufb01 \uff21 \x93x\x94 \x00\ufeff", "don\u2019t \u201cx\u201d e\u0301\u2026 \u3000", *CAPTIONS[:5]]:
        assert clean(text) == " ".join(ftfy.fix_text(text).split())
