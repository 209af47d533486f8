"""Reads llama.cpp's answers (llama_cpp.json): the memory it reserved, to the byte where the log is exact."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachllama.kv import engines
from teachllama.kv.engines import Buffer, LlamaCpp

HERE = Path(__file__).parent
CACHE = re.compile(
    r"size = +[\d.]+ MiB \( *(\d+) cells, *(\d+) layers, *(\d+)/(\d+) seqs\), "
    r"K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB"
)
STATE = re.compile(r"size = +([\d.]+) MiB \( *(\d+) cells, *(\d+) layers, *(\d+) seqs")
COMPUTE = re.compile(r"compute buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Line:
    """One line of llama.cpp's log about a cache, with the figures as printed."""

    cells: int
    sequences: int  # sequences with their own cells
    k: str  # MiB with two digits; for a recurrent state, its whole size
    v: str | None  # None for a recurrent state

    @property
    def nbytes(self) -> int:
        """K and V together, to the two printed digits."""
        return round((float(self.k) + float(self.v or 0)) * 2**20)


def load() -> tuple[str, dict[str, Any]]:
    """(version, answers by model)."""
    kept = json.loads((HERE / "llama_cpp.json").read_text())
    return kept["llama.cpp"], kept["models"]


def lines_of(log: list[str]) -> list[Line]:
    """The caches reserved, without empty ones (no layer of that kind)."""
    found = []
    for line in log:
        if match := CACHE.match(line):
            if float(match[5]) or float(match[6]):
                found.append(Line(int(match[1]), int(match[4]), match[5], match[6]))
        elif (match := STATE.match(line)) and float(match[1]):
            found.append(Line(int(match[2]), int(match[4]), match[1], None))
    return found


def compute_mib(log: list[str]) -> float | None:
    """The compute buffer's MiB; None where the log has none."""
    return next((float(m[1]) for line in log if (m := COMPUTE.match(line))), None)


def as_printed(buffer: Buffer) -> Line:
    """One of our buffers as llama.cpp would print it: in MiB, rounded to float32, with two digits."""

    def mib(nbytes: int) -> str:
        return f"{struct.unpack('f', struct.pack('f', nbytes / 2**20))[0]:.2f}"

    if not buffer.per_token:
        return Line(buffer.n_sequences, buffer.n_sequences, mib(buffer.nbytes), None)
    return Line(buffer.cells, buffer.n_sequences, mib(buffer.k_nbytes), mib(buffer.v_nbytes))


def reserve(model: engines.Model, setting: dict[str, Any]) -> engines.Reservation:
    """Our rules' reservation for a setting at which llama.cpp was asked."""
    n = setting.get("n_seq_max", 1)
    options = LlamaCpp(
        unified=setting.get("kv_unified", False),
        swa_full=setting.get("swa_full", False),
        n_batch=setting.get("n_batch", 2048),
        n_ubatch=setting.get("n_ubatch", 512),
        flash_attn=setting.get("flash_attn", True),
        v_dtype=setting.get("type_v"),
    )
    return engines.llama_cpp(model, setting["n_ctx"] // n, setting["type"], n, options)
