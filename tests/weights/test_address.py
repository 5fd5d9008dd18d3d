"""Models and exports in an object store."""

import json

import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.core.errors import BadInput
from dit_video.data.store import Store
from dit_video.weights.find import MANIFEST, find_model
from dit_video.weights.folder import load_model, save_model
from dit_video.weights.names import flatten
from dit_video.weights.runs import open_base


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://{tmp_path.name}/models/a"


def export(*args, capsys):
    code = main(["export", *map(str, args), "--to", "diffusers", "--json"])
    return code, capsys.readouterr()


def test_a_model_goes_to_a_store_and_comes_from_there(address, tiny, tmp_path, capsys):
    local = save_model(tiny, tmp_path / "local")
    code, said = export(address, "--model", local, capsys=capsys)
    assert code == 0 and json.loads(said.out)["path"] == address
    store = Store(address)
    files = (f.relative_to(local).as_posix() for f in local.rglob("*") if f.is_file())
    assert store.names() == sorted(["README.md", *files]), "an export says what it is"
    back = open_base(address)
    assert back.name == address
    mine, theirs = flatten(load_model(address).params), flatten(tiny.params)
    assert set(mine) == set(theirs)
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_what_was_fetched_is_not_fetched_again_until_it_changes(address, tiny, tmp_path, monkeypatch, capsys):
    export(address, "--model", save_model(tiny, tmp_path / "local"), capsys=capsys)
    first = find_model(address)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", lambda *_: pytest.fail("it is there already"))
        assert find_model(address) == first
    Store(address).write("README.md", b"changed")
    assert find_model(address) != first


def test_other_weights_of_the_same_size_are_fetched_though_no_manifest_tells(address, tiny, tmp_path, monkeypatch):
    store = Store(address)
    for file in (local := save_model(tiny, tmp_path / "local")).rglob("*"):
        if file.is_file() and file.name != MANIFEST:
            store.write(file.relative_to(local).as_posix(), file.read_bytes())
    first = find_model(address)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", lambda *_: pytest.fail("it is there already"))
        assert find_model(address) == first
    (name,) = (name for name in store.names() if name.startswith("vae/") and name.endswith(".safetensors"))
    tuned = bytearray(store.read(name))
    tuned[-1] ^= 1
    store.write(name, bytes(tuned))
    assert (find_model(address) / name).read_bytes() == tuned


def test_a_place_that_is_taken(address, tiny, tmp_path, capsys):
    local = save_model(tiny, tmp_path / "local")
    assert export(address, "--model", local, capsys=capsys)[0] == 0
    code, said = export(address, "--model", local, capsys=capsys)
    assert code == 2 and "--force replaces it" in said.err
    Store(address).write("stale/file", b"")
    assert export(address, "--model", local, "--force", capsys=capsys)[0] == 0
    assert "stale/file" not in Store(address).names()
    store = Store(address)
    store.fs.rm(store.path("manifest.json"))  # as an upload leaves it that was interrupted
    assert export(address, "--model", local, "--force", capsys=capsys)[0] == 0
    other = f"{address}-other"
    Store(other).write("thesis.txt", b"mine")
    code, said = export(other, "--model", local, "--force", capsys=capsys)
    assert code == 2 and "choose another place" in said.err
    assert Store(other).names() == ["thesis.txt"]


def test_what_is_not_sent_whole_is_no_model(address, tiny, tmp_path, monkeypatch, capsys):
    local, put = save_model(tiny, tmp_path / "local"), Store.writing

    def refuse(self, name):
        if name.endswith("config.json") and "vae" in name:
            raise OSError(5, "no route to host")
        return put(self, name)

    monkeypatch.setattr(Store, "writing", refuse)
    code, said = export(address, "--model", local, capsys=capsys)
    assert code == 2 and "cannot be written: no route to host" in said.err
    assert MANIFEST not in Store(address).names()
    with pytest.raises(BadInput, match=r"no model_index\.json"):
        find_model(address)


def test_half_of_a_model_over_another_is_no_model(address, tiny, tmp_path, monkeypatch, capsys):
    local, put = save_model(tiny, tmp_path / "local"), Store.writing
    assert export(address, "--model", local, capsys=capsys)[0] == 0

    def refuse(self, name):
        if name.startswith("vae/"):
            raise OSError(5, "no route to host")
        return put(self, name)

    monkeypatch.setattr(Store, "writing", refuse)
    assert export(address, "--model", local, "--force", capsys=capsys)[0] == 2
    assert "transformer/config.json" in Store(address).names()
    with pytest.raises(BadInput, match=r"no model_index\.json"):
        load_model(address)


def test_an_address_without_a_model(address):
    with pytest.raises(BadInput, match="no model_index.json"):
        find_model(address)


def test_a_name_that_leads_out_is_not_fetched(address, tiny, tmp_path, monkeypatch, capsys):
    export(address, "--model", save_model(tiny, tmp_path / "local"), capsys=capsys)
    names = Store.names
    monkeypatch.setattr(Store, "names", lambda self: [*names(self), "../../../escaped"])
    monkeypatch.setattr(Store, "size", lambda *_: 1)
    with pytest.raises(BadInput, match="leads out of its folder"):
        find_model(address)
    assert not [*tmp_path.rglob("escaped")] and not [*(tmp_path / "cache").rglob("*.json")]


def test_two_that_fetch_at_once(address, tiny, tmp_path, monkeypatch, capsys):
    export(address, "--model", save_model(tiny, tmp_path / "local"), capsys=capsys)
    copy = Store.copy

    def late(self, name, to):
        copy(self, name, to)
        other = to.parents[len(name.split("/")) - 1].parent / to.parents[len(name.split("/")) - 1].name.split(".")[1]
        other.mkdir(exist_ok=True)
        (other / "there").touch()

    monkeypatch.setattr(Store, "copy", late)
    assert (find_model(address) / "there").is_file()
