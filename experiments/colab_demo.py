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
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

checkouts = (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "dit_video" / "__init__.py").is_file())
if find_spec("dit_video") is None:
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
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"exit code {done.returncode}"


# %% [markdown]
"""
`doctor` says what this machine has and what is missing.
"""

# %%
shell("dit-video doctor")

# %% [markdown]
"""
## 2. Generate, and see

The first clip takes longer: programs are compiled for its size, once.
"""

# %%
from IPython.display import HTML, Video, display

from dit_video import VideoPipeline


def show(*paths: Path | str, width: int = 256) -> None:
    """Videos, side by side, in the notebook itself."""
    attributes = "controls loop autoplay muted playsinline"
    videos = [Video(str(path), embed=True, width=width, html_attributes=attributes) for path in paths]
    display(HTML(" ".join(video._repr_html_() for video in videos)))


pipe = VideoPipeline.from_pretrained()
out = pipe("a red circle moves right", seed=7)
out.save("circle.mp4", force=True)
show("circle.mp4")

# %% [markdown]
"""
The same prompt and seed give the same frames, here and on every other machine of the kind; another seed gives another
clip. Several prompts are made at once.
"""

# %%
prompts = ["a blue star moves up", "a green square spins"]
paths = pipe(prompts, seed=1).save("pair.mp4", force=True)
show(*paths)

# %% [markdown]
"""
## 3. From a picture

`image` becomes the first frame: a path, a PIL image, or an array. Here it is a frame of the clip above.
"""

# %%
picture = out.frames[0][8]
pipe("a red circle moves up", image=picture, seed=3).save("from_picture.mp4", force=True)
show("from_picture.mp4")

# %% [markdown]
"""
## 4. Through pictures

Keyframes say what is to be seen at which frame; the model finds the way between them.
"""

# %%
first, last = out.frames[0][0], out.frames[0][-1]
pipe("a red circle moves right", image=first, keyframes={16: last}, seed=5).save("keyframes.mp4", force=True)
show("keyframes.mp4")

# %% [markdown]
"""
## 5. Longer

More frames than training showed are made chunk after chunk (`long="auto"`): each goes on from the end of the one
before.
"""

# %%
pipe("a yellow circle bounces", num_frames=49, long="auto", seed=2).save("longer.mp4", force=True)
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
VideoPipeline.from_pretrained("run")("a pink star moves left", seed=4).save("trained.mp4", force=True)
show("trained.mp4")

# %% [markdown]
"""
## 7. Take it elsewhere

StableHLO: one file for CPU, CUDA and TPU, and a `run.py` that needs JAX but not this package. The same prompt and seed
give the same video. (`--to diffusers` writes a folder that diffusers opens, `--to onnx` programs for ONNX Runtime.)
"""

# %%
if find_spec("flatbuffers") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "flatbuffers"], check=True)
shell("dit-video export exported --to stablehlo --force")
shell("python exported/run.py --prompt 'a red circle moves right' --seed 7 --output elsewhere.mp4")
show("circle.mp4", "elsewhere.mp4")

# %% [markdown]
"""
## 8. Wan 2.1, 1.3 B: an accelerator and a network

The public weights are read as they are: 17 GB to download, about 8 GB of device memory in bfloat16. Change `WAN` to try
it; the first clip compiles for some minutes.
"""

# %%
WAN = False  # @param {type: "boolean"}
if WAN:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "huggingface_hub"], check=True)
    wan = VideoPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", dtype="bfloat16", progress=True)
    clip = wan("a fox runs through fresh snow, morning light", num_frames=33, num_inference_steps=30, seed=0)
    clip.save("fox.mp4", force=True)
    show("fox.mp4", width=480)
