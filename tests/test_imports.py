"""Data flows one way: no import cycles, no imports upwards. Every import is checked, late ones included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "teachllama"
# From the bottom up. A room may import from itself and from rooms below it, late imports included. Imports for type
# checking alone may point upwards.
ROOMS = (
    ("errors",), ("whole_numbers", "files", "beginnings", "apart"),
    ("folders", "threads", "metadata", "spec", "quick_draw"), ("gguf_file",), ("gguf_remote", "kv"), ("families",),
    ("config",), ("weights", "batch"), ("loading", "ops"), ("forward",), ("tokenizer", "sampling"),
    ("kernels", "fingerprint"), ("hub",), ("generate", "checked_file"), ("session_file",), ("prefix_file",),
    ("model",), ("speculation",), ("session",), ("prefixes",), ("pool",), ("batching", "request"), ("scheduler",),
    ("looking", "embeddings", "requantize"), ("chat", "memory", "cluster"), ("cli",),
)  # fmt: skip
LEVEL = {name: i for i, level in enumerate(ROOMS) for name in level}
TEACHING = ("show", "check", "lessons")  # the engine must not depend on these
# Imports that point upwards on purpose.
UPWARDS = {("model", "session"), ("model", "pool"), ("memory", "show"), ("cli", "show"), ("cli", "lessons")}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> set[tuple[str, bool]]:
    """The package's modules that a file imports, anywhere in it, each with whether it is for type checking alone."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for_types: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for_types |= {id(inner) for inner in ast.walk(node)}
    known = {name_of(p) for p in modules()}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = node.module or ""
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        found |= {(n, id(node) in for_types) for n in names if n.split(".")[0] == "teachllama"}
    return found


def test_no_module_takes_part_in_a_circle_of_imports() -> None:
    graph = {name_of(p): {n for n, types in imports_of(p) if not types} - {name_of(p), "teachllama"} for p in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for other in graph.get(module, ()):
            visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_is_imported_upwards(path: Path) -> None:
    here = room_of(name_of(path))
    for module, types in imports_of(path):
        there = room_of(module)
        if there in ("", here) or here in ("", "__main__", *TEACHING) or (here, there) in UPWARDS or types:
            continue
        assert there not in TEACHING, f"{here} imports {module}"
        assert LEVEL[there] < LEVEL[here], f"{here} imports {module}, which stands above it or beside it"


def test_every_room_has_its_place() -> None:
    rooms = {room_of(name_of(p)) for p in modules()} - {"", "__main__", *TEACHING}
    assert rooms <= LEVEL.keys()
