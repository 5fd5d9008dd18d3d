"""A folder of encoded clips: ArrayRecord shards, what each holds as JSON beside it, and one manifest over all.

    manifest.json         which VAE, from what, with which options; the shards of each part with their SHA-256
    build.json            which item goes into which shard; what an interrupted build goes on from
    train-00000.arrayrecord, train-00000.json, ..., held_out-00000.arrayrecord, ...

A record is one clip: the raw caption, the mean and the standard deviation of its latents, and those of some frames
encoded alone. Captions are text, not tokens or features: they are small, and tokenizer and text encoder may change
(in a joint training the encoder does, every step). Latents are raw, not normalised: statistics may change too. In a
shard clips are sorted by bucket, so that counts alone say what a record is.
"""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dit_video.core.errors import BadInput, MissingError, NonFinite
from dit_video.core.files import json_text
from dit_video.data.store import Store

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "build.json"
TRAIN, HELD_OUT = "train", "held_out"


class Posterior(NamedTuple):
    """Of latents, raw: (T', H', W', z) of a clip, (P, H', W', z) of single frames."""

    mean: np.ndarray
    std: np.ndarray


class Record(NamedTuple):
    """A clip as it is stored."""

    bucket: int  # of the manifest
    caption: str
    clip: Posterior
    pictures: Posterior
    picture_frames: np.ndarray  # (P,) int32, each >= 1
    about: dict[str, Any]  # where it is from


def pack(record: Record, dtype: str) -> bytes:
    """A record as bytes: the length of the head, the head as JSON, the arrays. Raises `NonFinite`."""
    arrays = []
    for x in (*record.clip, *record.pictures):
        with np.errstate(over="ignore"):
            arrays.append(np.ascontiguousarray(x, dtype))
        if not np.isfinite(arrays[-1]).all():
            raise NonFinite(f"latents of {record.about} are NaN, or infinite in {dtype} (--stored float32 holds more)")
    head = {
        "bucket": record.bucket,
        "caption": record.caption,
        "dtype": dtype,
        "shape": record.clip.mean.shape,
        "picture_frames": record.picture_frames.tolist(),
        "about": record.about,
    }
    text = json.dumps(head).encode()
    return struct.pack("<I", len(text)) + text + b"".join(x.tobytes() for x in arrays)


def unpack(data: bytes) -> Record:
    """The inverse of `pack`; arrays are float32."""
    end = 4 + struct.unpack_from("<I", data)[0]
    head = json.loads(data[4:end])
    shape, frames = tuple(head["shape"]), np.array(head["picture_frames"], np.int32)
    shapes = [shape, shape, (len(frames), *shape[1:]), (len(frames), *shape[1:])]
    flat = np.frombuffer(data, head["dtype"], offset=end)
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    parts = [x.reshape(s).astype(np.float32) for x, s in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    return Record(head["bucket"], head["caption"], Posterior(*parts[:2]), Posterior(*parts[2:]), frames, head["about"])


def write_shard(path: Path, records: list[bytes]) -> None:
    """One record a group: any of them is read alone. The same records make the same bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
    for record in records:
        writer.write(record)
    writer.close()


def open_shard(path: Path) -> Any:
    """A reader: `.read([i])` gives bytes, and raises `RuntimeError` for a damaged record."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def read_json(store: Store, name: str) -> Any:
    """Raises `MissingError`, and `BadInput` for what is no JSON."""
    try:
        return json.loads(store.read(name))
    except ValueError as error:
        raise BadInput(f"{store}/{name} cannot be read: {error}") from None


def write_json(store: Store, name: str, data: Any, indent: int | None = None) -> None:
    store.write(name, (json_text(data, indent) + "\n").encode())


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest of a finished build. Raises `MissingError` and `BadInput`, saying what to do."""
    if store.size(MANIFEST) is None:
        if store.size(PLAN) is not None:
            raise MissingError(f"{store} is not finished: run the same `dit-video data build` again, it goes on")
        raise MissingError(f"{store} has no {MANIFEST}: make it with dit-video data build SRC {store}")
    manifest = read_json(store, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise BadInput(
            f"{store}: format {manifest.get('format')} of latents, this version reads {FORMAT}. Build again."
        )
    return manifest
