"""The report's page: what failed in the worst clips stands beside them."""

import json

import numpy as np
from PIL import Image

from dit_video.data.video import contact_sheet
from dit_video.evals import WRITES, compare, page, tables
from dit_video.evals.compare import of_marks
from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders
from dit_video.evals.score import mark, score


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


def reports(tmp_path):
    """Of two models the report of the first, the other beside it, and the clips of both: exact, and turned about."""
    few, order = suite(5, "plain"), [4, 1, 2, 3, 0]
    clips = renders([one.scene for one in few], 9, 64, 64)
    readings, parts = [measure(clip) for clip in clips], []
    for name, which in (("ours", order), ("theirs", range(5))):
        own = [readings[i] for i in which]
        report = {"suite": "toyworld", "model": {"name": name, "hash": name}} | score(own, few)
        report["quality"] = {"boil": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 5}}
        report["diversity"] = {"spread": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 8}, "renders": 0.5}
        report["splits"]["steps"] = {"4": report["scores"], "8": report["scores"]}
        report["free"] = score(own, few)
        parts.append(
            (report, [clips[i] for i in which], of_marks([mark(*pair) for pair in zip(own, few, strict=True)]))
        )
    (report, ours, marks), (other, theirs, others) = parts
    compare.beside(report, other, compare.difference(marks, others))
    return report, ours, theirs


def test_all_that_is_known_of_the_other_model_is_shown(tmp_path):
    report, ours, theirs = reports(tmp_path)
    assert "clips" not in report["against"]["free"] and "clips" not in report["against"]
    shown = {table.title: table for table in tables.tables(report)}
    scores = {row[0]: dict(zip(shown["scores, %"].columns, row, strict=True)) for row in shown["scores, %"].rows}
    assert scores["all"]["of theirs"] == "100.0" and float(scores["all"]["better by"]) == -40.0
    for title in ("free prompts, %", "beside renders of the same prompts", "diversity"):
        assert shown[title].columns[-1] == "of theirs" and shown[title].rows[0][-1] not in ("", "-")
    assert [row[0] for row in shown["by steps, %"].rows] == ["4", "4, of theirs", "8", "8, of theirs"]
    values = {row[0]: row[1] for row in shown["by value, % (95 % interval, n)"].rows}
    assert "100.0 (100-100, n " in values["colour, of theirs"] != values["colour"]
    for table in shown.values():
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    page.write(tmp_path, report, ours, theirs)
    text = (tmp_path / "index.html").read_text()
    assert "first clips of theirs" in text and "by steps of theirs" in text and "Against theirs" in text
    assert np.array_equal(np.asarray(Image.open(tmp_path / "against.png")), contact_sheet(theirs))
    assert text.count(">of theirs</text>") == 1 + len(report["values"])  # legends of marks across bars


def test_pictures_of_an_older_report_are_removed(tmp_path):
    report, ours, theirs = reports(tmp_path)
    (tmp_path / "mine.png").write_bytes(b"")
    page.write(tmp_path, report, ours, theirs)
    assert {path.name for path in tmp_path.iterdir()} == {*WRITES, "mine.png"}
    numbers = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 5}
    report = {"suite": "distribution", "count": 5, "scores": {"states": numbers}, "splits": {}, "reference": {}}
    page.write(tmp_path, report, ours)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "report.json", "first.png", "mine.png"}
