"""Searches for wrong answers that a check accepts: `python -m tests.mutants` prints how many are refused.

A mutant is the solution of a notebook's exercise with one thing changed: an operator, a comparison, a sign, a bound, an
axis, a number off by one, a constant for a variable, one variable for another, a negated condition, a dropped
statement. A mutant that gives the same results as the solution, on the visible cases and on many others, is equivalent
and not counted.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator
from typing import Any

import nbformat
import numpy as np

from exercises.make import NOTEBOOKS as FOLDER
from exercises.make import written
from teachllama.lessons import lesson, lessons
from teachllama.lessons.common.check import run
from teachllama.lessons.common.exercise import Case, Exercise
from teachllama.lessons.common.judge import close, judge, judge_hidden, numbers

OPERATORS: list[type[ast.operator]] = [ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Pow, ast.MatMult]
COMPARISONS: list[type[ast.cmpop]] = [ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq]
TWINS = {
    "min": "max", "max": "min", "mean": "sum", "sum": "mean", "argmax": "argmin", "argmin": "argmax", "ceil": "floor",
    "exp": "exp2", "log": "log2", "median": "mean", "cumsum": "cumprod", "searchsorted": "digitize",
}  # fmt: skip
NOTEBOOKS = ("00", "01", "02", "03", "05", "06", "07", "08", "09", "10", "11", "12", "13")


def mutants(source: str, powers: bool = True) -> Iterator[str]:
    """Yields each source with one change; without `powers`, none that adds a `**`, which may give a huge number."""
    tree = ast.parse(source)
    n_nodes = sum(1 for _ in ast.walk(tree))
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names = sorted(arguments | stored)
    for i in range(n_nodes):
        j = 0
        while True:
            changed = copy.deepcopy(tree)
            node = next(node for k, node in enumerate(ast.walk(changed)) if k == i)
            if not _mutate(node, j, names):
                break
            j += 1
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text != ast.unparse(tree) and (powers or text.count("**") <= source.count("**")):
                yield text


def _mutate(node: ast.AST, j: int, names: list[str]) -> bool:
    """Makes the j-th change of a node; False if there are no more."""

    def pick(options: list[Any], set_: Any) -> bool:
        if j >= len(options):
            return False
        set_(options[j])
        return True

    match node:
        case ast.BinOp():
            others: list[Any] = [op() for op in OPERATORS if not isinstance(node.op, op)]
            return pick(others, lambda op: setattr(node, "op", op))
        case ast.Compare(ops=[op]):
            others = [c() for c in COMPARISONS if not isinstance(op, c)] if isinstance(op, tuple(COMPARISONS)) else []
            return pick(others, lambda c: setattr(node, "ops", [c]))
        case ast.UnaryOp(op=ast.USub()):
            return pick([ast.UAdd()], lambda op: setattr(node, "op", op))
        case ast.Constant(value=bool(value)):
            return pick([not value], lambda v: setattr(node, "value", v))
        case ast.Constant(value=int() | float() as value):
            return pick([value + 1, value - 1], lambda v: setattr(node, "value", v))
        case ast.Constant(value=str(value)) if value:
            return pick([value[:-1], "?" + value], lambda v: setattr(node, "value", v))
        case ast.Slice():
            options = [("lower", None)] * (node.lower is not None) + [("upper", None)] * (node.upper is not None)
            return pick(options, lambda o: setattr(node, *o))
        case ast.Name(ctx=ast.Load()) if node.id in names:
            return pick([n for n in names if n != node.id] + ["2"], lambda n: setattr(node, "id", n))
        case ast.Attribute(attr=attr) if attr in TWINS:
            return pick([TWINS[attr]], lambda a: setattr(node, "attr", a))
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            return pick([TWINS[name]], lambda n: setattr(node.func, "id", n))  # type: ignore[attr-defined]
        case ast.IfExp() | ast.If() | ast.While():
            turned = ast.UnaryOp(ast.Not(), node.test)
            return pick([turned, ast.Constant(True)], lambda t: setattr(node, "test", t))
        case ast.BoolOp():
            return pick([node.values[:1], node.values[1:]], lambda v: setattr(node, "values", v))
        case ast.Assign() | ast.AugAssign() | ast.Expr():
            return False
        case ast.FunctionDef() | ast.For():
            dropped = [k for k in range(len(node.body)) if not isinstance(node.body[k], ast.Return)]
            if j >= len(dropped):
                return False
            node.body[dropped[j]] = ast.Pass()
            return True
        case _:
            return False


def _answer(function: Any, case: Case, exercise: Exercise) -> Any:
    made = copy.deepcopy(case.arguments)
    given = (exercise.prepare(*made) if exercise.prepare else made)[: exercise.passed]

    def call() -> Any:
        with np.errstate(all="ignore"):
            return (exercise.read or numbers)(function(*given))

    outcome = run(call, seconds=0.3)
    return outcome.failure or outcome.value


def _equivalent(mutant: Any, solution: Any, exercise: Exercise) -> bool:
    """Whether both give the same results on the visible cases and on many others."""
    same = exercise.same or close
    cases = [*exercise.visible(), *(c for i in range(40) for c in exercise.hidden(str(i)))]
    return all(same(_answer(mutant, c, exercise), _answer(solution, c, exercise)) for c in cases)


def refused_share(number: str, every: int = 1) -> tuple[int, int, int, list[str]]:
    """Counts mutants of a lesson's solutions (all, or every third, ...): those refused, those refused by hidden cases
    alone, and all that are not equivalent. The last item lists those accepted.
    """
    found = lesson(number)
    notebook = nbformat.read(FOLDER / f"{found.notebook}.ipynb", as_version=4)
    refused, by_hidden, accepted = 0, 0, list[str]()
    for exercise, text in zip(found.exercises, written(notebook, found.notebook), strict=True):
        if exercise.right is None or callable(exercise.cases):
            continue
        source = text.solution
        if exercise.signature:
            for old, new in exercise.replace.items():
                source = source.replace(old, new)
            body = "\n".join("    " + line for line in source.split("\n"))
            source = f"def {exercise.signature}:\n{body}\n    return answer"
        names = _run(found.setup)
        solution = _run(source, names)[exercise.names[0]]
        for mutant in list(dict.fromkeys(mutants(source, powers=not exercise.signature)))[::every]:
            try:
                function = _run(mutant, names)[exercise.names[0]]
            except Exception:
                continue  # Python itself rejects it
            if not judge(function, exercise).ok:
                refused += 1
            elif not judge_hidden(function, exercise, "").ok:
                refused, by_hidden = refused + 1, by_hidden + 1
            elif not _equivalent(function, solution, exercise):
                accepted.append(f"{exercise.check}: {mutant}")
    return refused, by_hidden, refused + len(accepted), accepted


def _run(source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    defined = dict(names or {})
    exec(compile(source, "<mutant>", "exec"), defined)
    return defined


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:  # a mutant of notebook 03 allocates more memory than most machines have
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (4_000_000_000, 4_000_000_000))
    except ImportError:  # Windows
        pass
    some = int(arguments.pop(0).removeprefix("--every=")) if arguments and arguments[0].startswith("--every=") else 1
    for each in arguments or [l.number for l in lessons() if l.number in NOTEBOOKS]:
        n_refused, hidden, n, left = refused_share(each, some)
        print(f"{each}: {n_refused} of {n} refused, {hidden} by hidden cases alone", *left, sep="\n  ", flush=True)
