"""How much memory is free: in a container, what its limit leaves."""

import jax

from dit_video.generate.memory import SPARE, _container, free_memory


def test_cached_files_do_not_count_as_used(tmp_path):
    """A container that has read large files is at its limit by what it caches, and that goes when room is wanted."""
    assert _container(tmp_path) is None
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 250\nfile 650\nactive_file 50\ninactive_file 600\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("200\n")
    assert _container(tmp_path) == 0


def test_this_machine_has_some():
    assert 0 < free_memory(jax.devices()[0]) < SPARE * 2**50
