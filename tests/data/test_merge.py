"""Several builds as one: every clip of each once, under the sizes of the union, and no mixture of what does not mix."""

import json
import os
import shutil

import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.core.errors import BadInput, MissingError
from dit_video.data.buckets import Bucket
from dit_video.data.build import Builder, folder
from dit_video.data.folder import Folder
from dit_video.data.latents import Latents
from dit_video.data.merge import merge
from dit_video.data.store import Store
from tests.data.test_build import BUCKETS, OPTIONS, VAE, Fake, films

assert films  # a fixture
LONG, WIDE, STILL = BUCKETS


def built(out, source, buckets=BUCKETS, held_out=0.0, **vae):
    material = folder(Folder(str(source), held_out=held_out), buckets, OPTIONS.cutting, 0)
    Builder(Store(out), material, buckets, Fake(), VAE | vae, OPTIONS).run()
    return Store(out)


def clips(path, buckets, held_out=False):
    """(size, caption, latents) of every clip that a run of these buckets reads."""
    reader = Latents(str(path), noise=0.0).open(buckets, held_out)
    samples = [reader.load(i) for i in range(reader.total)]
    size = [(b.frames, b.height, b.width) for b in buckets]
    return sorted((size[s.bucket], s.caption, s.arrays["latents"].tobytes()) for s in samples)


def test_a_run_reads_every_clip_of_both(films, tmp_path):
    more = Bucket(17, 32, 32)
    one = built(tmp_path / "one", films, held_out=0.3)
    two = built(tmp_path / "two", films, (LONG, more))
    manifest = merge(Store(tmp_path / "both"), [one, two])
    everything = (LONG, WIDE, STILL, more)
    of_two = clips(two.root, (LONG, more))
    assert {size for size, *_ in of_two} == {(9, 32, 32), (17, 32, 32)}
    assert clips(tmp_path / "both", everything) == sorted(clips(one.root, BUCKETS) + of_two)
    assert clips(tmp_path / "both", everything, True) == clips(one.root, BUCKETS, True)
    assert manifest["clips"]["train"] == len(clips(tmp_path / "both", everything))
    assert set(manifest["broken"]) == {"zero.mp4", "noise.mp4"}
    assert os.stat(tmp_path / "both" / "train-00000.arrayrecord").st_nlink == 2, "linked, not copied"
    for source in (one, two):
        shutil.rmtree(source.root)
    assert len(clips(tmp_path / "both", everything)) == manifest["clips"]["train"]


def test_mean_and_deviation_are_those_of_all_latents(films, tmp_path):
    one = built(tmp_path / "one", films)
    two = built(tmp_path / "two", films, (LONG,))
    both = merge(Store(tmp_path / "both"), [one, two])["latents"]
    z = np.concatenate([
        np.frombuffer(latents, np.float32).reshape(-1, 2)
        for store, buckets in ((one, BUCKETS), (two, (LONG,))) for *_, latents in clips(store.root, buckets)
    ])  # fmt: skip
    np.testing.assert_allclose(both["mean"], z.mean(0), rtol=1e-4)
    np.testing.assert_allclose(both["std"], z.std(0), rtol=1e-3)


def test_what_does_not_mix_is_refused_and_nothing_written(films, tmp_path):
    one = built(tmp_path / "one", films)
    foreign = built(tmp_path / "foreign", films, digest="ba9876543210")
    turned = built(tmp_path / "turned", films, (STILL, LONG))
    out = Store(tmp_path / "out")
    with pytest.raises(BadInput, match="latents of two VAEs do not mix"):
        merge(out, [one, foreign])
    with pytest.raises(BadInput, match="another order"):
        merge(out, [one, turned])
    with pytest.raises(BadInput, match="the same folder twice"):
        merge(out, [one, one])
    with pytest.raises(MissingError, match="has no manifest"):
        merge(out, [one, Store(tmp_path / "nothing")])
    with pytest.raises(BadInput, match="holds encoded clips already"):
        merge(foreign, [one, turned])
    assert not (tmp_path / "out").exists()


def test_a_merge_that_broke_down_is_made_anew(films, tmp_path):
    one, two = built(tmp_path / "one", films), built(tmp_path / "two", films, (LONG,))
    lost = next((tmp_path / "two").glob("train-*.arrayrecord"))
    lost.rename(tmp_path / "aside")
    with pytest.raises(BadInput, match=f"{lost.name} is missing"):
        merge(Store(tmp_path / "both"), [one, two])
    assert (tmp_path / "both" / "train-00000.arrayrecord").exists()
    with pytest.raises(MissingError):
        Latents(str(tmp_path / "both")).open(BUCKETS)
    (tmp_path / "aside").rename(lost)
    assert merge(Store(tmp_path / "both"), [one, two])["clips"]["train"] == len(clips(tmp_path / "both", BUCKETS))


def test_by_command(films, tmp_path, capsys):
    for name in ("one", "two"):
        built(tmp_path / name, films)
    line = ["data", "merge", *(str(tmp_path / name) for name in ("both", "one", "two"))]
    assert main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"]["train"] == 2 * len(clips(tmp_path / "one", BUCKETS))
    assert main(line) == 2 and "new folder" in capsys.readouterr().err
