"""What more compute buys: denoisers of several sizes from random weights, against parameters and training FLOPs.

    dit-video data build toyworld latents --count 20000
    python tools/scaling.py --data latents --budget 1e14   # what is stored already is not run again

Every size trains on the same encoded clips with the same schedule, a learning rate that stays (by the root of the
width), and is measured with its average after PARTS of the budget of FLOPs: the small one makes more steps. The judge
looks from a quarter on. Stores scaling.json, row by row, and scaling.svg.

The law loss = a + b C^-c is fitted through the rows that no row of as few FLOPs beats. The loss is the mean of the
velocity errors at fixed times, a part of which no model can avoid: a stands for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trial
from measure import RESULTS, Rows

PARTS, JUDGED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), 1 / 4  # of the budget
LAW, PICTURE = "the law", "tools/results/scaling.svg"
COLUMNS = ["denoiser", "TFLOPs of training", "parameters", "steps", "held-out loss", *trial.SCORES]


def size(heads: int, depth: int) -> trial.Fields:
    """Fields of a denoiser with heads of 32; rates as they were chosen at a width of 256."""
    rate = (8 / heads) ** 0.5
    shape = {"objective.dit.heads": heads, "objective.dit.depth": depth, "objective.dit.ffn_dim": 4 * 32 * heads}
    rates = {"optimizer.lr": 1.4e-3 * rate, "optimizer.adam_lr": 7e-4 * rate}
    return {name: f"{value:g}" for name, value in (shape | rates).items()}


SIZES = {"width 64": size(2, 4), "width 128": size(4, 6), "width 192": size(6, 6), "width 256": size(8, 6)}
LASTING = {"optimizer.decay": "none", "optimizer.warmup": "50"}  # a part of a run is a run


def main(argv: list[str] | None = None) -> None:
    parser = trial.parser(__doc__, "runs/scaling")
    parser.add_argument("--budget", type=float, default=1e14, help="FLOPs of training of each (default %(default)g)")
    args = parser.parse_args(argv)
    flops = {name: trial.flops_a_step(args.experiment, args.data, fields, None) for name, fields in SIZES.items()}
    if args.quick:
        args.budget, args.count, args.clips = 4 * max(flops.values()), 2, 4
    settings = {"experiment": args.experiment, "clips": trial.clips(args.data), "budget": args.budget,
                "prompts": args.count}  # fmt: skip
    made_by = f"python tools/scaling.py --data latents --budget {args.budget:g} --count {args.count}"
    rows = Rows("scaling", args.out, COLUMNS, 2, settings, made_by)
    for name, fields in SIZES.items():
        if args.only and name not in args.only:
            continue
        for part in PARTS:
            spent = round(part * args.budget / 1e12, 6)
            if (name, spent) not in rows:
                steps = max(1, round(part * args.budget / flops[name]))
                run = args.runs / name.replace(" ", "_")
                rows.add([name, spent, *measured(run, args, fields, steps, part >= JUDGED)])
                shown(rows, args.out)


def measured(run: Path, args: Any, fields: trial.Fields, steps: int, judge: bool) -> list[Any]:
    """Trains on to so many steps: parameters, steps, loss, scores."""
    from dit_video.weights.runs import load_run

    trial.train(run, args.experiment, args.data, fields | LASTING, steps)
    model = load_run(run, step=steps)
    loss = float(np.mean(trial.velocity_errors(model, args.data, args.clips)))
    return [
        trial.parameters(model),
        steps,
        loss,
        *trial.cells(trial.judged(run, args.count)["scores"] if judge else {}),
    ]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (FLOPs, loss) that none of as few FLOPs beats."""
    return sorted(p for p in set(points) if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))


def power_law(flops: Sequence[float], loss: Sequence[float]) -> dict[str, float] | None:
    """a, b, c of loss = a + b C^-c by least squares of its logarithm, with the 95 % interval of c by Student's t from
    the curvature there. Of fewer than five points a is 0, a law of two numbers; of fewer than three there is None."""
    from scipy.optimize import curve_fit
    from scipy.stats import t

    x, y = np.log(np.asarray(flops, float)), np.log(np.asarray(loss, float))
    if len(x) < 3:
        return None
    middle, free = x.mean(), len(x) >= 5

    def law(x: np.ndarray, at: float, c: float, a: float = 0.0) -> np.ndarray:
        return np.log(a + np.exp(at - c * (x - middle)))  # b by its value in the middle: b and c are not one direction

    slope, level = np.polyfit(x - middle, y, 1)
    least = float(np.exp(y.min()))
    starts = [[np.log(np.exp(level) - part * least), max(-slope, 0.01), *([part * least] if free else [])]
              for part in ((0.1, 0.5, 0.9) if free else (0.0,))]  # fmt: skip
    bounds = ([-np.inf, -np.inf, 0.0][: 2 + free], [np.inf, np.inf, least][: 2 + free])
    fits = [curve_fit(law, x, y, start, bounds=bounds, maxfev=20_000) for start in starts]
    found, spread = min(fits, key=lambda fit: float(np.square(law(x, *fit[0]) - y).sum()))
    off = t.ppf(0.975, max(len(x) - len(found), 1)) * float(np.sqrt(spread[1, 1]))
    at, c, a = (*map(float, found), 0.0)[:3]
    low, high = float(c - off), float(c + off)
    b = float(np.exp(at + c * middle))
    return {"a": a, "b": b, "c": c, "low": low, "high": high, "points": len(x)}


def shown(rows: Rows, folder: Path) -> None:
    """The fit and the plots of what is there, beside the rows."""
    from dit_video.evals.plots import below, points

    table = [dict(zip(COLUMNS, row, strict=True)) for row in rows.rows]
    best = frontier([(row["TFLOPs of training"] * 1e12, row["held-out loss"]) for row in table])
    fit = power_law(*zip(*best, strict=True)) if best else None
    law, note = {}, "too few points on the frontier for a law"
    if fit:
        each = np.geomspace(best[0][0], best[-1][0], 30)
        law = {LAW: [(c / 1e12, fit["a"] + fit["b"] * c ** -fit["c"]) for c in each]}
        note = f"held-out loss = {fit['a']:.3g} + {fit['b']:.3g} C^-c, C in FLOPs: a power law with c = {fit['c']:.3g} "
        note += f"(95 %: {fit['low']:.2g} to {fit['high']:.2g}) through {fit['points']} points that none beats"

    def curves(by: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
        names = dict.fromkeys(row[by] for row in table)
        return {f"{name:g} TFLOPs" if by == COLUMNS[1] else name:
                sorted((row[x], row[y]) for row in table if row[by] == name and row[y] is not None)
                for name in names}  # fmt: skip

    _, spent, many, _, loss = COLUMNS[:5]
    plots = [
        points(curves("denoiser", spent, loss) | law, spent, loss, line=LAW),
        points(curves("denoiser", spent, "all"), spent, "all as asked", share=True),
        points(curves(spent, many, loss), many, loss),
        points(curves(spent, many, "all"), many, "all as asked", share=True),
    ]
    (folder / "scaling.svg").write_text(below(plots) + "\n")
    rows.keep(fit=fit, note=note, **({"picture": PICTURE} if folder.resolve() == RESULTS else {}))


if __name__ == "__main__":
    main()
