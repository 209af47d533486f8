"""Counts the lines of code of each module and folder of the package, without comments and docstrings: `make size`.

The evening path is the code to read in order to understand how a token is generated, from the file to the session;
kernels have a budget of their own. The budgets are for orientation, not targets to beat. CI fails above them, so that
growth is a deliberate decision.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "teachllama"
EVENING = (  # in reading order
    "gguf_file.py", "metadata.py", "spec.py", "families", "weights.py", "loading.py", "ops.py", "forward.py",
    "batch.py", "kv/pages.py", "kv/cache.py", "config.py", "model.py", "sampling.py", "session.py",
    "generate.py",
)  # fmt: skip
BUDGETS = {"the evening path": 2550, "kernels": 2750}  # aims: 1,700 each


def code_lines(path: Path) -> int:
    """Number of lines of a file that contain code, without blanks, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    doc: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            doc.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    with tokenize.open(path) as f:
        for token in tokenize.generate_tokens(f.readline):
            if token.type not in (*quiet, tokenize.ENDMARKER):
                lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - doc)


def size_of(place: Path) -> int:
    """Code lines of a file or a folder."""
    return sum(code_lines(p) for p in (sorted(place.rglob("*.py")) if place.is_dir() else [place]))


def sizes() -> dict[str, int]:
    """Code lines of every module and folder, and of the evening path."""
    rooms = {p.name: size_of(p) for p in sorted(PACKAGE.iterdir()) if p.suffix == ".py" or (p / "__init__.py").exists()}
    rooms["the evening path"] = sum(size_of(PACKAGE / name) for name in EVENING)
    return rooms


def main() -> int:
    """Prints the table. Returns 1 if something is above its budget, otherwise 0."""
    found = sizes()
    for name, n in found.items():
        mark = "*" if name in EVENING else " "
        print(f"{n:6,} {mark} {name}" + (f"   (at most {BUDGETS[name]:,})" if name in BUDGETS else ""))
    print("     * on the evening path, and of kv/: pages.py, cache.py")
    return int(any(found.get(name, 0) > budget for name, budget in BUDGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
