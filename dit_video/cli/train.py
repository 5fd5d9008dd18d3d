"""`dit-video train EXPERIMENT`: runs an experiment, or goes on with one that was stopped; stdout says where."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

EPILOG = """\
Any field of the experiment can be given: --steps 500 --batch 16 --mesh.data 2 --data.path clips/ --optimizer.lr 1e-3.

examples:
  dit-video train toyworld --workdir runs/a
  dit-video train experiments/finetune_folder.py --data.path clips/ --workdir runs/mine
  dit-video train toyworld --data latents --workdir runs/b     # what `dit-video data build` made, or a folder of clips
  dit-video generate "a red circle moves right" --model runs/a

Stop it with Ctrl-C or SIGTERM at any time: a checkpoint is saved, and the same line goes on from there.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("train", help="run or resume an experiment", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="a file with EXPERIMENT in it, or a name such as toyworld"
    )
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder (default: runs/<name of the experiment>)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|STEP",
        help="go on from the newest checkpoint (auto), from one, or not",
    )
    parser.add_argument("--init", metavar="MODEL", help="start from these weights, with a fresh optimizer")
    parser.add_argument("--vae", metavar="MODEL", help="train a denoiser against the VAE of this model or run")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "auto"),
        default="auto",
        help="of the computation; weights are float32 (default: as the experiment says)",
    )
    parser.add_argument("--profile", metavar="A:B", help="an XProf trace of the steps A to B, in the run's folder")
    parser.add_argument(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="for the other processes of a cluster (default %(default)g)",
    )
    parser.set_defaults(overrides={})


def run(args: argparse.Namespace) -> int:
    """Reads the experiment, applies what the command line changes, trains, prints the run's folder. Raises `BadInput`
    for an unknown experiment or field before anything is compiled."""
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.cluster import join_cluster
    from dit_video.core.config import dtype_changes, load_experiment, override
    from dit_video.core.cores import one_device_a_core
    from dit_video.core.errors import BadInput

    experiment = load_experiment(args.experiment)
    changes = dict(args.overrides)
    if "data" in changes:
        from dit_video.data.latents import source_at

        experiment = replace(experiment, data=source_at(changes.pop("data")))
    if args.init is not None:
        changes["init"] = args.init
    if args.vae is not None:
        changes["vae"] = args.vae
    changes |= dtype_changes(experiment, args.experiment, args.dtype)
    experiment = override(experiment, changes)
    for name in ("init", "vae"):  # a run is opened from other folders, too
        given = getattr(experiment, name)
        if given is not None and Path(given).expanduser().exists():
            experiment = replace(experiment, **{name: str(Path(given).expanduser().resolve())})
    if "://" in (args.workdir or ""):
        raise BadInput(
            f"--workdir {args.workdir}: runs are written to folders. Mount the bucket (gcsfuse, s3fs), or let "
            "`dit-video launch` do it."
        )
    workdir = Path(args.workdir or Path("runs") / Path(args.experiment).stem)
    if join_cluster(args.wait) is None and experiment.cores:
        one_device_a_core(args.device, experiment.fits)
    prepare_jax(args.device)

    from dit_video.train.loop import train
    from dit_video.train.watch import profile_steps

    profile = profile_steps(args.profile) if args.profile else None
    summary = train(experiment, workdir, resume=args.resume, sample=write_samples, profile=profile)
    if args.json:
        print(json.dumps({"path": str(workdir), **summary}))
    else:
        print(workdir)
    return 0


def write_samples(model: Any, experiment: Any, folder: Path, step: int) -> None:
    """One clip for each of the experiment's prompts as MP4, and a contact sheet of them all; a model that goes on from
    pictures is given those of held-out clips. Of a VAE a sheet of clips beside what it makes of them."""
    from dit_video.models.vae import VAE

    if isinstance(model, VAE):
        _reconstructions(model, experiment, folder, step)
        return
    import numpy as np

    from dit_video.data.video import contact_sheet, write_video
    from dit_video.generate.mode import wanted
    from dit_video.generate.output import Output
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.programs import to_pixels

    pipe = VideoPipeline(model)
    if given := wanted(model):
        captions, video = _footage(experiment, len(experiment.prompts) or 4)
        clips = np.asarray(to_pixels(video))
        out = Output([
            pipe(
                prompt, seed=experiment.seed, num_frames=len(clip), height=clip.shape[1], width=clip.shape[2],
                **{name: clip[-1 if name == "last_image" else 0] for name in given},
            ).clips[0]
            for prompt, clip in zip(experiment.prompts or captions, clips, strict=True)
        ], experiment.seed)  # fmt: skip
    else:
        prompts = list(experiment.prompts) or experiment.data.open(experiment.buckets).captions(4)
        out = pipe(prompts, seed=experiment.seed)
    out.save(folder / f"step_{step:06d}.mp4", force=True)
    write_video(folder / f"step_{step:06d}.png", contact_sheet(out.frames)[None], 1.0)


def _footage(experiment: Any, count: int) -> tuple[tuple[str, ...], Any]:
    """Captions of held-out clips, and their frames in [-1, 1] (count, T, H, W, 3)."""
    from dit_video.data.loader import Loader

    reader = experiment.data.open(experiment.buckets, held_out=True)
    clips = next(Loader(reader, count))
    return clips.captions, reader.frames(clips.arrays, clips.bucket)


def _reconstructions(vae: Any, experiment: Any, folder: Path, step: int) -> None:
    import jax
    import numpy as np
    from flax import nnx

    from dit_video.data.video import contact_sheet, write_video
    from dit_video.generate.programs import to_pixels

    _, video = _footage(experiment, 4)
    graph, params = nnx.split(vae)

    @jax.jit
    def through(params: Any, video: Any) -> Any:
        vae = nnx.merge(graph, params)
        return vae.decode(vae.encode(video)[0])

    again = through(params, video)
    frames = [np.asarray(to_pixels(to)) for pair in zip(video, again, strict=True) for to in pair]
    write_video(folder / f"step_{step:06d}.png", contact_sheet(frames)[None], 1.0)
