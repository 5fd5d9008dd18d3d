# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# dit_video: video of text, in JAX

Install, generate and see, start from a picture, pass through pictures, go on for longer, train and watch the samples
come, and take the model elsewhere. Everything but the last section runs on a CPU and without a network.

The weights that come with the package were trained on a small world of moving shapes: a prompt names a colour, a shape
and a motion, such as *a red circle moves right*.
"""

# %% [markdown]
"""
## 1. Where to run

The one switch. In Colab, first choose the same under *Runtime > Change runtime type*.
"""

# %%
DEVICE = "CPU"  # @param ["CPU", "T4", "TPU"]
ADDRESS = ""  # where pip finds the package when there is no checkout around this notebook
STEPS = {"CPU": 6, "T4": 300, "TPU": 300}[DEVICE]  # of the short training

# %%
import os
import shlex
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # of a GPU's memory: processes take what they need


def installed(package: str) -> bool:
    """With what it needs. A checkout that lies here can be found too, and has no dependencies."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


checkouts = (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "dit_video" / "__init__.py").is_file())
if not installed("dit_video"):
    source = next(checkouts, ADDRESS)
    assert source, "clone the repository and open the notebook there, or put its address into ADDRESS"
    extra = {"CPU": "", "T4": "[cuda]", "TPU": "[tpu]"}[DEVICE]
    package = f"{source}{extra}" if Path(source).is_dir() else f"dit_video{extra} @ {source}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)


def shell(line: str) -> None:
    """Runs a command as a terminal does, and shows what it says."""
    print("$", line)
    words = shlex.split(line)
    words[:1] = [sys.executable, "-m", "dit_video.cli.main"] if words[0] == "dit-video" else [sys.executable]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for said in process.stdout:
            print(said, end="")
    assert process.returncode == 0, f"exit code {process.returncode}"


# %% [markdown]
"""
`doctor` says what this machine has and what is missing.
"""

# %%
shell(f"dit-video doctor --device {({'CPU': 'cpu', 'T4': 'gpu', 'TPU': 'tpu'})[DEVICE]}")

# %% [markdown]
"""
## 2. Generate, and see

The first clip takes longer: programs are compiled for its size, once.

Here all is done by commands, each a process of its own. In Python it is
`VideoPipeline.from_pretrained()("a red circle moves right", seed=7).save("circle.mp4")`; but a TPU serves one process
at a time, and a notebook that held it would keep it from the training and the export below.
"""

# %%
from IPython.display import HTML, Video, display
from PIL import Image

from dit_video.data.video import read_video


def show(*paths: Path | str, width: int = 256) -> None:
    """Videos, side by side, in the notebook itself."""
    attributes = "controls loop autoplay muted playsinline"
    videos = [Video(str(path), embed=True, width=width, html_attributes=attributes) for path in paths]
    display(HTML(" ".join(video._repr_html_() for video in videos)))


shell("dit-video generate 'a red circle moves right' --seed 7 --output circle.mp4 --force")
show("circle.mp4")

# %% [markdown]
"""
The same prompt and seed give the same frames, here and on every other machine of the kind; another seed gives another
clip. Several prompts are made at once.
"""

# %%
shell("dit-video generate 'a blue star moves up' 'a green square spins' --seed 1 --output pair.mp4 --force")
show("pair_0.mp4", "pair_1.mp4")

# %% [markdown]
"""
## 3. From a picture

`--image` becomes the first frame. Here it is a frame of the clip above.
"""

# %%
frames = read_video("circle.mp4").frames
Image.fromarray(frames[8]).save("picture.png")
shell("dit-video generate 'a red circle moves up' --image picture.png --seed 3 --output from_picture.mp4 --force")
show("from_picture.mp4")

# %% [markdown]
"""
## 4. Through pictures

Keyframes say what is to be seen at which frame; the model finds the way between them.
"""

# %%
for name, number in {"first.png": 0, "last.png": -1}.items():
    Image.fromarray(frames[number]).save(name)
shell(
    "dit-video generate 'a red circle moves right' --image first.png --keyframe 16=last.png --seed 5 "
    "--output keyframes.mp4 --force"
)
show("keyframes.mp4")

# %% [markdown]
"""
## 5. Longer

More frames than training showed are made chunk after chunk (`--long auto`): each goes on from the end of the one
before.
"""

# %%
shell("dit-video generate 'a yellow circle bounces' --num_frames 49 --long auto --seed 2 --output longer.mp4 --force")
show("longer.mp4")

# %% [markdown]
"""
## 6. Train, and watch

A folder of clips, each with its caption in a text file beside it, is a training set; `data toyworld` renders one. The
run starts from the weights on board and shows what it can do by now while it goes on. A handful of steps teaches
nothing: it is the same command with `--steps 500` that does.
"""

# %%
shell("dit-video data toyworld clips --count 16 --seed 5 --force")
half = max(STEPS // 2, 1)
line = (
    f"dit-video train finetune_folder --data.path clips --workdir run --resume never --steps {STEPS} --batch 2 "
    f"--sample_every {half} --checkpoint_every {STEPS} --eval_every {STEPS} --eval_batches 1 --objective.pool.clips 16"
)
print("$", line)
words = [sys.executable, "-m", "dit_video.cli.main", *shlex.split(line)[1:]]
seen: set[Path] = set()
with open("train.log", "w") as log:
    training = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    while True:
        running = training.poll() is None  # asked before looking, so that the last samples are not missed
        new = sorted(set(Path("run/samples").glob("step_*.mp4")) - seen)
        if new:
            print(f"samples of step {int(new[0].stem.split('_')[1])}")
            show(*new, width=160)
            seen.update(new)
        if not running:
            break
        time.sleep(1)
print(Path("train.log").read_text()[-1500:])
assert training.returncode == 0, "the training did not end well: see above"

# %% [markdown]
"""
A run is a model like any other.
"""

# %%
shell("dit-video generate 'a pink star moves left' --model run --seed 4 --output trained.mp4 --force")
show("trained.mp4")

# %% [markdown]
"""
## 7. Take it elsewhere

StableHLO: one file for CPU, CUDA and TPU, and a `run.py` that needs JAX but not this package. The same prompt and seed
give the same video in the same dtype; on accelerators `generate` takes bfloat16, and an export float32 unless `--dtype`
says otherwise. (`--to diffusers` writes a folder that diffusers opens, `--to onnx` programs for ONNX Runtime.)
"""

# %%
if find_spec("flatbuffers") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "flatbuffers"], check=True)
shell("dit-video export exported --to stablehlo --force")
shell("python exported/run.py --prompt 'a red circle moves right' --seed 7 --output elsewhere.mp4 --force")
show("circle.mp4", "elsewhere.mp4")

# %% [markdown]
"""
## 8. Wan 2.1, 1.3 B: an accelerator and a network

The public weights are read as they are: 17 GB to download. In bfloat16 the weights are 14 GB, of which the text
encoder's 11.4 GB are on the device at once; with `--weights int8` they are 8 GB. Change `WAN` to try it; the first clip
compiles for some minutes.
"""

# %%
WAN = False  # @param {type: "boolean"}
if WAN:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "huggingface_hub"], check=True)
    shell(
        "dit-video generate 'a fox runs through fresh snow, morning light' --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers "
        "--dtype bfloat16 --num_frames 33 --num_inference_steps 30 --seed 0 --output fox.mp4 --force"
    )
    show("fox.mp4", width=480)
