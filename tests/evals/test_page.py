"""The report's page: what failed in the worst clips stands beside them."""

import json

import numpy as np
from PIL import Image

from dit_video.evals import page
from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders
from dit_video.evals.score import score


def red(picture):
    """Pixels in the colour of what is wrong."""
    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    return (r > 120) & (g < 90) & (b < 110)


def test_what_failed_stands_beside_the_worst_clips(tmp_path):
    """Of five clips the first and the last are those of each other's prompts."""
    few, order = suite(5, "plain"), [4, 1, 2, 3, 0]
    clips = renders([one.scene for one in few], 9, 64, 64)
    readings = [measure(clip) for clip in clips]
    report = {"suite": "toyworld"} | score([readings[i] for i in order], few)
    page.write(tmp_path, report, [clips[i] for i in order])
    worst = np.asarray(Image.open(tmp_path / "worst.png"))
    strips = np.asarray(Image.open(tmp_path / "first.png"))
    words = worst[:, -page._WORDS :]
    assert worst.shape[1] - page._WORDS == (strips.shape[1] - 8) // 2  # one strip a row, words to its right
    pitch = 64 + 8
    ink = [int(red(words[i * pitch : (i + 1) * pitch]).sum()) for i in range(5)]
    assert min(ink[:2]) > 50
    assert max(ink[2:]) == 0
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [bool(clip["wrong"]) for clip in stored["clips"]] == [True, False, False, False, True]


def test_low_black_clips_have_room_for_words():
    (one,) = suite(1, "free")
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    report = score([measure(clip)], [one])
    assert not report["clips"][0]["readable"]
    sheet = page.beside([clip] * 3, [page._said(report["clips"][0])] * 3)
    assert len(sheet) >= 3 * 5 * page._LINE
