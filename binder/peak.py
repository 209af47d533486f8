"""Runs notebooks beside a JupyterLab server, as on Binder, and reports how much memory all of it took.

    python binder/peak.py LIMIT_MB [NN ...]   # numbers of notebooks; default: all

Counts the server, the kernel and what the kernel starts, but not the program that executes the cells: on Binder that
is the reader's browser. Two figures: memory that only these processes can free (anonymous pages), which the limit is
for, and with it the pages of files (libraries, the model), each once. The system drops those when it needs room, so a
container is not ended for them. Linux only. Ends with status 1 if a notebook fails or goes over the limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def memory(processes: list[psutil.Process]) -> tuple[int, int]:
    """Bytes in all of them together: anonymous, and all that are resident. A page that n share counts 1/n in each."""
    anonymous = resident = 0
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            kb = {name: int(n) for name, n in re.findall(r"^(\w+):\s+(\d+) kB$", text, flags=re.M)}
            anonymous, resident = anonymous + 1024 * kb["Pss_Anon"], resident + 1024 * kb["Pss"]
    return anonymous, resident


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[psutil.Popen]:
    """A server with its page loaded once."""
    options = ["--no-browser", "--ServerApp.port=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={NOTEBOOKS}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    log = folder / "lab.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while True:
            addresses = [w for w in log.read_text().split() if w.startswith("http://") and w.endswith("/lab")]
            if addresses:
                break
            if server.poll() is not None or time.monotonic() > until:
                sys.exit(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for path in ("lab", "api/contents", "api/kernelspecs"):
            direct.open(addresses[-1].removesuffix("lab") + path, timeout=30).read()
        yield server
    finally:
        for process in [*server.children(recursive=True), server]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def peak(number: str, server: psutil.Process, folder: Path, limit: int) -> tuple[int, int, int]:
    """The status of a notebook's run, and the largest of both figures of `memory`."""
    most = most_resident = 0
    with (folder / f"{number}.log").open("w") as out:
        command = [sys.executable, "-m", "teachllama", "run", number, "--html", str(folder / f"{number}.html")]
        run = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    while run.poll() is None and most <= limit:
        with contextlib.suppress(psutil.Error):
            tree = [server, *server.children(recursive=True), *run.children(recursive=True)]
            anonymous, resident = memory(tree)
            most, most_resident = max(most, anonymous), max(most_resident, resident)
        time.sleep(0.1)
    if run.poll() is None:
        for process in [*run.children(recursive=True), run]:
            process.kill()
    return run.wait(), most, most_resident


def main() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("this needs Linux, 4.14 or later: it reads /proc/PID/smaps_rollup")
    limit = int(sys.argv[1]) * 1_000_000
    numbers = sys.argv[2:] or sorted(path.name[:2] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    failed = []
    with tempfile.TemporaryDirectory() as name, jupyterlab(Path(name)) as server:
        both = "{:,.0f} MB, with files {:,.0f} MB"
        alone = memory([server, *server.children(recursive=True)])
        print("JupyterLab alone:", both.format(*(n / 1e6 for n in alone)), flush=True)
        for number in numbers:
            started = time.monotonic()
            status, *most = peak(number, server, Path(name), limit)
            seconds = time.monotonic() - started
            print(f"notebook {number}: {both.format(*(n / 1e6 for n in most))}, {seconds:.0f} s", flush=True)
            if status or most[0] > limit:
                failed.append(number)
                print((Path(name) / f"{number}.log").read_text()[-2000:])
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)} (a limit of {limit / 1e6:,.0f} MB, or an error in the notebook)")


if __name__ == "__main__":
    main()
