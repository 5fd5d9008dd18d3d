"""Which weights a model has: kept for files until they change, and of adapters by what they are made of."""

import os
from dataclasses import replace

import numpy as np
import pytest

from dit_video.weights import digests
from dit_video.weights.digests import digest_of, kept_hash, weights_hash
from dit_video.weights.folder import open_model, save_model
from dit_video.weights.lora import merge_files, save_lora
from dit_video.weights.names import flatten


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """A model of a diffusers folder without a manifest; it counts as large, and what is kept is kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1)
    folder = save_model(tiny, tmp_path / "model")
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def reads(monkeypatch):
    """What was hashed."""
    calls = []
    monkeypatch.setattr(digests, "weights_hash", lambda weights: calls.append(weights) or weights_hash(weights))
    return calls


def test_files_are_read_for_it_once(folder, reads, tiny):
    first = digest_of(open_model(folder))
    assert first == weights_hash(open_model(folder).params) == digest_of(open_model(folder))
    assert len(reads) == 1
    vae = kept_hash(open_model(folder).params["vae"])
    assert vae == kept_hash(open_model(folder).params["vae"]) != first
    assert len(reads) == 2


def test_a_file_that_was_written_again_is_read_again(folder, reads):
    first = digest_of(open_model(folder))
    (file,) = (folder / "transformer").glob("*.safetensors")
    data, was = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # as a copy that keeps its times
    assert digest_of(open_model(folder)) != first
    assert len(reads) == 2


def test_what_is_not_as_it_lies_in_files_is_not_kept(folder, reads, tmp_path):
    model = open_model(folder)
    changed = model.params | {"vae": {name: np.asarray(x) for name, x in flatten(model.params["vae"]).items()}}
    for _ in range(2):
        digest_of(replace(model, params=changed))
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


def test_a_broken_note_is_made_again(folder, reads, tmp_path):
    first = digest_of(open_model(folder))
    (note,) = (tmp_path / "cache").rglob("digests/*")
    note.write_text("0123")
    assert digest_of(open_model(folder)) == first == note.read_text()


def test_adapters_count_by_themselves(folder, reads, tmp_path):
    """The weights that they are merged into are not read for it, and every strength, file and order has its own."""
    model = open_model(folder)
    shape = flatten(model.params["dit"])["blocks/attn/q/kernel"].shape
    rng = np.random.default_rng(0)
    for name in "ab":
        a, b = (rng.standard_normal((shape[0], *s)).astype(np.float32) for s in ((shape[1], 2), (2, shape[2])))
        save_lora(
            tmp_path / f"{name}.safetensors", {"blocks": {"attn": {"q": {"kernel": {"a": a, "b": b}}}}}, model.dit
        )
    one, other = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    uses = ([one], [other], [f"{one}=0.5"], [one, other], [other, one])
    found = [merge_files(model, files).digest for files in uses]
    assert len({*found, digest_of(model)}) == len(uses) + 1
    assert found == [merge_files(model, files).digest for files in uses]
    assert len(reads) == 1
