"""`dit-video plan EXPERIMENT`: will it fit, and how fast will it go? Compiled for the machine, without the machine.

The verb; beside it what it composes: `abstract` and `generation` compile, `hlo` and `kernels` read what was compiled,
`costs` adds up with the data sheets of `chips`, `predict` makes a plan of it.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_video.cli.plan.predict import Plan

EPILOG = """\
The programs that `train` (or `generate`) would run are compiled with the real compiler: for a TPU slice that is named,
from anywhere (it needs libtpu: pip install 'jax[tpu]'), else for the devices of this machine. Memory is the compiler's
word; times are read from the program and data sheets. Any field of the experiment can be given, as for train; what
--data names changes no shape and is not looked at.

examples:
  dit-video plan wan_1_3b_v5e_16
  dit-video plan wan_14b_v5p_32 --topology v5p:4x4x4 --batch 16 --price 4.2
  dit-video plan wan_14b_generate_v6e_8 --generate

exit code 2: it does not fit.
"""
GIB = 2**30


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan", help="memory and speed of a run, before it is paid for", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a file with EXPERIMENT in it, or a name")
    parser.add_argument("--topology", metavar="NAME", help="v5e:4x4, v5p:2x4x4, v6e:8x8, tpu7x:2x2x2, ... (default: "
                        "the one that the experiment's docstring names); local: the devices here")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="of this machine")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="as for train")
    parser.add_argument("--generate", action="store_true", help="plan for generating a clip instead of training")
    parser.add_argument("--steps_per_clip", type=int, metavar="N", help="with --generate (default: 50)")
    parser.add_argument("--price", type=float, metavar="X", help="of a chip for an hour, in any currency")
    parser.add_argument("--no_search", action="store_true", help="do not look for a change that makes it fit")
    parser.set_defaults(overrides={})


def run(args: argparse.Namespace) -> int:
    """Compiles, reads, prints. 0: it fits; 2: it does not. Raises BadInput, MissingError."""
    from dit_video.cli.launch import named_slice
    from dit_video.core.config import dtype_changes, load_experiment, override
    from dit_video.core.errors import BadInput

    fields = {name: value for name, value in args.overrides.items() if name != "data"}
    experiment = load_experiment(args.experiment)
    experiment = override(experiment, fields | dtype_changes(experiment, args.experiment, args.dtype))
    if args.price is not None and args.price <= 0:
        raise BadInput(f"--price {args.price:g}: more than 0")
    steps = args.steps_per_clip
    if steps is not None and (steps < 1 or not args.generate):
        raise BadInput(f"--steps_per_clip {steps}: 1 or more" if args.generate else "--steps_per_clip: of --generate")
    where = None if args.topology == "local" else named_slice(args.experiment, args.topology)

    if where is None:
        meet_devices(args.device, None if args.generate else experiment)
    elif args.device not in ("auto", "tpu"):
        raise BadInput(f"--device {args.device}: this plan is for {where}. For the devices here: --topology local")

    from dit_video.cli.plan.devices import local_target, slice_target

    target = local_target() if where is None else slice_target(where)
    if args.generate:
        from dit_video.cli.plan.generation import plan_generation

        plan = plan_generation(experiment, target, steps, search=not args.no_search)
    else:
        from dit_video.cli.plan.predict import plan_training

        plan = plan_training(experiment.check(), target, search=not args.no_search)
    report = plan.report() | {"experiment": args.experiment, "mesh": experiment.mesh.resolve(len(target.devices))}
    if args.price is not None and report["step_seconds"]:
        report["price"] = round(plan.price(args.price, 1 if args.generate else 1000), 4)
    print(json.dumps(report) if args.json else describe(plan, report, args.generate))
    return 0 if plan.fits else 2


def meet_devices(device: str, trained: Any) -> None:
    """The devices of this machine, as `train` would have them for an experiment. Raises MissingError for one that is
    not there."""
    from dit_video.cli.generate import choose_device
    from dit_video.core.cores import one_device_a_core

    if trained is not None and trained.cores:
        one_device_a_core(device, trained.fits)
    choose_device(device)


def describe(plan: "Plan", report: dict[str, Any], clip: bool) -> str:
    """The report for people."""
    mesh = " x ".join(map(str, report["mesh"]))
    where = f"{plan.target.name} ({plan.target.chips} chip(s)), data x fsdp x context x tensor = {mesh}"
    lines = [f"{report['experiment']} on {where}: {plan.what}"]
    limit = plan.target.hbm
    lines.append(f"memory of a device, GiB, of {limit / GIB:.1f}:" if limit < 1e18 else "memory of a device, GiB:")
    lines += [f"  {name:<12}{size / GIB:8.2f}" for name, size in plan.hbm.items() if size or name == "total"]
    lines.append(
        "it fits" if plan.fits else "it does NOT fit" + (f"; it would with: {plan.change}" if plan.change else "")
    )
    if plan.tokens:
        work = plan.model_flops / 1e12
        lines.append(f"{plan.tokens:,} tokens, {work:{',.0f' if work >= 100 else '.3g'}} TFLOP of the model")
    if report["step_seconds"]:
        c = plan.cost
        terms = f"products {c.compute:.3g}, memory {c.memory:.3g}, collectives {c.collectives:.3g}"
        lines.append(f"{'clip' if clip else 'step'}: {c.seconds:.3g} s ({terms}, of which {c.exposed:.3g} uncovered)")
        lines += [f"  {name:<12}{part.seconds:10.3g} s" for name, part in plan.parts.items()]
        lines.append(f"MFU {100 * plan.mfu:.1f} %")
    elif plan.fits and plan.target.chip is None:
        lines.append("time: not predicted, there is no data sheet for this device")
    elif plan.fits:
        unread = ", ".join(name for name, part in plan.parts.items() if part.unread)
        lines.append(f"time: not predicted, calls of a library in {unread} could not be read")
    if "price" in report:
        lines.append(f"{report['price']:.2f} {'a clip' if clip else 'for 1000 steps'}")
    lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)
