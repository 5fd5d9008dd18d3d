"""Every field of every config is read by something: a field that nobody reads is a promise that nobody keeps."""

import ast
from pathlib import Path


def is_config(node: ast.ClassDef) -> bool:
    """A frozen dataclass with a default for most of its fields. Else it is a result, for others to read."""
    given = [item.value is not None for item in node.body if isinstance(item, ast.AnnAssign)]
    if sum(given) <= len(given) / 2:
        return False
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "dataclass":
            return any(k.arg == "frozen" and getattr(k.value, "value", False) is True for k in decorator.keywords)
    return False


def fields(node: ast.ClassDef) -> list[str]:
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item)
    ]


def reads(tree: ast.AST) -> set[str]:
    """Attribute names that are read; in a file that calls `getattr` or `fields`, names that stand as text too."""
    names, texts, by_text = set(), set(), False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
        elif isinstance(node, ast.Call):
            by_text |= ast.unparse(node.func).rpartition(".")[2] in {"getattr", "asdict"}
    return names | texts if by_text else names


def test_every_field_is_read(checkout: Path):
    trees = {p: ast.parse(p.read_text()) for p in sorted((checkout / "dit_video").rglob("*.py"))}
    read = set().union(*(reads(tree) for tree in trees.values()))
    unread = [
        f"{path.relative_to(checkout)}:{node.lineno} {node.name}.{name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and is_config(node)
        for name in fields(node)
        if name not in read
    ]
    assert not unread


def test_the_search_finds_an_unread_field():
    tree = ast.parse("@dataclass(frozen=True)\nclass A:\n    x: int = 1\n    y: int = 2\ndef f(a): return a.x")
    (config,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    assert is_config(config)
    assert set(fields(config)) - reads(tree) == {"y"}
