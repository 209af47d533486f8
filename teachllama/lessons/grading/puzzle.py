"""Judges the only exercise that is not a function: what keeps a session alive.

It must be judged in the process that runs the student's code. That process is new and has limits. References to the
judging functions are taken before the student's code runs, and checked for tampering afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from teachllama.lessons.common.check import CheckResult, short
from teachllama.lessons.grading.remote import environment, folder_for, run_as

SECONDS = 60


def judge_puzzle(source: str, user: str | None = None) -> CheckResult:
    """Judges the puzzle's cell, on the small model in the package."""
    nonce = os.urandom(16).hex()
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "teachllama.lessons.grading.puzzle"]
    with folder_for(user) as folder:
        try:
            done = subprocess.run(
                command, input=json.dumps({"source": source, "nonce": nonce}), capture_output=True, text=True,
                timeout=SECONDS, check=False, cwd=folder, env={**environment(), "PYTHONPATH": path, "HOME": folder},
                **run_as(user),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return CheckResult(False, f"Your code was still running after {SECONDS} s and was stopped.", "endless")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return CheckResult(False, "Your code ended the Python that ran it.", "ended")
    if answer.get("nonce") != nonce:
        return CheckResult(False, "What judges this exercise was changed by your code.", "tampered")
    return CheckResult(bool(answer["ok"]), str(answer["message"]), answer["mistake"])


def _fingerprint() -> int:
    """A number that changes when a function of the course or the engine is replaced."""
    import types

    codes: list[tuple[Any, ...]] = []
    for name, module in sorted(sys.modules.items()):
        if name.startswith("teachllama") and module is not None:
            for key, value in sorted(vars(module).items()):
                if isinstance(value, types.FunctionType):
                    codes.append((name, key, id(value), id(value.__code__)))
                elif isinstance(value, type) and value.__module__ == name:
                    codes += [
                        (name, key, k, id(v), id(getattr(v, "__code__", None)))
                        for k, v in vars(value).items()
                        if callable(v)
                    ]
    return hash(tuple(codes))


def main() -> None:
    """Runs a cell and judges it."""
    request = json.load(sys.stdin)
    out, sys.stdout = os.dup(1), open(os.devnull, "w")  # noqa: SIM115 - until this process ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS // 2, SECONDS // 2))
        resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000, 6_000_000_000))
    except ImportError:
        pass
    import teachllama as tl
    from teachllama import check, memory, show
    from teachllama.lessons.n04_sessions.exercises import _leak_verdict

    # The NumPy backend, because another user has no compiled kernels, and compiling takes longer than the limit.
    model = tl.load_model("tiny-stories", weights="f32", backend="numpy")
    model.config.seq_len = min(model.config.seq_len, 256)
    with model.create_session(seq_len=8) as session:
        session.eval([1])
    check.leak_released(check.leak_puzzle(model))  # loads everything that judging needs
    names: dict[str, Any] = {"tl": tl, "check": check, "memory": memory, "show": show, "model": model}
    judge, dumps, write, fingerprint, nonce = _leak_verdict, json.dumps, os.write, _fingerprint, request["nonce"]
    before = fingerprint()
    try:
        exec(compile(request["source"], "<answer>", "exec"), names)
        failed = None
    except BaseException as error:
        failed = f"Your code raised {type(error).__name__}: {short(str(error))}."
    if fingerprint() != before:
        nonce = ""
    puzzle = names.get("puzzle")
    if failed is not None:
        result = CheckResult(False, failed, "exception")
    elif type(puzzle).__name__ != "LeakPuzzle":
        result = CheckResult(False, "`puzzle` is not the puzzle any more.", "unanswered")
    else:
        result = judge(puzzle, None, model)  # type: ignore[arg-type]
    text = dumps({"nonce": nonce, "ok": result.ok, "message": result.message, "mistake": result.mistake})
    write(out, text.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
