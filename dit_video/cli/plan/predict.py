"""From compiled programs to a plan: what fits, how long a step takes and why.

Nothing is fitted. Kernels are taken at the peak of what they do, products and softmax in turns, and large products
outside of kernels at nine tenths of theirs; `tools/plan_table.py published` holds the predictions beside what others
measured. (The one training figure there would ask for 1.04 of the kernels' peak.)
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh

from dit_video.cli.plan import abstract
from dit_video.cli.plan.abstract import Program, device_bytes
from dit_video.cli.plan.chips import Chip, wiring
from dit_video.cli.plan.costs import Cost, Efficiency, cost
from dit_video.cli.plan.hlo import parse
from dit_video.core.config import override
from dit_video.core.log import log
from dit_video.core.mesh import make_mesh
from dit_video.train import step
from dit_video.train.experiment import Experiment
from dit_video.train.lora import FineTune

EFFICIENCY = Efficiency(products=0.9)  # assumed: of large products outside of kernels


@dataclass(frozen=True)
class Target:
    """Devices to plan for. `hbm`: bytes that one of them has, infinity where nobody knows."""

    name: str
    chips: int
    devices: list[Any]
    chip: Chip | None  # None: no data sheet, so memory only
    hbm: float

    def costs(self, program: Program, mesh: Mesh) -> Cost:
        """Of a program compiled for `mesh`, whose order of devices its collectives count in."""
        if self.chip is None:
            return Cost()
        return cost(parse(program.text), wiring(self.chip, [*mesh.devices.flat]), EFFICIENCY)


@dataclass(frozen=True)
class Plan:
    """What `dit-video plan` says. Bytes are those of one device, seconds those of a step (or of a clip)."""

    target: Target
    what: str
    hbm: dict[str, int]
    fits: bool
    cost: Cost
    parts: dict[str, Cost] = field(default_factory=dict)
    model_flops: float = 0.0
    tokens: int = 0
    compile_seconds: float = 0.0
    change: str | None = None  # what would make it fit

    @property
    def timed(self) -> bool:
        """Whether its seconds mean something."""
        return self.fits and self.target.chip is not None and not self.cost.unread

    @property
    def mfu(self) -> float | None:
        chip = self.target.chip
        known = chip and self.timed and self.cost.seconds
        return self.model_flops / (self.cost.seconds * self.target.chips * chip.flops) if known else None

    def price(self, an_hour: float, times: int = 1000) -> float:
        """Of `times` steps, at a price of a chip for an hour."""
        return an_hour * self.target.chips * self.cost.seconds * times / 3600

    def report(self) -> dict[str, Any]:
        """Plain data."""
        c, timed = self.cost, self.timed
        return {
            "fits": self.fits,
            "topology": self.target.name,
            "chips": self.target.chips,
            "what": self.what,
            "hbm_bytes": self.hbm,
            "hbm_limit": int(self.target.hbm) if math.isfinite(self.target.hbm) else None,
            "step_seconds": c.seconds if timed else None,
            "by": {"compute": c.compute, "memory": c.memory, "collectives": c.collectives, "exposed": c.exposed}
            if timed else None,
            "parts": {name: None if part.unread else part.seconds for name, part in self.parts.items()}
            if self.fits and self.target.chip else None,
            "tokens": self.tokens,
            "model_flops": self.model_flops,
            "program_flops": c.flops * len(self.target.devices),
            "collective_bytes": c.wire,
            "kernel_seconds": c.kernel_seconds,
            "mfu": self.mfu,
            "compile_seconds": round(self.compile_seconds, 1),
            "change": self.change,
        }  # fmt: skip


def plan_training(experiment: Experiment, target: Target, search: bool = True) -> Plan:
    """A step of the heaviest batch. With `search`, where it does not fit, the first change of `changes` that makes it
    fit is compiled too, and named."""
    plan, count = _plan_training(experiment, target), len(target.devices)
    if plan.fits or not search:
        return plan
    tried = ((flags, changed) for flags, changed in changes(experiment) if changed.fits(count))
    otherwise = "more chips: no change of remat, mesh or averages tried here is enough"
    return with_change(plan, tried, lambda changed: _plan_training(changed, target), otherwise)


def with_change(
    plan: Plan, tried: Iterator[tuple[str, Experiment]], again: Callable[[Experiment], Plan], otherwise: str
) -> Plan:
    """A plan that does not fit, with the flags of the first change that makes it fit; what to do `otherwise`."""
    for flags, changed in tried:
        log.info("does not fit; trying %s", flags)
        other = again(changed)
        if other.fits:
            return replace(plan, change=flags, compile_seconds=plan.compile_seconds + other.compile_seconds)
    return replace(plan, change=otherwise)


def _plan_training(experiment: Experiment, target: Target) -> Plan:
    run = abstract.train(experiment, make_mesh(experiment.mesh, target.devices))
    hbm = {
        "parameters": device_bytes(run.state.params),
        "optimizer": device_bytes(run.state.opt),
        "ema": device_bytes(run.state.ema),
        "frozen": device_bytes(run.frozen),
    }
    resident, seconds = sum(hbm.values()), 0.0
    parts, peaks, activations, whole = {}, [], 0, True
    for make in run.programs():
        try:
            program = make()
        except jax.errors.JaxRuntimeError as error:
            peaks.append(refused(error))
            whole = False
            break
        seconds += program.seconds
        parts[program.name] = target.costs(program, run.mesh)
        # The update is given all of the state and the gradients; the first half has only a part of it as arguments.
        peaks.append(max(resident, program.arguments) + program.temporaries + program.outputs)
        activations = max(activations, program.temporaries)
    key = jax.eval_shape(lambda: jax.random.key(0))
    flops = step.model_flops(run.objective, run.experiment.rules, run.state.params, run.batch, key)
    hbm |= {"gradients": device_bytes(run.state.ema[0]), "activations": activations, "total": max(peaks)}
    return Plan(
        target, run.size, hbm, whole and max(peaks) <= target.hbm, sum(parts.values(), Cost()), parts,
        flops, run.tokens, seconds,
    )  # fmt: skip


def refused(error: Exception) -> int:
    """Bytes that the compiler would have needed, from what it said when it gave up. Raises the error again when it is
    about something else."""
    said = r"[Uu]sed ([\d.]+)([KMGT])i?B? of |memory required for [^(]*\(([\d.]+)([KMGT])\) exceeds"
    found = re.search(said, str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or found is None:
        raise error
    number, unit = (part for part in found.groups() if part)
    return int(float(number) * 1024.0 ** ("KMGT".index(unit) + 1))


def changes(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Changes that save memory, as flags, the cheapest in time first, each with all before it."""
    flags: dict[str, str] = {}

    def so_far() -> tuple[str, Experiment]:
        return " ".join(f"--{name} {value}" for name, value in flags.items()), override(experiment, flags)

    prefix = "objective.denoise.dit" if isinstance(experiment.objective, FineTune) else "objective.dit"
    holder = experiment.objective.denoise if isinstance(experiment.objective, FineTune) else experiment.objective
    dit = getattr(holder, "dit", None)
    shape = experiment.mesh
    if shape.data != 1:
        total = "-1" if -1 in (shape.data, shape.fsdp) else str(shape.data * shape.fsdp)
        flags |= {"mesh.data": "1", "mesh.fsdp": total}
        yield so_far()
    if dit is not None:
        order = ["none", "dots", "attention", "block"]
        for policy in order[order.index(dit.remat) + 1 :]:
            flags[f"{prefix}.remat"] = policy
            yield so_far()
    if len(experiment.ema) > 1:
        flags["ema"] = str(max(experiment.ema))
        yield so_far()
    if dit is not None:
        moved, fsdp = "mesh.fsdp" in flags, int(flags.get("mesh.fsdp", shape.fsdp))
        for parts in (2, 4):
            # The devices for it come from fsdp.
            if dit.heads % (shape.context * parts) or (fsdp > 0 and fsdp % parts):
                continue
            flags["mesh.context"] = str(shape.context * parts)
            if fsdp > 0:
                flags["mesh.fsdp"] = str(fsdp // parts)
            if fsdp > 0 and not moved:
                flags["batch"] = str(max(experiment.batch // parts, 1))
            yield so_far()
