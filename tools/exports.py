"""Do exported programs make the same frames, in environments that have nothing of this package?

    python -m venv hlo-env && hlo-env/bin/pip install jax flatbuffers numpy safetensors sentencepiece 'imageio[pyav]'
    python -m venv ort-env && ort-env/bin/pip install onnxruntime numpy sentencepiece 'imageio[pyav]'
    python -m venv onnx-env && onnx-env/bin/pip install jax2onnx safetensors
    python tools/exports.py --stablehlo hlo-env/bin/python --onnx ort-env/bin/python --converter onnx-env/bin/python

Prompts from the suite, seed 0, the model's defaults, float32. Stores tools/results/exports.json, or the same in --out;
exit code 1 when frames are far from generate's. (For diffusers: tools/same_frames.py.) With --wan the models are tiny
random ones of the structures of Wan 2.1 and 2.2, diffusers (`pip install '.[parity]'`) is one of the runtimes, and the
file is exports_wan.json.
"""

import argparse
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
VARIANTS = Path(__file__).resolve().parents[1] / "tests" / "weights" / "variants.py"
WAN = {"Wan 2.1 T2V": "t2v", "Wan 2.2 TI2V": "ti2v", "Wan 2.2 T2V A14B": "t2v_a14b"}
COLUMNS = ["clips", "pixels within 2/255 of generate's", "largest difference", "identical clips"]


def small(variant: str, folder: Path) -> Path:
    """A model folder of a released variant's structure, with its scheduler and random weights, for clips of no even
    sides. The last layer is toned down: random weights else make black and white, in which differences do not show."""
    from dit_video.weights.folder import save_model

    variants = runpy.run_path(str(VARIANTS))
    model = variants["variant"](variant)
    last = model.params["vae"]["decoder"]["conv_out"]
    model.params["vae"]["decoder"]["conv_out"] = {name: x * x.dtype.type(0.1) for name, x in last.items()}
    dit, size = replace(model.dit, text_len=512), replace(model.defaults, num_frames=13, height=48, width=32)
    model = replace(model, dit=dit, dit_2=model.dit_2 and dit, defaults=size, scheduler=variants["UNIPC"])
    return save_model(model, folder)


def made(name: str, model: str | None, converter: str | None, out: Path) -> Path:
    """The export, written by the command itself."""
    from dit_video.cli.main import main as dit_video

    line = ["export", str(out), "--to", name, "--quiet", *(["--model", model] if model else [])]
    if dit_video([*line, *(["--converter", converter] if name == "onnx" and converter else [])]):
        raise SystemExit(1)
    return out


def judged(made: Any, wanted: Any) -> list[Any]:
    """`COLUMNS` of frames against what generate makes."""
    from dit_video.export.verify import compare

    found = compare(made, wanted)
    near = f"{100 * found['pixels_within_2_of_255']:.3f} %"
    return [found["clips"], near, found["largest_difference"], found["identical_clips"]]


def without_this_package(python: str) -> None:
    """SystemExit where an interpreter could import it: then a run in it would prove nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([python, "-c", "import dit_video"], cwd=elsewhere, env=environment, capture_output=True)
    if not done.returncode:
        raise SystemExit(f"{python} has dit_video: name one that has only what run.py needs")


def rows(args: argparse.Namespace, model: str | None, prompts: list[str], folder: Path) -> list[list[Any]]:
    """A row a runtime: its name, `COLUMNS`, seconds a clip and megabytes, of what run.py makes in its environment."""
    from dit_video import VideoPipeline
    from dit_video.export.verify import run_export

    runtimes = {name: getattr(args, name) for name in ("stablehlo", "onnx") if getattr(args, name)}
    outs = {name: made(name, model, args.converter, folder / name) for name in runtimes}
    wanted = VideoPipeline.from_pretrained(model, dtype="float32")(prompts, seed=0).frames
    found = []
    for name, python in runtimes.items():
        without_this_package(python)
        began = time.perf_counter()
        frames = run_export(python, outs[name], prompts, 0)
        spent = (time.perf_counter() - began) / len(prompts)
        size = sum(file.stat().st_size for file in outs[name].rglob("*") if file.is_file()) / 1e6
        found.append([name, *judged(frames, wanted), round(spent, 2), round(size, 1)])
    return found


def wan_rows(args: argparse.Namespace, prompts: list[str], folder: Path) -> list[list[Any]]:
    """A row a model and runtime: both names and `COLUMNS`. A model with two denoisers goes to diffusers only."""
    from same_frames import pairs

    found = []
    for title, variant in WAN.items():
        at = folder / variant
        model = str(small(variant, at / "model"))
        if variant != "t2v_a14b":
            found += [[title, *row[: 1 + len(COLUMNS)]] for row in rows(args, model, prompts, at)]
        ours, theirs = zip(*pairs(model, prompts, at / "diffusers"), strict=True)
        found.append([title, "diffusers", *judged(theirs, ours)])
    return found


def command(args: argparse.Namespace, count: int) -> str:
    """What makes the table again. Interpreters lie elsewhere on another machine."""
    what = ["--wan"] if args.wan else ["--model", args.model] if args.model else []
    pythons = [f"--{name} PYTHON" for name in ("stablehlo", "onnx", "converter") if getattr(args, name)]
    return " ".join(["python tools/exports.py", *map(shlex.quote, what), "--count", str(count), *pythons])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help="a model folder (default: the weights on board)")
    what.add_argument("--wan", action="store_true", help="tiny random models of Wan's structures")
    parser.add_argument("--count", type=int, help="prompts (default 16, of --wan 2)")
    parser.add_argument("--stablehlo", metavar="PYTHON", help="an interpreter with what its run.py needs")
    parser.add_argument("--onnx", metavar="PYTHON", help="the same for ONNX")
    parser.add_argument("--converter", metavar="PYTHON", help="an interpreter with jax2onnx (default: this one)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the results go (default: tools/results)")
    args = parser.parse_args(argv)
    from measure import RESULTS, store

    from dit_video.evals.prompts import suite

    if not (args.stablehlo or args.onnx):
        parser.error("name at least one interpreter: --stablehlo or --onnx")
    count = args.count or (2 if args.wan else 16)
    prompts = [one.prompt for one in suite(count, "plain")]
    with tempfile.TemporaryDirectory() as folder:
        if args.wan:
            name, columns, found = "exports_wan", ["tiny, random", "", *COLUMNS], wan_rows(args, prompts, Path(folder))
        else:
            name, columns = "exports", ["", *COLUMNS, "seconds a clip, cold", "MB"]
            found = rows(args, args.model, prompts, Path(folder))
    store(name, args.out or RESULTS, made_by=command(args, count), columns=columns, rows=found)
    near = [float(row[columns.index(COLUMNS[1])][:-2]) for row in found]
    sys.exit(0 if min(near) >= 99.9 else 1)


if __name__ == "__main__":
    main()
