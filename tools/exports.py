"""Do exported programs make the same frames, in environments that have nothing of this package?

    python -m venv hlo-env && hlo-env/bin/pip install jax flatbuffers numpy safetensors sentencepiece 'imageio[pyav]'
    python -m venv ort-env && ort-env/bin/pip install onnxruntime numpy sentencepiece 'imageio[pyav]'
    python -m venv onnx-env && onnx-env/bin/pip install jax2onnx safetensors
    python tools/exports.py --stablehlo hlo-env/bin/python --onnx ort-env/bin/python --converter onnx-env/bin/python

Prompts from the suite, seed 0, the model's defaults, float32. Stores tools/results/exports.json. (For diffusers:
tools/same_frames.py.)
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def made(name: str, args: argparse.Namespace, out: Path) -> Path:
    """The export, written by the command itself."""
    from dit_video.cli.main import main as dit_video

    line = ["export", str(out), "--to", name, "--quiet", *(["--model", args.model] if args.model else [])]
    if dit_video([*line, *(["--converter", args.converter] if name == "onnx" and args.converter else [])]):
        raise SystemExit(1)
    return out


def row(name: str, python: str, out: Path, prompts: list[str], wanted: Any) -> list[Any]:
    """What run.py makes in that environment, against what generate makes."""
    from dit_video.export.verify import compare, run_export

    began = time.perf_counter()
    found = compare(run_export(python, out, prompts, 0), wanted)
    spent = (time.perf_counter() - began) / len(prompts)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    near = f"{100 * found['pixels_within_2_of_255']:.3f} %"
    return [
        name,
        found["clips"],
        near,
        found["largest_difference"],
        found["identical_clips"],
        round(spent, 2),
        round(size, 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder (default: the weights on board)")
    parser.add_argument("--count", type=int, default=16, help="prompts (default %(default)s)")
    parser.add_argument("--stablehlo", metavar="PYTHON", help="an interpreter with what its run.py needs")
    parser.add_argument("--onnx", metavar="PYTHON", help="the same for ONNX")
    parser.add_argument("--converter", metavar="PYTHON", help="an interpreter with jax2onnx (default: this one)")
    args = parser.parse_args()
    from measure import store

    from dit_video import VideoPipeline
    from dit_video.evals.prompts import suite

    runtimes = {name: getattr(args, name) for name in ("stablehlo", "onnx") if getattr(args, name)}
    if not runtimes:
        parser.error("name at least one interpreter: --stablehlo or --onnx")
    prompts = [one.prompt for one in suite(args.count, "plain")]
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: made(name, args, Path(folder) / name) for name in runtimes}
        wanted = VideoPipeline.from_pretrained(args.model, dtype="float32")(prompts, seed=0).frames
        rows = [row(name, python, outs[name], prompts, wanted) for name, python in runtimes.items()]
    columns = ["", "clips", "pixels within 2/255 of generate's", "largest difference", "identical clips",
               "seconds a clip, cold", "MB"]  # fmt: skip
    store("exports", made_by=f"python tools/exports.py --count {args.count}", columns=columns, rows=rows)
    sys.exit(0 if all(float(row[2][:-2]) >= 99.9 for row in rows) else 1)


if __name__ == "__main__":
    main()
