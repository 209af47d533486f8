"""Measures teachllama next to llama.cpp: the same tasks, in turns (A B A B), in one run. `make bench`.

Every figure of ours comes with the peer's from the same run, because machines differ, and one machine differs from hour
to hour. The result is the ratio: the median over consecutive turns, with its spread. The peer runs with flash attention
off and on, and the better of the two counts in each turn.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TILE_WORK = 2 * 48 * 256 * 32  # operations of the product that `machine` and tile.c repeat
HERE = Path(__file__).parent
TASKS: dict[str, dict[str, Any]] = {
    "decode 128 at n_past 4": {"task": "decode", "n": 128, "n_past": 4},
    "decode 64 at n_past 4096": {"task": "decode", "n": 64, "n_past": 4096},
    "prefill 32": {"task": "prefill", "n": 32},
    "prefill 512": {"task": "prefill", "n": 512},
    "4 sessions at once": {"task": "batch", "sessions": 4, "n": 32},
    "8 sessions at once": {"task": "batch", "sessions": 8, "n": 24},
    "16 sessions at once": {"task": "batch", "sessions": 16, "n": 16},
}
C_FLAGS = {  # a shape's kind -> bytes of a vector, and the C compiler's options
    "AVX-512": (64, ("-march=native", "-mprefer-vector-width=512")),
    "AVX2": (32, ("-mavx2", "-mfma")),
    "NEON": (16, ("-march=native",)),
}
MAX_LOAD = 0.7  # processors kept busy by other programs, above which no results are published


class Engine:
    """A worker process, and the pipe to it."""

    def __init__(
        self, python: str, name: str, model: Path, threads: int, *how: str, cpu: str = "", script: str = "worker.py"
    ):
        env = os.environ | ({"TEACHLLAMA_KERNEL_CPU": cpu} if cpu else {})
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled before, as where a package is installed
        command = [python, str(HERE / script), name, str(model), str(threads), *how]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        self.load_seconds: float = self._answer()["load_seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended without an answer")  # type: ignore[arg-type]
        return json.loads(line)

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Runs one task and returns its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def processor() -> str:
    """The processor's name, or as much as the system reports."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def on_all(threads: int, call: Callable[[int], object]) -> float:
    """Seconds until call(0), call(1), ..., one per thread, have ended."""
    workers = [threading.Thread(target=call, args=(i,)) for i in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def machine(threads: int) -> dict[str, Any]:
    """The limits of this machine: bytes read per second, and float32 operations per second."""
    import numpy as np
    from numba import njit

    from teachllama.kernels import shapes
    from teachllama.kernels.machine_code import host_machine
    from teachllama.kernels.matmul import multiply_tile
    from teachllama.kernels.simd import hsum, load, zeros16
    from teachllama.kv.pages import Pages

    shapes.provide(shapes.shape_for(host_machine()).number)

    @njit(nogil=True)
    def read(at: int, n: int) -> float:  # four streams, as the kernels read
        a, b, c, d, step = zeros16(), zeros16(), zeros16(), zeros16(), n // 256 * 64
        for i in range(0, step, 64):
            a, b = a + load(at + i), b + load(at + step + i)
            c, d = c + load(at + 2 * step + i), d + load(at + 3 * step + i)
        return hsum((a + b) + (c + d))

    @njit(nogil=True)
    def products(w: int, x: int, out: int, times: int) -> None:
        for _ in range(times):
            multiply_tile(w, 1024, 4, 48, x, 256, out, False, 32)

    def rate(call: Callable[[int], object], work: float) -> float:
        call(0)
        return threads * work / min(on_all(threads, call) for _ in range(5))

    nbytes = 150_000_000 // threads // 256 * 256
    pages = Pages(threads * nbytes)
    data = pages.array(0, (threads * nbytes,), np.uint8)
    data[:] = 1
    small = np.ones((threads, 3 * 48 * 256), np.float32)

    def product(i: int) -> None:
        at = small[i].ctypes.data
        products(at, at + 4 * 48 * 256, at + 8 * 48 * 256, 2000)

    bandwidth = rate(lambda i: [read(data.ctypes.data + i * nbytes, nbytes) for _ in range(4)], 4 * nbytes)
    found = {"processor": processor(), "threads": threads, "read_gb_s": bandwidth / 1e9}
    found["f32_gflop_s"] = rate(product, 2000 * TILE_WORK) / 1e9
    return found


def operations_of(path: Path, n: int) -> int:
    """Multiplications and additions of a prompt of n tokens: of its matrices, and of queries with keys and values."""
    import teachllama as tl

    with tl.load_model(path) as model:
        layers = [layer.attention for layer in model.spec.layers]
        attention = sum(
            2 * a.n_heads * (a.head_dim + a.value_dim) * sum(min(t + 1, a.window or n) for t in range(n))
            for a in layers
        )
    return 2 * n * weights_of(path) + attention


def beside_c(ours: Engine, path: Path, threads: int, pairs: int) -> dict[str, Any] | None:
    """GFLOP/s of prefills and of a C loop that runs as long, in turns, and their ratios; None without a C compiler."""
    import numpy as np

    products = compiled_c()
    if products is None:
        return None
    small = np.ones((threads, 3 * 48 * 256), np.float32)
    task, times = TASKS["prefill 512"], 40_000
    operations = operations_of(path, task["n"])

    def loop(i: int) -> None:
        at = small[i].ctypes.data
        products(at, at + 4 * 48 * 256, at + 8 * 48 * 256, times)

    turns = []
    for _ in range(pairs):
        c = threads * times * TILE_WORK / on_all(threads, loop) / 1e9
        turns.append((operations / ours.ask(task)["seconds"] / 1e9, c))
    mine, theirs = (statistics.median(paces) for paces in zip(*turns, strict=True))
    return {"ours": mine, "c": theirs, "shares": sorted(a / b for a, b in turns)}


def compiled_c() -> Callable[..., object] | None:
    """The products of `machine` as a C loop (`tile.c`), compiled for the same processor; None without a C compiler."""
    from teachllama.kernels.machine_code import host_machine
    from teachllama.kernels.shapes import shape_for

    compiler, shape = shutil.which("cc"), shape_for(host_machine())
    if compiler is None or shape.kind not in C_FLAGS:
        return None
    nbytes, flags = C_FLAGS[shape.kind]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "tile.so"
        shapes = [f"-DROWS={shape.rows}", f"-DLANES={shape.lanes}", f"-DVECTOR={nbytes}"]
        command = [compiler, "-O3", "-shared", "-fPIC", *flags, *shapes, str(HERE / "tile.c"), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"no C loop: {shlex.join(command)} failed:\n{done.stderr[-500:]}")
            return None
        products = ctypes.CDLL(str(library)).products
    products.argtypes, products.restype = [ctypes.c_void_p] * 3 + [ctypes.c_long], None
    return products


class LlamaBench:
    """An optional second engine, measured by its own `llama-bench` (ik_llama.cpp's or llama.cpp's).

    llama-bench is started once per turn, and measures each setting of flash attention once.
    """

    def __init__(self, command: str, model: Path, threads: int):
        sizes = [task for task in TASKS.values() if "sessions" not in task and task.get("n_past", 0) < 512]
        prompts = ",".join(str(task["n"]) for task in sizes if task["task"] == "prefill")
        (decoded,) = (str(task["n"]) for task in sizes if task["task"] == "decode")
        how = ["-p", prompts, "-n", decoded, "-t", str(threads), "-fa", "0,1", "-r", "1", "-o", "json"]
        self.command = [*shlex.split(command), "-m", str(model), *how]

    def turn(self) -> dict[str, dict[str, float]]:
        """Task -> flash attention off or on -> tokens per second."""
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(self.command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return paces_of(done.stdout)


def paces_of(text: str) -> dict[str, dict[str, float]]:
    """Parses llama-bench's JSON output: our name of the task -> flash attention off or on -> tokens per second."""
    names = {(task["task"], task["n"]): name for name, task in TASKS.items() if task.get("n_past", 0) < 512}
    paces: dict[str, dict[str, float]] = {}
    try:
        for row in json.loads(text):
            task = ("prefill", row["n_prompt"]) if row["n_prompt"] else ("decode", row["n_gen"])
            paces.setdefault(names[task], {})["on" if row["flash_attn"] else "off"] = row["avg_ts"]
    except (ValueError, KeyError, TypeError) as e:
        raise SystemExit(f"not what llama-bench prints with -o json ({e!r}): {text[:200]!r}") from None
    return paces


def measure_second(ours: Engine, second: LlamaBench, pairs: int) -> dict[str, Any]:
    """The tasks that llama-bench supports, in turns: tokens per second, and ratios to its better setting."""
    turns = []
    for _ in range(pairs):
        theirs = second.turn()
        for name in theirs:
            task = TASKS[name]
            theirs[name]["ours"] = task["n"] / ours.ask(task)["seconds"]
        turns.append(theirs)
    rows = {}
    for name in turns[0]:
        found = [turn[name] for turn in turns]
        ratios = sorted(row["ours"] / max(row["off"], row["on"]) for row in found)
        paces = {who: statistics.median(row[who] for row in found) for who in found[0]}
        rows[name] = {"ratio": statistics.median(ratios), "ratios": ratios, **paces}
        print(row_of(name, rows[name]), flush=True)
    return {"command": Path(second.command[0]).name, "rows": rows}


def measure(ours: Engine, peers: dict[str, Engine], pairs: int) -> dict[str, Any]:
    """All tasks on one model: tokens per second of ours and of the peer's settings, and ratios to its better one."""
    mine, theirs = (engine.ask({"task": "memory"}) for engine in (ours, *list(peers.values())[:1]))
    memory = {kind: {"ours": mine[kind], "peer": theirs[kind]} for kind in ("resident", "private")}
    rows = {}
    for name, task in TASKS.items():
        count = task["n"] * task.get("sessions", 1)
        for engine in (ours, *peers.values()):  # warm up, because the first run is slow
            engine.ask({**task, "n": 8, "n_past": 8} if task["task"] == "decode" else task)
        load = other_load()
        found = []
        for _ in range(pairs):
            seconds = {"ours": ours.ask(task)["seconds"]}
            found.append(seconds | {setting: peer.ask(task)["seconds"] for setting, peer in peers.items()})
        ratios = sorted(min(row[setting] for setting in peers) / row["ours"] for row in found)
        paces = {who: count / statistics.median(row[who] for row in found) for who in found[0]}
        rows[name] = {"ratio": statistics.median(ratios), "ratios": ratios, "load": load, **paces}
        print(row_of(name, rows[name]), flush=True)
    return {"rows": rows, **memory}


def weights_of(path: Path) -> int:
    """The number of weights each prompt token is multiplied with: all matrices except the embedding and the output."""
    import teachllama as tl

    with tl.open_gguf(path) as file:
        inner = [t for name, t in file.tensors.items() if len(t.shape) > 1 and name.startswith("blk.")]
        return sum(math.prod(t.shape) for t in inner)


def other_load() -> float:
    """How many processors other programs keep busy, measured over half a second while this one waits."""
    import psutil

    return round(psutil.cpu_percent(0.5) / 100 * (psutil.cpu_count() or 1), 2)


def row_of(name: str, row: dict[str, Any]) -> str:
    spread = f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}"
    paces = "".join(f"{row[who]:>9.1f}" for who in ("ours", "off", "on"))
    return f"{name:26}{paces} {row['ratio']:>7.2f}x   {spread}{'   loses' if row['ratio'] < 1 else ''}"


def main() -> None:
    """Measures, prints a table, and saves it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=0, help="default: physical cores")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each task, each beside the peer's")
    parser.add_argument("--loads", type=int, default=5, help="how many times each model is loaded by both")
    parser.add_argument("--only", default="", help="only variants whose name has one of these, with commas")
    parser.add_argument("--cpu", default="", help="compile our kernels for this processor, by LLVM's name (haswell)")
    parser.add_argument(
        "--llama-bench", default="", metavar="COMMAND", help="a second engine: its llama-bench and its own options"
    )
    parser.add_argument("--busy", action="store_true", help="save figures of a busy machine, too")
    parser.add_argument("--save", default="", metavar="FILE", help="default: docs/measured/speed-KIND.json")
    args = parser.parse_args()
    if args.cpu:
        os.environ["TEACHLLAMA_KERNEL_CPU"] = args.cpu

    from teachllama import hub
    from teachllama.errors import FetchError
    from teachllama.kernels.machine_code import host_machine
    from teachllama.kernels.shapes import shape_for
    from teachllama.requantize import requantize
    from teachllama.threads import get_num_threads

    threads = args.threads or get_num_threads()
    kind = shape_for(host_machine()).kind
    before = other_load()
    if before > MAX_LOAD and not args.busy:
        raise SystemExit(f"other programs keep {before} processors busy; wait for an idle machine, or say --busy")
    limits = machine(threads) | {"kind": kind}
    print(
        f"{limits['processor']}, {threads} threads: reads {limits['read_gb_s']:.1f} GB/s, "
        f"{limits['f32_gflop_s']:.0f} GFLOP/s of float32\nmedians of {args.pairs} pairs"
    )
    flags = Path(args.peer).parent.parent / "build-flags"
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": limits,
        "pairs": args.pairs,
        "peer_build": flags.read_text().strip() if flags.exists() else "unknown",
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = hub.find("smollm2-135m")
        copies = {kind: Path(folder) / f"smollm2-{kind}.gguf" for kind in ("Q4_0", "Q8_0", "F16")}
        variants = {"SmolLM2-135M Q4_1 (as published)": smollm2} | {f"SmolLM2-135M {k}": p for k, p in copies.items()}
        try:
            variants["Gemma 3 270M Q4_K_M"] = hub.find("gemma3-270m")
        except FetchError:
            print("gemma3-270m is not here: left out")
        for name, path in variants.items():
            if not any(part in name for part in args.only.split(",")):
                continue
            for copy_kind, copy in copies.items():
                if copy == path:
                    requantize(smollm2, copy, copy_kind)
            print(f"\n{name:26}{'ours':>9}{'off':>9}{'on':>9} {'ratio':>8}   spread; off, on: its flash attention")
            loads: list[tuple[float, float]] = []
            for i in range(args.loads):
                ours = Engine(sys.executable, "teachllama", path, threads, cpu=args.cpu)
                peer = Engine(args.peer, "llama.cpp", path, threads, "flash=off")
                loads.append((ours.load_seconds, peer.load_seconds))
                if i < args.loads - 1:
                    ours.close()
                    peer.close()
            peers = {"off": peer, "on": Engine(args.peer, "llama.cpp", path, threads, "flash=on")}
            found = measure(ours, peers, args.pairs)
            mine, theirs = (statistics.median(column) for column in zip(*loads, strict=True))
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found["n_weights"] = weights_of(path)
            if c := beside_c(ours, path, threads, 2 * args.pairs + 1):
                found["beside_c"] = c
                print(f"prefill 512, GFLOP/s {c['ours']:.0f}; a C loop {c['c']:.0f}")
            if args.llama_bench:
                print(f"beside {args.llama_bench}")
                found["second"] = measure_second(ours, LlamaBench(args.llama_bench, path, threads), args.pairs)
            found |= {"load": {"ours": mine, "peer": theirs}, "file_nbytes": os.path.getsize(path), "sha256": sha256}
            print(f"{'load':26} {mine:>11.2f} s {theirs:>11.2f} s {theirs / mine:>6.2f}x")
            for which in ("resident", "private"):
                memory = found[which]
                megabytes = f"{memory['ours'] / 1e6:>10.0f} MB {memory['peer'] / 1e6:>10.0f} MB"
                print(f"{which + ', one token':26} {megabytes} {memory['peer'] / memory['ours']:>6.2f}x")
            ours.close()
            for peer in peers.values():
                peer.close()
            result["models"][name] = found
    again = machine(threads)  # other programs may have slowed either measurement
    result["machine"] = {k: max(v, again[k]) if isinstance(v, float) else v for k, v in limits.items()}
    loads_seen = [row["load"] for found in result["models"].values() for row in found["rows"].values()]
    result["other_load"] = max([before, *loads_seen])
    if result["other_load"] > MAX_LOAD and not args.busy:
        raise SystemExit(f"not saved: other programs kept up to {result['other_load']} processors busy meanwhile")
    slug = kind.lower().replace(" ", "-")
    save = Path(args.save or HERE.parent / "docs" / "measured" / f"speed-{slug}.json")
    save.parent.mkdir(parents=True, exist_ok=True)
    save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nsaved: {save}")


if __name__ == "__main__":
    main()
