"""`dit-video doctor`: what this machine has, what is missing, and the line that installs it."""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

EPILOG = """\
Exit code 0 when everything that the package needs is here, 3 otherwise. Nothing is changed.
"""

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that are supported
NEEDED = {"libx264": "writes MP4", "h264": "reads MP4"}
USEFUL = ("hevc", "libx265", "libdav1d", "libsvtav1", "vp9", "libvpx-vp9", "prores", "aac")
ROOM = 2 * 2**30  # bytes; a first run writes some 100 MB, a training run checkpoints

Problem = dict[str, str]  # {"what", "fix"}
Facts = tuple[Any, list[Problem]]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor", help="devices, versions, codecs, cache, disk; what to install", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="expect this one")


def run(args: argparse.Namespace) -> int:
    """Looks at everything and prints it; a part that fails is a problem, not the end."""
    parts: dict[str, Callable[[], Facts]] = {
        "versions": versions,
        "devices": lambda: devices(args.device),
        "machine": machine,
        "codecs": codecs,
        "weights": weights,
        "cache": cache,
        "disk": disk,
        "extras": extras,
    }
    report: dict[str, Any] = {"ok": True}
    problems: list[Problem] = []
    for name, look in parts.items():
        try:
            report[name], found = look()
        except Exception as error:
            report[name] = None
            if args.verbose:
                traceback.print_exc()
            fix = "See the traceback on stderr." if args.verbose else "Run doctor --verbose for more."
            found = [{"what": f"{name}: {type(error).__name__}: {error}", "fix": fix}]
        problems += found
    report |= {"ok": not problems, "problems": problems}
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(lines(report)))
    return 3 if problems else 0


def requirements() -> list[tuple[str, str, str]]:
    """(package, oldest version, extra) of everything that the installed package declares, without other packages'
    extras. Empty where it runs from files that were never installed."""
    try:
        declared = metadata.requires("dit_video") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in declared:
        match = re.match(r"([\w.-]+)(\[[^]]*\])?\s*(?:[>=]=\s*([\w.]+))?.*?(?:extra == ['\"](\w+)['\"])?$", line)
        if match:
            found.append((match[1], match[3] or "0", match[4] or ""))
    return found


def numbers(version: str) -> tuple[int, ...]:
    """`1.26.0rc1` as (1, 26, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> Facts:
    """Python, the package, and what it needs."""
    from dit_video import __version__

    have = {"python": platform.python_version(), "dit_video": __version__}
    problems = []
    oldest, newest = PYTHONS
    if not oldest <= sys.version_info[:2] <= newest:
        names = [f"{major}.{minor}" for major, minor in PYTHONS]
        problems.append({
            "what": f"Python {have['python']}: supported are {names[0]} to {names[1]}",
            "fix": f"Make an environment with another one: python{names[1]} -m venv .venv",
        })  # fmt: skip
    needed = [(package, oldest) for package, oldest, extra in requirements() if not extra]
    if not needed:
        problems.append({"what": "the package is not installed: it runs from its files", "fix": "pip install ."})
    for package, least in needed:
        version = installed(package)
        have[package] = version or ""
        if version is None or numbers(version) < numbers(least):
            what = f"{package} {version or 'is missing'}: {least} or newer is needed"
            problems.append({"what": what, "fix": f"pip install '{package}>={least}'"})
    return have, problems


def devices(wanted: str) -> Facts:
    """What JAX computes on; hardware that it does not see."""
    from dit_video.cli.generate import prepare_jax
    from dit_video.core.errors import MissingError

    try:
        prepare_jax(wanted)
    except MissingError as error:
        return [], [{"what": str(error), "fix": install(wanted)}]
    import jax

    found = []
    for device in jax.devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        found.append({"platform": device.platform, "kind": device.device_kind, "memory_bytes": memory})
    problems = []
    platforms = {device["platform"] for device in found}
    for hardware, there in (("gpu", has_gpu()), ("tpu", has_tpu())):
        if there and wanted in ("auto", hardware) and hardware not in platforms:
            what = f"this machine has a {hardware.upper()}, and JAX sees only {', '.join(sorted(platforms))}"
            problems.append({"what": what, "fix": install(hardware)})
    return found, problems


def install(device: str) -> str:
    extra = {"gpu": "cuda", "tpu": "tpu"}.get(device)
    return f"pip install 'dit_video[{extra}]'" if extra else "pip install jax"


def has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_tpu() -> bool:
    """Older chips are /dev/accel*; newer ones are VFIO devices with hardware of Google's (0x1ae0)."""
    vfio = any(Path("/dev/vfio").glob("[0-9]*")) and any(
        vendor.read_text().strip() == "0x1ae0" for vendor in Path("/sys/bus/pci/devices").glob("*/vendor")
    )
    return vfio or any(Path("/dev").glob("accel[0-9]*"))


def machine() -> Facts:
    """Cores that this process may use, and the memory of the host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"system": platform.platform(), "cores": cores, "memory_bytes": memory}, []


def codecs() -> Facts:
    """What PyAV brought along."""
    import av

    there = av.codecs_available
    fix = "pip install --force-reinstall --only-binary av av"
    problems = [
        {"what": f"PyAV {av.__version__} has no {name} ({what})", "fix": fix}
        for name, what in NEEDED.items()
        if name not in there
    ]
    return [name for name in (*NEEDED, *USEFUL) if name in there], problems


def weights() -> Facts:
    """The model on board, every file compared with its checksum."""
    from dit_video.core.errors import DitVideoError
    from dit_video.weights.folder import ON_BOARD, load_model

    try:
        return {"name": ON_BOARD, "hash": load_model(None).digest}, []
    except DitVideoError as error:
        return None, [{"what": str(error), "fix": "pip install --force-reinstall dit_video"}]


def cache() -> Facts:
    """Where compiled programs are kept, and how many there are."""
    from dit_video.cli.generate import compile_cache

    folder = compile_cache()
    if isinstance(folder, str):
        return {"path": folder, "programs": None, "bytes": None}, []  # in an object store: counting costs
    files = [entry.stat() for entry in os.scandir(folder) if entry.is_file()] if folder.is_dir() else []
    about = {"path": str(folder), "programs": len(files), "bytes": sum(file.st_size for file in files)}
    if writable(folder):
        return about, []
    fix = "Set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
    return about, [{"what": f"compiled programs are not kept: {folder} cannot be written", "fix": fix}]


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or it in the nearest one above."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def disk() -> Facts:
    """Room where clips, runs and compiled programs go."""
    from dit_video.cli.generate import compile_cache

    places = [Path.cwd(), *(place for place in (compile_cache(),) if isinstance(place, Path))]
    places = [next(above for above in (place, *place.parents) if above.exists()) for place in places]
    free = {str(place): shutil.disk_usage(place).free for place in places}
    problems = [
        {"what": f"{place}: {size(room)} free", "fix": f"Make room for at least {size(ROOM)}, or work elsewhere"}
        for place, room in free.items()
        if room < ROOM
    ]
    return {"free_bytes": free}, problems


def extras() -> Facts:
    """Of each optional group of packages what is missing: nothing that must be there."""
    groups: dict[str, list[str]] = {}
    for package, _, extra in requirements():
        if extra:
            missing = groups.setdefault(extra, [])
            missing += [package] if installed(package) is None else []
    # `jax[cuda12]` names jax alone: what the extra adds is told by the plugin's own package.
    for extra, plugin in (("cuda", "jax-cuda12-plugin"), ("tpu", "libtpu")):
        if extra in groups and installed(plugin) is None:
            groups[extra].append(plugin)
    return groups, []


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
        unit = "TB"
    return f"{count:.3g} {unit}"


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    out = []
    if have := report["versions"]:
        out.append("versions  " + " · ".join(f"{name} {version or 'missing'}" for name, version in have.items()))
    for device in report["devices"] or []:
        out.append(f"device    {device['platform']} · {device['kind']} · memory {size(device['memory_bytes'])}")
    if about := report["machine"]:
        out.append(f"machine   {about['cores']} cores · memory {size(about['memory_bytes'])} · {about['system']}")
    if report["codecs"] is not None:
        out.append("codecs    " + " ".join(report["codecs"]))
    if about := report["weights"]:
        out.append(f"weights   {about['name']} {about['hash']}")
    if about := report["cache"]:
        held = "" if about["programs"] is None else f" · {about['programs']} files · {size(about['bytes'])}"
        out.append(f"cache     {about['path']}{held}")
    if about := report["disk"]:
        out += [f"disk      {place} · {size(room)} free" for place, room in about["free_bytes"].items()]
    for extra, missing in (report["extras"] or {}).items():
        here = f"missing: {', '.join(missing)}; pip install 'dit_video[{extra}]'" if missing else "installed"
        out.append(f"extra     {extra} · {here}")
    out += [f"problem   {problem['what']}\n          {problem['fix']}" for problem in report["problems"]]
    return [*out, "ok" if report["ok"] else f"{len(report['problems'])} problem(s)"]
