"""Records and shards: what is written is read back, the same bytes for the same clips, and damage is seen."""

import numpy as np
import pytest

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.data.shards import Posterior, Record, open_shard, pack, read_manifest, unpack, write_shard
from dit_video.data.store import Store


def record(rng, caption="a rød circle", scale=3.0, pictures=2):
    def draw(*shape):
        return Posterior(scale * rng.standard_normal(shape, np.float32), np.exp(rng.standard_normal(shape)) / 100)

    frames = np.arange(1, pictures + 1, dtype=np.int32)
    return Record(1, caption, draw(3, 2, 2, 4), draw(pictures, 2, 2, 4), frames, {"file": "a.mp4", "start": 0.5})


@pytest.mark.parametrize("dtype, error", [("float32", 1e-7), ("float16", 5e-4)])
@pytest.mark.parametrize("pictures", [0, 2])
def test_a_record_comes_back(rng, dtype, error, pictures):
    wrote = record(rng, pictures=pictures)
    read = unpack(pack(wrote, dtype))
    assert (read.bucket, read.caption, read.about) == (1, "a rød circle", {"file": "a.mp4", "start": 0.5})
    np.testing.assert_array_equal(read.picture_frames, wrote.picture_frames)
    for a, b in zip((*wrote.clip, *wrote.pictures), (*read.clip, *read.pictures), strict=True):
        assert (b.shape, b.dtype) == (a.shape, np.float32)
        np.testing.assert_allclose(b, a, rtol=error)


def test_what_cannot_be_stored_is_refused(rng):
    with pytest.raises(NonFinite, match=r"a\.mp4"):
        pack(record(rng, scale=np.nan), "float32")
    with pytest.raises(NonFinite, match="float16"):
        pack(record(rng, scale=1e6), "float16")
    pack(record(rng, scale=1e6), "float32")


def test_shards_are_the_same_for_the_same_records_and_read_in_any_order(rng, tmp_path):
    data = [pack(record(rng, f"clip {i}"), "float16") for i in range(20)]
    for name in "ab":
        write_shard(tmp_path / name, data)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    reader = open_shard(tmp_path / "a")
    assert reader.num_records() == 20
    order = rng.permutation(20)
    assert [unpack(reader.read([int(i)])[0]).caption for i in order] == [f"clip {i}" for i in order]


def test_a_flipped_byte_is_seen(rng, tmp_path):
    data = [pack(record(rng, f"clip {i}"), "float16") for i in range(20)]
    write_shard(tmp_path / "a", data)
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[len(damaged) // 2] ^= 0x20
    (tmp_path / "b").write_bytes(damaged)
    reader = open_shard(tmp_path / "b")
    seen = []
    for i in range(20):
        try:
            seen.append(reader.read([i])[0] == data[i])
        except RuntimeError:
            seen.append(None)
    assert None in seen, "the damaged record raises"
    assert False not in seen, "and no other comes back wrong"


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(MissingError, match="data build SRC"):
        read_manifest(store)
    store.write("build.json", b"{}")
    with pytest.raises(MissingError, match="run the same"):
        read_manifest(store)
    store.write("manifest.json", b'{"format": 99}')
    with pytest.raises(BadInput, match="format 99"):
        read_manifest(store)
    store.write("manifest.json", b"{")
    with pytest.raises(BadInput, match="cannot be read"):
        read_manifest(store)
