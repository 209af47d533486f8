"""A model's forward pass on compiled kernels: records the page, writes the tables `fields.py` describes, and calls it.

Compiled code trusts every number it is given, so this is the only way in, and it checks first.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import numpy as np

from teachllama import threads
from teachllama.batch import Batch, Run
from teachllama.errors import ClosedError
from teachllama.kernels import fields, machine_code
from teachllama.kernels.fields import CHUNK, WIDTH
from teachllama.kernels.program import Instructions, lower
from teachllama.kernels.record import record
from teachllama.kernels.team import team
from teachllama.pages import Pages
from teachllama.weights import F32Matrix, Linear

if TYPE_CHECKING:
    from teachllama.spec import ModelSpec, Rope
    from teachllama.weights import Weights

MAX_BATCH = 512  # tokens of one call: more would not be faster
MAX_ROPES = 64  # kinds of rotation in one model: two are usual
FEW = 4  # tokens; fewer don't fill a tile, and are faster one by one


def why_not(spec: ModelSpec) -> str | None:
    """What keeps a model from running on these kernels, in words; None if nothing does."""
    if sys.byteorder != "little":
        return "the kernels read GGUF's little-endian numbers as they are, and this processor is big-endian"
    sizes = [("embedding_length", spec.dim, 32)]
    for layer in spec.layers:
        a, ffn = layer.attention, layer.ffn
        sizes.append(("feed_forward_length", ffn.hidden_dim, 32))
        sizes.append(("expert_shared_feed_forward_length", ffn.shared_hidden_dim, 32))
        sizes.append(("attention.key_length", a.head_dim, 16))
        sizes.append(("attention.kv_lora_rank", a.value_dim if a.latent else 0, 32))
        sizes.append(("attention.value_length", a.value_dim, 16))
        sizes.append(("attention.head_count times value_length", a.n_heads * a.value_dim, 32))
    for name, size, unit in sizes:
        if size % unit:
            return f"{name} is {size}; the kernels need a multiple of {unit}"
    return None


class CompiledForward:
    """`forward` for one model. It holds addresses into the weights, and so the weights themselves."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self._spec, self._weights = spec, weights
        self._serve = machine_code.serve()
        self._programs = _Programs(spec, weights)
        self._hidden: _Programs | None = None
        self._workspace: Pages | None = None
        self._workspace_at = 0
        self._job, self._tables = np.zeros((), fields.JOB), np.zeros(MAX_ROPES, np.int64)
        self._closed = False

    def __call__(self, batch: Batch) -> np.ndarray:
        """Logits of the rows wanted, float32 (m, vocab_size), as `forward` with NumPy gives them."""
        spec = self._spec
        logits = self._run(self._programs, batch)
        if spec.logit_scale != 1:
            logits *= np.float32(spec.logit_scale)
        cap = np.float32(spec.logit_softcap)
        return np.tanh(logits / cap) * cap if cap else logits

    def hidden_states(self, batch: Batch) -> np.ndarray:
        """Final hidden states of the rows wanted, after the output norm, float32 (m, dim)."""
        if self._hidden is None:  # a unit matrix in place of the output's: what it is given comes out
            unit = Linear(F32Matrix(np.eye(self._spec.dim, dtype=np.float32)), None)
            weights = dataclasses.replace(self._weights, output=unit)
            self._hidden = _Programs(dataclasses.replace(self._spec, vocab_size=self._spec.dim), weights)
        return self._run(self._hidden, batch)

    def _run(self, programs: _Programs, batch: Batch) -> np.ndarray:
        """Runs a batch session by session, in pieces that the kernels take, and gathers the rows wanted."""
        n, tokens, wanted = len(batch.tokens), np.ascontiguousarray(batch.tokens, np.int64), batch.wanted
        in_order = len(wanted) and wanted[0] >= 0 and wanted[-1] < n and bool((np.diff(wanted) > 0).all())
        if not in_order or tokens.min() < 0 or tokens.max() >= self._spec.vocab_size:
            raise ValueError("tokens or rows out of range")  # caller bug: sessions validate first
        out = np.empty((len(batch.wanted), programs.vocab_size), np.float32)
        for run in batch.runs:
            length = run.end - run.begin
            step = 1 if length < FEW else MAX_BATCH
            for begin in range(run.begin, run.end, step):
                end = min(begin + step, run.end)
                start = int(batch.positions[begin])
                if start < 0 or start + end - begin > run.cache.ready_to:
                    raise ValueError("positions out of range")  # caller bug
                rows = np.flatnonzero((batch.wanted >= begin) & (batch.wanted < end))
                wanted = np.ascontiguousarray(batch.wanted[rows] - begin, np.int64)
                logits = out[rows[0] : rows[-1] + 1] if len(rows) else out[:0]
                self._call(programs, tokens[begin:end], start, run, wanted, logits)
        return out

    def _call(
        self, programs: _Programs, tokens: np.ndarray, start: int, run: Run, wanted: np.ndarray, out: np.ndarray
    ) -> None:
        """One piece of one session: writes the wanted rows' logits, (m, vocab_size), to `out`."""
        n, cache, n_threads = len(tokens), run.cache, threads.get_num_threads()
        program = programs.vectors if n == 1 else programs.tiles
        keys, values = cache.addresses()
        crew = team(self._serve)
        with crew.turn:
            if self._closed:  # while this call waited: the memory is freed
                raise ClosedError("the model was closed while this evaluation waited; load it again")
            angles = [table.at(start, n, cache.seq_len) for table in programs.angles]
            for i, table in enumerate(angles):
                self._tables[i] = table.ctypes.data
            self._job[()] = (
                program.table.ctypes.data, len(program.table), n, start, tokens.ctypes.data, keys.ctypes.data,
                values.ctypes.data, cache.seq_len, self._tables.ctypes.data,
                wanted.ctypes.data, len(wanted), out.ctypes.data, *self._reserve(program, n, start, n_threads),
            )  # fmt: skip
            crew.run(self._job, n_threads)
            if n > 1 and self._workspace is not None:  # a prefill's is large: the memory is of use to others
                self._workspace.give_back(0, self._workspace.nbytes)

    def _reserve(self, program: Instructions, n: int, start: int, n_threads: int) -> tuple[int, int, int, int, int]:
        """Lays the call's buffers out in the workspace, one mapping that grows when a call needs more.

        Returns:
            the last five fields of a job.
        """
        if n == 1:
            rows, parts = 1, program.parts_width * ((start + CHUNK) // CHUNK)
            private, scratch = program.private_width + program.scratch, program.private_width
        else:
            rows, parts = -(-n // WIDTH) * WIDTH, 0
            attention = (start + n + WIDTH) * WIDTH
            private, scratch = program.scratch + max(rows * program.scratch_row, attention), 0
        shared, private = _aligned(4 * rows * program.shared_width), _aligned(4 * private)
        parts = shared + _aligned(4 * parts)
        total = parts + n_threads * private
        if self._workspace is None or self._workspace.closed or self._workspace.nbytes < total:
            if self._workspace is not None:
                self._workspace.close()  # an interrupt may come after this
            workspace = Pages(total + total // 4)
            self._workspace_at = workspace.array(0, (1,), np.uint8).ctypes.data
            self._workspace = workspace  # last: until then the old one, closed, says that a new one is needed
        at = self._workspace_at
        return at, at + shared, at + parts, private, 4 * scratch

    def close(self) -> None:
        """Gives the workspace back. Waits for a call that is still running."""
        with team(self._serve).turn:
            self._closed = True
            if self._workspace is not None:
                self._workspace.close()


class _Programs:
    """The two forms of one model's program."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        recorded = record(spec, weights)
        self.vectors = lower(recorded, spec, vectors=True)
        self.tiles = lower(recorded, spec, vectors=False)
        self.angles = [_Angles(rope) for rope in self.vectors.ropes]  # in the same order in both forms
        self.vocab_size, self._weights = spec.vocab_size, weights


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


class _Angles:
    """One kind of rotation's cosines and sines for all positions so far, (positions, 2 * pairs) float32."""

    def __init__(self, rope: Rope):
        self._rope = rope
        self._kept: dict[bool, np.ndarray] = {}

    def at(self, start: int, n: int, seq_len: int) -> np.ndarray:
        """Cosines, then sines, of n positions: (2 * pairs,) of one, or tiles (2 * pairs, width)."""
        is_long = self._rope.at_length(seq_len)[0] is self._rope.long_frequencies
        table = self._kept.get(is_long)
        if table is None or len(table) < start + n:
            table = self._kept[is_long] = self._made(seq_len, 2 * (start + n) if table is not None else start + n)
        both = table[start : start + n]
        if n == 1:
            return both
        tiles = []
        for first in range(0, n, WIDTH):
            part = both[first : first + WIDTH]
            width = WIDTH if n - first > 16 else 16
            tiles.append(np.pad(part, ((0, width - len(part)), (0, 0))).T.ravel())
        return np.concatenate(tiles)

    def _made(self, seq_len: int, n: int) -> np.ndarray:
        frequencies, magnitude = self._rope.at_length(seq_len)
        n = -(-n // 256) * 256
        angles = np.arange(n)[:, None] * np.asarray(frequencies)  # (n, pairs) float64
        return (magnitude * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)
