"""Weights in files: one or several with an index, written a tensor at a time; damage has a name."""

import json
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dit_video.core.errors import BadInput, MissingError
from dit_video.weights.names import Foreign
from dit_video.weights.shards import Shards, differing, write


@pytest.fixture
def arrays(rng):
    return {
        "a.weight": rng.standard_normal((5, 7)).astype(np.float32),
        "b.weight": rng.standard_normal((3, 3)).astype(jnp.bfloat16),
        "c.bias": rng.standard_normal(4).astype(np.float16),
        "d.weight": rng.standard_normal((2, 5, 7)).astype(np.float32).swapaxes(0, 2),  # not contiguous
    }


def lazy(arrays):
    return {name: Foreign(a.shape, a.dtype, partial(np.asarray, a)) for name, a in arrays.items()}


@pytest.fixture
def folder(arrays, tmp_path):
    write(tmp_path, "model.safetensors", lazy(arrays), limit=150)
    return tmp_path


def test_one_file_is_what_the_library_reads(arrays, tmp_path):
    write(tmp_path, "model.safetensors", lazy(arrays))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    there = load_file(tmp_path / "model.safetensors")
    assert there.keys() == arrays.keys()
    for name, array in arrays.items():
        assert there[name].dtype == array.dtype
        np.testing.assert_array_equal(there[name], array)


def test_shards_and_index(arrays, folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(arrays)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert sorted(set(index["weight_map"].values())) == sorted(f.name for f in folder.glob("*.safetensors"))
    assert index["weight_map"]["a.weight"] == "model-00001-of-00003.safetensors"
    shards = Shards(folder)
    for name, array in arrays.items():
        np.testing.assert_array_equal(shards.read(name), array)
    assert differing(folder, lazy(arrays)) == []
    changed = arrays | {"a.weight": arrays["a.weight"] + 1e-6, "e": np.zeros(1, np.float32)}
    assert differing(folder, lazy(changed)) == ["e", "a.weight"]


def test_a_truncated_shard(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BadInput, match=r"model-00002-of-00003\.safetensors: the weights cannot be read .*damaged"):
        Shards(folder)


def test_a_missing_shard(folder):
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(MissingError, match=r"names model-00003-of-00003\.safetensors, not there"):
        Shards(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(BadInput, match="no index that says which belong together"):
        Shards(folder)


def test_an_index_of_another_checkpoint(folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({"weight_map": {k: v for k, v in index["weight_map"].items() if k != "c.bias"}}))
    with pytest.raises(BadInput, match=r"the index lacks c\.bias of model-00002"):
        Shards(folder)
    file.write_text(json.dumps({"weight_map": index["weight_map"] | {"x": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(BadInput, match=r"the index says x stands in model-00001-of-.*, and it does not"):
        Shards(folder)
    file.write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        Shards(folder)


def test_pickles_and_strange_dtypes_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle: reading one runs whatever program"):
        Shards(tmp_path)
    with pytest.raises(BadInput, match="is a pickle"):
        Shards(tmp_path / "pytorch_model.bin")
    save_file({"a": np.zeros(3, np.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="stored as I64"):
        Shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no weights"):
        Shards(tmp_path / "empty")
