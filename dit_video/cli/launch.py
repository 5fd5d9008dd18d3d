"""`dit-video launch EXPERIMENT --target ...`: writes what a cluster runs, and with --submit hands it over."""

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_video.core.slices import Slice

EPILOG = """\
targets:
  gke               a JobSet (as Kueue and XPK run them): TPU slices in Google Kubernetes Engine
  queued-resources  a script around gcloud that asks for a TPU slice, runs on all its hosts, and asks again
  slurm             an sbatch file: nodes with GPUs, one process a node

Nothing is started: the text goes to stdout, or to --output. What runs is `dit-video train EXPERIMENT` in the image, so
the image must hold this package, and the file of an experiment that the package does not carry. Any field of the
experiment can be given, as for train.

examples:
  dit-video launch toyworld --target gke --topology v5e:4x4 --image REGISTRY/dit_video --workdir gs://bucket/runs
  dit-video launch toyworld --target slurm --nodes 2 --gpus 8 --workdir /shared/runs --output toyworld.sbatch
"""

TARGETS = {"gke": ".yaml", "queued-resources": ".sh", "slurm": ".sh"}
USUAL = {"slices": 1, "nodes": 1, "gpus": 8}
SUBMIT = {"gke": ["kubectl", "apply", "-f", "-"], "queued-resources": ["bash", "-s"], "slurm": ["sbatch"]}
NEEDS = {"gke": ("image",), "queued-resources": ("image", "zone"), "slurm": ()}
TAKES = {  # flags that not every target has
    "gke": {"topology", "slices", "spot", "reservation", "queue", "service_account"},
    "queued-resources": {"topology", "spot", "reservation", "zone", "project"},
    "slurm": {"reservation", "nodes", "gpus", "time", "partition", "account"},
}
# What train must find: an image without its plugin would compute on the hosts' CPUs, and say nothing.
DEVICE = {"gke": "tpu", "queued-resources": "tpu", "slurm": "gpu"}
MOUNT = "/mnt/runs"  # where the bucket of --workdir is seen
MADE = b"Written by\n#   dit-video"  # as every template begins

Value = str | int | None | Sequence[str]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "launch", help="writes what a cluster runs: JobSet, queued resources, Slurm", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a file with EXPERIMENT in it, or a name")
    parser.add_argument("--target", choices=tuple(TARGETS), required=True)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where runs go: gs://BUCKET/..., or for slurm "
                        "a folder that all nodes share; the run's own folder below it has --name")  # fmt: skip
    parser.add_argument("--name", help="of the run and of the job (default: the experiment's)")
    parser.add_argument("--image", help="a container image with this package; for slurm what apptainer takes")
    parser.add_argument("--mount", action="append", default=[], metavar="SOURCE:PATH",
                        help="gs://BUCKET, or for slurm a folder, seen at PATH (data, models); repeatable")  # fmt: skip
    parser.add_argument("--max_restarts", type=int, default=50, metavar="N", help="(default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="as for train")
    parser.add_argument("--wait", type=float, metavar="SECONDS",
                        help="how long each host waits for the others, before all start again")  # fmt: skip
    parser.add_argument("--output", metavar="PATH",
                        help="write it there instead of to stdout; what launch wrote is replaced")  # fmt: skip
    parser.add_argument("--submit", action="store_true", help="also start it: kubectl apply, bash, or sbatch")
    tpu = parser.add_argument_group("TPU (gke, queued-resources)")
    tpu.add_argument("--topology", metavar="NAME", help="v5e:4x4, v5p:2x4x4, v6e:8x8, tpu7x:2x2x2, ... (default: the "
                     "one that the experiment's docstring names)")  # fmt: skip
    tpu.add_argument("--slices", type=int, metavar="N", help="so many of them (gke; default: 1)")
    tpu.add_argument("--spot", action="store_true", help="cheaper, and taken away at times")
    tpu.add_argument("--reservation", help="a reservation's name (slurm too)")
    tpu.add_argument("--queue", help="the LocalQueue of Kueue (gke)")
    tpu.add_argument("--service_account", help="the Kubernetes service account (gke)")
    tpu.add_argument("--zone", help="such as us-east5-b (queued-resources)")
    tpu.add_argument("--project", help="(queued-resources; default: gcloud's)")
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--nodes", type=int, metavar="N", help="(default: 1)")
    slurm.add_argument("--gpus", type=int, metavar="N", help="of each node (default: 8)")
    slurm.add_argument("--time", help="as sbatch takes it: 24:00:00")
    slurm.add_argument("--partition")
    slurm.add_argument("--account")
    parser.set_defaults(overrides={})


def run(args: argparse.Namespace) -> int:
    """Checks that the experiment fits the machines, renders, writes. Raises BadInput, MissingError."""
    from dit_video.core.errors import BadInput

    for name in NEEDS[args.target]:
        if not getattr(args, name):
            raise BadInput(f"--target {args.target} wants --{name}.")
    for name in sorted(set().union(*TAKES.values()) - TAKES[args.target]):
        if getattr(args, name) not in (None, False):
            takes = [target for target, names in TAKES.items() if name in names]
            raise BadInput(f"--{name} is for --target {' and '.join(takes)}; {args.target} has no such thing.")
    for name, usual in USUAL.items():
        if getattr(args, name) is None:
            setattr(args, name, usual)
        if getattr(args, name) < 1:
            raise BadInput(f"--{name} {getattr(args, name)}: at least 1.")
    if args.max_restarts < 0:
        raise BadInput(f"--max_restarts {args.max_restarts}: 0 or more.")
    if args.wait is not None and not 0 < args.wait < float("inf"):
        raise BadInput(f"--wait {args.wait:g}: seconds, more than 0.")
    chosen = None if args.target == "slurm" else choose_slice(args)
    hosts = args.nodes if chosen is None else chosen.hosts * args.slices
    devices = args.nodes * args.gpus if chosen is None else chosen.devices * args.slices
    check(args, devices)
    if args.output is not None:
        check_output(Path(args.output))
    text = render(args.target, values(args, chosen))
    if args.output is not None:
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if args.submit:
        submit(args.target, text)
    if args.json:
        report = {"target": args.target, "path": args.output, "name": job_name(args), "hosts": hosts}
        report |= {"devices": devices, "topology": chosen and str(chosen), "chips": chosen and chosen.chips}
        print(json.dumps(report | {"submitted": args.submit, "text": None if args.output else text}))
    else:
        print(args.output or text, end="\n" if args.output else "")
    return 0


def choose_slice(args: argparse.Namespace) -> "Slice":
    """What was asked for, or what the experiment's docstring names. Raises BadInput."""
    from dit_video.core.errors import BadInput

    chosen = named_slice(args.experiment, args.topology)
    if chosen is None:
        raise BadInput(f"{args.experiment} names no TPU in its docstring. Give --topology, such as v5e:4x4.")
    if args.target == "queued-resources" and chosen.cloud_type is None:
        raise BadInput(f"{chosen}: queued resources do not have it; only GKE does. Use --target gke.")
    return chosen


def named_slice(experiment: str, topology: str | None) -> "Slice | None":
    """The slice that was asked for, else the one that the experiment's docstring names, if any. Raises BadInput."""
    from dit_video.core.config import packaged_experiments
    from dit_video.core.slices import find_slice, parse_slice

    if topology is not None:
        return parse_slice(topology)
    path = Path(experiment)
    path = path if path.is_file() else packaged_experiments().get(path.stem, path)
    return find_slice(ast.get_docstring(ast.parse(path.read_text())) or "") if path.is_file() else None


def check(args: argparse.Namespace, devices: int) -> None:
    """The experiment with its fields, on so many devices. Raises BadInput before anything is paid for."""
    from dit_video.core.config import dtype_changes, load_experiment, override, packaged_experiments
    from dit_video.core.errors import BadInput
    from dit_video.core.log import log
    from dit_video.train.lora import FineTune

    # `--data FOLDER` names what the machines see, which need not be here.
    fields = {name: value for name, value in args.overrides.items() if name != "data"}
    experiment = load_experiment(args.experiment)
    experiment = override(experiment, fields | dtype_changes(experiment, args.experiment, args.dtype)).check()
    data, fsdp, *_ = experiment.mesh.resolve(devices)
    if experiment.batch % (data * fsdp):
        raise BadInput(
            f"batch={experiment.batch} does not divide over {data * fsdp} parts of the mesh. "
            f"Give --batch with a multiple of {data * fsdp}, or more of the mesh to --mesh.context or --mesh.tensor."
        )
    if data % args.slices:
        raise BadInput(f"--slices {args.slices}: mesh.data={data} does not divide over them; give --mesh.data")
    if isinstance(experiment.objective, FineTune) and experiment.init is None:
        raise BadInput(
            "fine-tuning starts from a model: --init MODEL, as the machines see it (--mount gs://BUCKET:/PATH)"
        )
    path, carried = Path(args.experiment), packaged_experiments().get(Path(args.experiment).stem)
    if carried is None:
        log.warning("the package does not carry %s: the image must hold it at this path", args.experiment)
    elif path.is_file() and path.read_bytes() != carried.read_bytes():
        log.warning(
            "%s is not the %s that the package carries: the image must hold it at this path, or that one is trained",
            args.experiment, carried.stem,
        )  # fmt: skip


def check_output(path: Path) -> None:
    """What is written anew is what was written before by this verb. Raises BadInput for another file, or a folder."""
    from dit_video.core.errors import BadInput

    if path.is_file() and MADE in path.read_bytes():
        return
    if path.exists():
        raise BadInput(f"--output {path} is there already, and launch did not write it. Choose another name.")


def job_name(args: argparse.Namespace) -> str:
    """A name that Kubernetes and gcloud take. Raises BadInput for one that was given and is not."""
    from dit_video.core.errors import BadInput

    name = args.name or re.sub(r"[^a-z0-9]+", "-", Path(args.experiment).stem.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise BadInput(f"--name {name}: up to 40 small letters, digits and dashes, a letter first.")
    return name


def train_command(args: argparse.Namespace, workdir: str) -> list[str]:
    wait = [] if args.wait is None else ["--wait", f"{args.wait:g}"]
    dtype = [] if args.dtype == "auto" else ["--dtype", args.dtype]
    fields = [part for name, value in args.overrides.items() for part in (f"--{name}", value)]
    where = ["--workdir", workdir, "--device", DEVICE[args.target]]
    return ["dit-video", "train", args.experiment, *where, *wait, *dtype, *fields]


def values(args: argparse.Namespace, chosen: "Slice | None") -> dict[str, Value]:
    """What stands in the templates. None takes its line out; a list repeats it."""
    name = job_name(args)
    common: dict[str, Value] = {
        "made_by": shlex.join(["dit-video", *sys.argv[1:]]).replace("\n", " "),
        "name": name,
        "max_restarts": args.max_restarts,
        "reservation": args.reservation,
    }
    if chosen is None:
        return common | slurm_values(args, name)
    bucket, inside = split_url(args.workdir, "--workdir")
    command = train_command(args, "/".join(part for part in (MOUNT, inside, name) if part))
    mounts = [(bucket, MOUNT), *((whole_bucket(source, path), path) for source, path in split_mounts(args))]
    common |= {
        "slice": str(chosen), "topology": chosen.topology, "chips": chosen.chips, "hosts": chosen.hosts,
        "machine": chosen.machine, "run_path": command[4], "slices": args.slices, "image": args.image,
    }  # fmt: skip
    if args.target == "gke":
        return common | gke_values(args, chosen, command, mounts)
    return common | cloud_values(args, chosen, command, mounts)


def gke_values(
    args: argparse.Namespace, chosen: "Slice", command: list[str], mounts: list[tuple[str, str]]
) -> dict[str, Value]:
    """YAML takes JSON for what it is."""
    several = args.slices > 1
    volumes = []
    for i, (bucket, _) in enumerate(mounts):
        about = {"bucketName": bucket, "mountOptions": "implicit-dirs,rename-dir-limit=200000"}
        about |= {"hostNetworkPodKSA": "true"} if several else {}
        volumes.append(
            {"name": f"bucket-{i}", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": about}}
        )
    return {
        "labels": json.dumps({"kueue.x-k8s.io/queue-name": args.queue}) if args.queue else None,
        "service_account": args.service_account,
        # Between slices goes the data centre's network: without a layer in between it is faster.
        "host_network": "true" if several else None,
        "dns_policy": "ClusterFirstWithHostNet" if several else None,
        "accelerator": chosen.generation.gke,
        "spot": '"true"' if args.spot else None,
        "image": json.dumps(args.image),
        "reservation": None if args.reservation is None else json.dumps(args.reservation),
        "command": json.dumps(command),
        "chips_per_host": chosen.chips_per_host,
        "volume_mounts": [json.dumps({"name": f"bucket-{i}", "mountPath": path}) for i, (_, path) in enumerate(mounts)],
        "volumes": [json.dumps(volume) for volume in volumes],
    }


def cloud_values(
    args: argparse.Namespace, chosen: "Slice", command: list[str], mounts: list[tuple[str, str]]
) -> dict[str, Value]:
    quote, registry = shlex.quote, args.image.partition("/")[0]
    # The number of an accelerator type names one shape of v5p only: the one that rises.
    usual = chosen.generation.flat or chosen.chips < 128
    return {
        "zone": quote(args.zone),
        "project": f"--project={quote(args.project)}" if args.project else "",
        "runtime": chosen.generation.runtime,
        "cloud_type": chosen.cloud_type if usual else None,
        "cloud_name": None if usual else chosen.generation.cloud,
        "topology": None if usual else chosen.topology,
        "reservation": None if args.reservation is None else quote(args.reservation),
        "spot": "--spot" if args.spot else None,
        "run_url": quote(args.workdir.rstrip("/") + "/" + job_name(args)),
        "run_path": quote(command[4]),
        "buckets": [f"{quote(bucket)} {quote(host_path(path))}" for bucket, path in mounts],
        "docker_mounts": [f"{quote(host_path(path))}:{quote(path)}" for _, path in mounts],
        "registry": quote(registry) if registry.endswith((".pkg.dev", "gcr.io")) else None,
        "image": quote(args.image),
        "command": shlex.join(command),
        "starts": args.max_restarts + 1,
    }


def host_path(path: str) -> str:
    """Where the host mounts what the container sees at `path`: below /mnt, whatever stands at that path there."""
    return path if path.startswith("/mnt/") else "/mnt/" + path.strip("/")


def slurm_values(args: argparse.Namespace, name: str) -> dict[str, Value]:
    from dit_video.core.errors import BadInput

    if "://" in args.workdir:
        raise BadInput(f"--workdir {args.workdir}: slurm wants a folder that all nodes share.")
    run = f"{args.workdir.rstrip('/')}/{name}"
    binds = [f"--bind={args.workdir}", *(f"--bind={source}:{path}" for source, path in split_mounts(args))]
    if args.mount and not args.image:
        raise BadInput("--mount goes with --image: without a container the nodes see their folders as they are.")
    quoted = {field: getattr(args, field) for field in ("reservation", "partition", "account", "time")}
    return {
        "nodes": args.nodes,
        "gpus": args.gpus,
        "container": shlex.join(["apptainer", "exec", "--nv", *binds, args.image]) if args.image else "",
        "command": shlex.join(train_command(args, run)),
        **{field: value and shlex.quote(value) for field, value in quoted.items()},
    }


def whole_bucket(source: str, path: str) -> str:
    """The bucket that is mounted. Raises BadInput for a part of one."""
    from dit_video.core.errors import BadInput

    bucket, inside = split_url(source, "--mount")
    if inside:
        raise BadInput(
            f"--mount {source}:{path}: buckets are mounted whole. Give gs://{bucket}:{path}, and what the run is to "
            f"read as {path}/{inside}."
        )
    return bucket


def split_mounts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(source, absolute path) of each --mount. Raises BadInput."""
    from dit_video.core.errors import BadInput

    pairs = [text.rpartition(":")[::2] for text in args.mount]
    for text, (source, path) in zip(args.mount, pairs, strict=True):
        if not source or not path.startswith("/") or path.startswith("//") or path.rstrip("/") == MOUNT:
            raise BadInput(f"--mount {text}: give SOURCE:PATH, such as gs://bucket:/data, beside {MOUNT}.")
    return pairs


def split_url(url: str, flag: str) -> tuple[str, str]:
    """(bucket, path inside) of `gs://bucket/path`. Raises BadInput."""
    from dit_video.core.errors import BadInput

    match = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]+)/?(.*?)/*", url)
    if match is None:
        raise BadInput(f"{flag} {url}: TPU hosts share no disk. Give a bucket: gs://BUCKET/PATH.")
    return match[1], match[2]


def render(target: str, values: Mapping[str, Value]) -> str:
    """The template with `@{name}` filled in, in one pass: a line with None is left out, one with a list is repeated."""
    from importlib.resources import files

    template = files("dit_video.cli") / "templates" / f"{target}{TARGETS[target]}"
    lines = []
    for line in template.read_text(encoding="utf-8").splitlines():
        found = {name: values[name] for name in re.findall(r"@\{(\w+)\}", line)}
        if None in found.values():
            continue
        lists = [value for value in found.values() if isinstance(value, list)]
        for i in range(len(lists[0]) if lists else 1):
            fill = {name: value[i] if isinstance(value, list) else value for name, value in found.items()}
            lines.append(re.sub(r"@\{(\w+)\}", lambda match, fill=fill: str(fill[match[1]]), line).rstrip())
    return "\n".join(lines) + "\n"


def submit(target: str, text: str) -> None:
    """Hands the text to the scheduler's own program. Raises MissingError without one, BadInput when it refuses."""
    from dit_video.core.errors import BadInput, MissingError

    command = SUBMIT[target]
    for program in {command[0], *(["gcloud"] if target == "queued-resources" else [])}:
        if shutil.which(program) is None:
            raise MissingError(
                f"--submit: {program} is not on this machine. Leave --submit out, and run the text there."
            )
    done = subprocess.run(command, input=text, text=True, stdout=2)  # what it says goes to stderr
    if done.returncode:
        raise BadInput(f"--submit: {shlex.join(command)} ended with {done.returncode}")
