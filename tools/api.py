"""The API page: what the docstrings say, as HTML.

    pip install '.[docs]' && python tools/api.py api

Open api/index.html then.
"""

import argparse
import pkgutil
from pathlib import Path


def write(out: Path) -> None:
    """A page for every module of the package, and an index that searches them."""
    import pdoc

    import dit_video

    parts = [part.name for part in pkgutil.iter_modules(dit_video.__path__, "dit_video.")]
    pdoc.render.configure(docformat="markdown", show_source=False, search=True)
    pdoc.pdoc("dit_video", *parts, output_directory=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("api"), help="folder (default %(default)s)")
    out = parser.parse_args().out
    write(out)
    print(out / "index.html")


if __name__ == "__main__":
    main()
