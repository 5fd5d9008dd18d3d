"""`dit-video warmup`: what it compiles is what `generate` then finds."""

import json

import jax
import pytest

from dit_video.cli import generate, warmup
from dit_video.cli.main import main
from dit_video.weights.folder import save_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty compile cache, in use; nothing that this process compiled is remembered."""
    from jax.experimental.compilation_cache import compilation_cache

    from dit_video.generate.programs import programs

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_platforms")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    programs.cache_clear()
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    programs.cache_clear()
    compilation_cache.reset_cache()


def test_a_second_process_finds_the_programs(tiny, cache, tmp_path, capsys):
    from dit_video.generate.programs import programs

    save_model(tiny, tmp_path / "model")
    line = ["warmup", "--shapes", "5x32x32", "--tokens", "32", "--model", str(tmp_path / "model"), "--json", "--quiet"]
    assert main(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["cache"] == str(cache)
    assert [(s["shape"], s["tokens"], s["image"]) for s in first["shapes"]] == [("5x32x32", 32, False)]
    assert first["shapes"][0]["programs"] >= 3  # begin, advance, decode
    programs.cache_clear()
    more = ["--output", str(tmp_path / "a.gif"), "--seed", "9", "--num_inference_steps", "3", "--quiet"]
    before = set(cache.iterdir())
    assert main(["generate", "a red circle moves right", "--model", str(tmp_path / "model"), *more]) == 0
    new = {file.name.partition("-")[0] for file in set(cache.iterdir()) - before if file.name.endswith("-cache")}
    assert not [name for name in new if name.endswith(("begin", "step", "decode"))]


def test_a_cache_in_an_object_store_is_taken_as_it_is_named(cache, monkeypatch):
    fs = __import__("fsspec").filesystem("memory")
    fs.pipe({"/bucket/jit_a-1-cache": b"1", "/bucket/jit_a-1-atime": b"2"})
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "memory://bucket")
    generate.prepare_jax("auto")
    assert jax.config.jax_compilation_cache_dir == "memory://bucket"
    assert warmup.programs(generate.compile_cache()) == {"jit_a-1-cache"}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--shapes", "17x64"], "give frames x height x width"),
        (["--shapes", ","], "give frames x height x width"),
        (["--shapes", "5x32x32,16x64x64"], "num_frames=16: this model needs 4k+1"),
        (["--shapes", "5x32x32", "--batch", "0"], "--batch 0"),
        (["--shapes", "5x32x32", "--tokens", "many"], "--tokens many"),
        (["--shapes", "5x32x32", "--tokens", "16,3x2"], "--tokens 16,3x2: give whole numbers"),
        (["--shapes", "5x32x32", "--tokens", "16,0"], "--tokens 16,0: give whole numbers"),
    ],
)
def test_bad_shapes_are_found_before_anything_is_compiled(tiny, tmp_path, monkeypatch, capsys, argv, message):
    from dit_video.generate.pipeline import VideoPipeline

    monkeypatch.setattr(generate, "prepare_jax", lambda device: None)
    monkeypatch.setattr(VideoPipeline, "run", lambda *_, **__: pytest.fail("it began to compile"))
    monkeypatch.setattr(VideoPipeline, "from_pretrained", lambda *_, **__: VideoPipeline(tiny))
    assert main(["warmup", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
