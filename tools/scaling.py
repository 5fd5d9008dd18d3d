"""What more compute buys: denoisers of several sizes from random weights, against parameters and training FLOPs.

    dit-video data build toyworld latents --count 20000
    python tools/scaling.py --data latents --budget 1e14   # what is stored already is not run again

Every size trains on the same encoded clips with the same schedule, a learning rate that stays (by the root of the
width), and is measured with its average after PARTS of the budget of FLOPs: the small one makes more steps. The judge
looks from a quarter on. Stores scaling.json, row by row, and scaling.svg.

The law loss = a + b C^-c is fitted through the rows that no row of as few FLOPs beats. The loss is the mean of the
velocity errors at fixed times, a part of which no model can avoid: a stands for it. Of what is all as asked the logit
is a line over the logarithm of the FLOPs (through the best size of each) and over that of the parameters (through the
rows of the most FLOPs).
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
    settings = {**trial.identity(args.experiment, args.data), "clips": trial.clips(args.data), "budget": args.budget,
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


def logistic(x: Sequence[float], share: Sequence[float], count: int) -> dict[str, float] | None:
    """Slope and level of logit(share) = level + slope log10(x), by least squares weighted by how sure shares of count
    clips are (half a clip added to both sides, so that 0 and 1 count too), with the slope's 95 % interval by Student's
    t. Of fewer than three different x there is None."""
    from scipy.stats import t

    across, right = np.log10(np.asarray(x, float)), np.asarray(share, float) * count
    if len(set(x)) < 3:
        return None
    y = np.log((right + 0.5) / (count - right + 0.5))
    weight = 1 / (1 / (right + 0.5) + 1 / (count - right + 0.5))
    middle = float(np.average(across, weights=weight))
    wide = float((weight * (across - middle) ** 2).sum())
    slope = float((weight * (across - middle) * y).sum()) / wide
    level = float(np.average(y, weights=weight))
    free = len(x) - 2
    # what scatters more than clips do by chance is less sure
    scatter = max(1.0, float((weight * (y - level - slope * (across - middle)) ** 2).sum()) / free)
    off = float(t.ppf(0.975, free)) * (scatter / wide) ** 0.5
    return {"slope": slope, "level": level - slope * middle, "low": slope - off, "high": slope + off, "points": len(x)}


def best_of(table: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(TFLOPs, all as asked) of the best size at each budget."""
    found: dict[float, float] = {}
    for row in table:
        if row["all"] is not None:
            found[row[COLUMNS[1]]] = max(row["all"], found.get(row[COLUMNS[1]], 0.0))
    return sorted(found.items())


def largest(table: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(parameters, all as asked) of the rows of the most FLOPs."""
    judged = [row for row in table if row["all"] is not None]
    most = max((row[COLUMNS[1]] for row in judged), default=0.0)
    return sorted((row["parameters"], row["all"]) for row in judged if row[COLUMNS[1]] == most)


def curve_of(fit: dict[str, float] | None, points: Sequence[tuple[float, float]]) -> dict[str, list[Any]]:
    """A fitted share as a line to draw between its points."""
    if fit is None:
        return {}
    each = np.geomspace(points[0][0], points[-1][0], 30)
    return {LAW: [(x, 1 / (1 + np.exp(-fit["level"] - fit["slope"] * np.log10(x)))) for x in map(float, each)]}


def shown(rows: Rows, folder: Path) -> None:
    """The fits and the plots of what is there, beside the rows."""
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

    fits, lines = {"held-out loss by FLOPs": fit}, {}
    count = rows.shared["settings"]["prompts"]
    for what, some in (("FLOPs", best_of(table)), ("parameters", largest(table))):
        own = logistic(*zip(*some, strict=True), count) if some else None
        fits[f"all by {what}"], lines[what] = own, curve_of(own, some)
        if own:
            note += f"; the logit of all as asked rises by {own['slope']:.2g} (95 %: {own['low']:.2g} to "
            note += f"{own['high']:.2g}) for ten times the {what}, through {own['points']} points"

    def curves(by: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
        names = dict.fromkeys(row[by] for row in table)
        return {f"{name:g} TFLOPs" if by == COLUMNS[1] else name:
                sorted((row[x], row[y]) for row in table if row[by] == name and row[y] is not None)
                for name in names}  # fmt: skip

    _, spent, many, _, loss = COLUMNS[:5]
    plots = [
        points(curves("denoiser", spent, loss) | law, spent, loss, line=LAW),
        points(curves("denoiser", spent, "all") | lines["FLOPs"], spent, "all as asked", share=True, line=LAW),
        points(curves(spent, many, loss), many, loss),
        points(curves(spent, many, "all") | lines["parameters"], many, "all as asked", share=True, line=LAW),
    ]
    (folder / "scaling.svg").write_text(below(plots) + "\n")
    rows.keep(fits=fits, note=note, **({"picture": PICTURE} if folder.resolve() == RESULTS else {}))


if __name__ == "__main__":
    main()
