"""Short trainings of one budget, each with one choice of the recipe changed, and what is measured of each.

    dit-video data build toyworld latents --count 20000
    python tools/ablate.py --data latents --steps 250           # all; what is stored already is not run again
    python tools/ablate.py --data latents --steps 250 --only recipe --only adamw

All train on the same encoded clips from the same weights (--init); those of another size start from random weights, and
beside them stands the recipe that does. The budget is that of --steps steps of the recipe in FLOPs: what costs more a
step makes fewer. Rows go to ablation.json as they are done; rows for the ledger are printed. No winner is chosen here.
"""

import datetime
from typing import Any

import trial
from measure import Rows

RANDOM = "recipe from random weights"
# Axis -> name -> fields of the experiment.
VARIANTS: dict[str, dict[str, trial.Fields]] = {
    "": {"recipe": {}},
    "time": {
        "uniform": {"objective.path.time": "uniform"},
        "logit-normal(0, 1)": {"objective.path.mean": "0", "objective.path.std": "1"},
        "shift 1": {"objective.path.shift": "1"},
        "shift 6": {"objective.path.shift": "6"},
    },
    "optimizer": {
        "adamw 7e-4": {"optimizer.kind": "adamw", "optimizer.lr": "7e-4"},
        "adamw 1.4e-3": {"optimizer.kind": "adamw", "optimizer.lr": "1.4e-3"},
        "muon 7e-4": {"optimizer.lr": "7e-4", "optimizer.adam_lr": "3.5e-4"},
        "muon 2.8e-3": {"optimizer.lr": "2.8e-3", "optimizer.adam_lr": "1.4e-3"},
    },
    "conditions": {
        "text alone": {f"objective.conditions.{name}": "0" for name in
                       ("first", "picture", "tail", "tail_with_sink", "window")},
        "text a third": {"objective.conditions.text": "0.2"},
        "no dropped captions": {"objective.conditions.drop_caption": "0"},
    },
    "size": {  # from random weights
        RANDOM: {},
        "patch 1": {"objective.dit.patch": "1,1,1"},
        "half the width": {"objective.dit.heads": "4", "objective.dit.ffn_dim": "512", "optimizer.lr": "2e-3"},
        "half the depth": {"objective.dit.depth": "3"},
        "puts out velocity": {"objective.dit.predicts": "velocity"},
    },
}  # fmt: skip
SAMPLING = {"guidance": ("1", "2", "4", "6"), "steps": ("8", "32"), "solver": ("euler", "dpmpp_2m")}


def main(argv: list[str] | None = None) -> None:
    parser = trial.parser(__doc__, "runs/ablation")
    parser.add_argument("--steps", type=int, default=250, help="of the recipe (default %(default)s)")
    parser.add_argument("--init", default="board", help="weights to start from (default: those on board)")
    parser.add_argument("--also", action="append", default=[], metavar="DATA", help="the toyworld encoded by another "
                        "VAE, of another latent width say: a row of its size; repeatable")  # fmt: skip
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.count, args.clips = 2, 2, 4
    columns = ["axis", "changed", "steps", "parameters", "clips a second",
               *(f"error at t = {t:g}" for t in trial.TIMES), *trial.SCORES]  # fmt: skip
    settings = {**trial.identity(args.experiment, args.data, args.init), "clips": trial.clips(args.data),
                "steps": args.steps, "prompts": args.count}  # fmt: skip
    rows = Rows("ablation", args.out, columns, 2, settings, "python tools/ablate.py --data latents --steps "
                f"{args.steps} --count {args.count}")  # fmt: skip
    wanted = [(axis, name, fields, args.data) for axis, each in VARIANTS.items() for name, fields in each.items()]
    for data in args.also:
        z = trial.manifest(data)["vae"]["z"]
        fields = {f"objective.dit.{side}_channels": str(z) for side in ("in", "out")}
        wanted.append(("size", f"{z} latent channels", fields, data))
    budget = None
    for axis, name, fields, data in wanted:
        if (axis, name) in rows or (args.only and name not in args.only):
            continue
        budget = budget or args.steps * trial.flops_a_step(args.experiment, args.data, {}, args.init)
        measured(rows, args, budget, axis, name, fields, data)
    print(*ledger(rows.rows, settings), sep="\n")


def measured(rows: Rows, args: Any, budget: float, axis: str, name: str, fields: trial.Fields, data: str) -> None:
    """Trains one, and adds its row; of the recipe also what other ways to sample from it give."""
    from dit_video.weights.runs import load_run

    init = None if axis == "size" else args.init
    steps = max(1, round(budget / trial.flops_a_step(args.experiment, data, fields, init)))
    run = args.runs / "_".join([axis, *name.split()]).strip("_")
    trial.train(run, args.experiment, data, fields, steps, init)
    model = load_run(run, step=steps)
    errors = trial.velocity_errors(model, data, args.clips) if data == args.data else [None] * len(trial.TIMES)
    by = [f"--by={by}={','.join(values)}" for by, values in SAMPLING.items() if name == "recipe"]
    report = trial.judged(run, args.count, *by, f"--by_count={args.count}")
    about = [steps, trial.parameters(model), trial.speed(run)]
    for other in SAMPLING if by else ():
        for value, scores in report["splits"][other].items():
            rows.add(["sampling", f"{other} {value}", *about, *errors, *trial.cells(scores)])
    rows.add([axis, name, *about, *errors, *trial.cells(report["scores"])])


def ledger(rows: list[list[Any]], settings: dict[str, Any]) -> list[str]:
    """A row for each axis, with the recipe in front: errors at TIMES; shares right of SCORES, in per cent."""

    def said(row: list[Any]) -> str:
        errors = [f"{e:.3f}".lstrip("0") for e in row[5 : 5 + len(trial.TIMES)] if e is not None]
        scores = ["-" if s is None else f"{100 * s:.0f}" for s in row[5 + len(trial.TIMES) :]]
        return f"{row[1]} ({row[2]} steps): {' '.join([] if row[0] == 'sampling' else errors)}; {' '.join(scores)}"

    recipe, day = [row for row in rows if row[1] == "recipe"], datetime.date.today().isoformat()
    what = f"{settings['clips']} clips, {settings['prompts']} prompts; velocity error at t = "
    what += f"{', '.join(f'{t:g}' for t in trial.TIMES)}; {', '.join(trial.SCORES)} %"
    lines = []
    for axis in dict.fromkeys(row[0] for row in rows if row[0]):
        own = [*(recipe if axis != "size" else []), *(row for row in rows if row[0] == axis)]
        start = "random weights" if axis == "size" else settings["init"]["name"]
        lines.append(f"| {day} | ablation, {axis}, from {start}, {what} | {'. '.join(map(said, own))} |")
    return lines


if __name__ == "__main__":
    main()
