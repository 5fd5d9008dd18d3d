"""The house: imports go downwards, no torch, no long files, nothing of the machine that it was written on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST = 450


def tracked(checkout: Path) -> list[Path]:
    """Every file that git tracks; in a copy without git, every file of the known folders."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return [path for name in done.stdout.split("\0") if name and (path := checkout / name).is_file()]
    folders = ("dit_video", "experiments", "tests", "tools")
    return [path for folder in folders for path in (checkout / folder).rglob("*") if path.is_file()]


def modules(checkout: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((checkout / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """The first names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_imports_go_downwards(checkout):
    pytest.importorskip("importlinter")
    # Run on the checkout's own files, whatever is installed.
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=checkout, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout, done.stdout


def test_torch_is_never_imported(checkout):
    banned = {"torch", "diffusers", "transformers", "tensorflow", "peft", "accelerate"}
    found = {str(p): bad for p in modules(checkout, "dit_video", "experiments") if (bad := imports(p) & banned)}
    assert not found


def test_dependencies_are_what_is_imported(checkout):
    """Nothing is declared that no file imports, and nothing imported that is not declared."""
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    module = {"pillow": "PIL", "orbax-checkpoint": "orbax", "tensorboardx": "tensorboardX"}
    wanted = {module.get(name, name) for name in declared}
    used = set().union(*(imports(path) for path in modules(checkout, "dit_video", "experiments")))
    used -= sys.stdlib_module_names | {"dit_video", "__future__"}
    # jax brings the first two, grain array_record, orbax-checkpoint fsspec, a notebook IPython: none runs without.
    used -= {"ml_dtypes", "jaxlib", "array_record", "fsspec", "IPython"} - wanted
    assert used <= wanted, f"imported, not declared: {sorted(used - wanted)}"
    assert wanted <= used, f"declared, not imported: {sorted(wanted - used)}"


def test_files_are_short(checkout):
    long = {str(p): n for p in modules(checkout, "dit_video", "tests", "tools", "experiments")
            if (n := len(p.read_text().splitlines())) > LONGEST}  # fmt: skip
    assert not long, f"over {LONGEST} lines: {long}"


def test_files_say_what_they_are(checkout):
    silent = [str(path) for path in modules(checkout, "dit_video", "tests", "tools", "experiments")
              if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))]  # fmt: skip
    assert not silent, f"no docstring at the top: {silent}"


def test_no_catch_all_modules(checkout):
    names = {"utils", "util", "misc", "helpers", "helper", "manager", "common"}
    assert not [str(p) for p in modules(checkout, "dit_video") if p.stem in names or p.parent.name in names]


def test_nothing_of_one_machine(checkout):
    """No absolute path of a developer's machine, no private host, in any file that is tracked."""
    pattern = re.compile(
        rb"/(?:work|root|home)/[\w.]|/tmp/(?:bash|pytest-of)|/opt/(?:wheels|pypi)|(?:10|192\.168)\.\d+\.\d+\.\d+\b"
    )
    found = {}
    for path in tracked(checkout):
        if path.suffix in {".safetensors", ".model", ".png", ".mp4", ".gif", ".webp", ".npz"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if pattern.search(line):
                found[f"{path.relative_to(checkout)}:{number}"] = line[:120]
    assert not found


def test_no_environment_reads_at_import(checkout):
    """`os.environ` and `os.getenv` stand inside functions only."""
    found = []
    for path in modules(checkout, "dit_video"):
        tree = ast.parse(path.read_text())
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
        found += [
            f"{path}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and id(node) not in inside
        ]
    assert not found


def test_markers_and_no_sleeping_skips(checkout):
    """Every skip says why."""
    bare = [
        f"{path}:{node.lineno}"
        for path in modules(checkout, "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "skip" and isinstance(node.value, ast.Attribute)
        and not re.search(r"skip\(.+\)", path.read_text().splitlines()[node.lineno - 1])
    ]  # fmt: skip
    assert not bare
