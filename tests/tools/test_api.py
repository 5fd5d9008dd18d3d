"""The API page has what users import, with what its docstrings say."""

import runpy

import pytest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error parsing type annotation:UserWarning")  # optax's own names
def test_a_page_for_every_module(checkout, tmp_path):
    pytest.importorskip("pdoc")
    runpy.run_path(str(checkout / "tools" / "api.py"))["write"](tmp_path)
    modules = [p for p in (checkout / "dit_video").rglob("*.py") if p.name != "__init__.py"]
    for module in modules:
        page = tmp_path / module.relative_to(checkout).with_suffix(".html")
        assert page.is_file(), page
    front = (tmp_path / "dit_video.html").read_text(encoding="utf-8")
    assert "VideoPipeline" in front and "from_pretrained" in front
    flow = (tmp_path / "dit_video" / "diffusion" / "flow.html").read_text(encoding="utf-8")
    assert "RectifiedFlow" in flow and "velocity_target" in flow
