"""A model's forward pass on compiled kernels: records `forward`, writes the tables of `fields.py`, and makes the calls.

Compiled code trusts every number it is given, so all calls go through this module, which checks first.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama import threads
from teachllama.batch import Batch, Run
from teachllama.errors import ClosedError
from teachllama.kernels import fields, machine_code
from teachllama.kernels.fields import CHUNK, FEW, TILE_FROM, WIDTH
from teachllama.kernels.program import Instructions, lower
from teachllama.kernels.record import record
from teachllama.kernels.team import team
from teachllama.kv.pages import Pages
from teachllama.weights import F32Matrix, Linear

if TYPE_CHECKING:
    from teachllama.spec import ModelSpec, Rope
    from teachllama.weights import Weights

MAX_BATCH = 512  # tokens of one call: more would not be faster
MAX_ROPES = 64  # kinds of rotation in one model: usually two


def why_not(spec: ModelSpec) -> str | None:
    """Why a model cannot run on these kernels, as text; None if it can."""
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
    """`forward` for one model. It holds addresses into the weights, so it also keeps the weights alive."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self._spec, self._weights = spec, weights
        self._serve = machine_code.serve()
        self._programs = _Programs(spec, weights)
        self._hidden: _Programs | None = None
        self._workspace: Pages | None = None
        self._workspace_at = 0
        self._job, self._tables = np.zeros((), fields.JOB), np.zeros(MAX_ROPES, np.int64)
        self._row_table, self._angles = np.zeros(FEW, fields.ROW), np.zeros((FEW, MAX_ROPES), np.int64)
        self._angles_at = [self._angles[t].ctypes.data for t in range(FEW)]
        self._in_use: list[np.ndarray] = []
        self._closed = False

    def __call__(self, batch: Batch) -> np.ndarray:
        """Logits of the wanted rows, float32 (m, vocab_size), as from `forward` with `NumpyOps`."""
        spec = self._spec
        logits = self._run(self._programs, batch)
        if spec.logit_scale != 1:
            logits *= np.float32(spec.logit_scale)
        cap = np.float32(spec.logit_softcap)
        return np.tanh(logits / cap) * cap if cap else logits

    def hidden_states(self, batch: Batch) -> np.ndarray:
        """Final hidden states of the wanted rows, after the output norm, float32 (m, dim)."""
        if self._hidden is None:  # an identity matrix in place of the output matrix
            unit = Linear(F32Matrix(np.eye(self._spec.dim, dtype=np.float32)), None)
            weights = dataclasses.replace(self._weights, output=unit)
            self._hidden = _Programs(dataclasses.replace(self._spec, vocab_size=self._spec.dim), weights)
        return self._run(self._hidden, batch)

    def _run(self, programs: _Programs, batch: Batch) -> np.ndarray:
        """Runs a batch in pieces that the kernels take, and gathers the wanted rows.

        Many tokens of one session are one piece, or several. Few tokens are evaluated together with those of other
        sessions: each row of weights is then unpacked once for all of them.
        """
        n, tokens, wanted = len(batch.tokens), np.ascontiguousarray(batch.tokens, np.int64), batch.wanted
        in_order = len(wanted) and wanted[0] >= 0 and wanted[-1] < n and bool((np.diff(wanted) > 0).all())
        if not in_order or tokens.min() < 0 or tokens.max() >= self._spec.vocab_size:
            raise ValueError("tokens or rows out of range")  # caller bug: sessions validate first
        out = np.empty((len(wanted), programs.vocab_size), np.float32)
        few: list[tuple[Run, int, int]] = []  # runs, and ranges of their rows
        n_few = 0
        for run in batch.runs:
            if batch.positions[run.begin] < 0 or batch.positions[run.end - 1] >= run.cache.ready_to:
                raise ValueError("positions out of range")  # caller bug
            for begin in range(run.begin, run.end, MAX_BATCH):
                end = min(begin + MAX_BATCH, run.end)
                if end - begin >= TILE_FROM:
                    self._call(programs, batch, tokens, [(run, begin, end)], out, is_few=False)
                    continue
                if n_few + end - begin > FEW:
                    self._call(programs, batch, tokens, few, out, is_few=True)
                    few, n_few = [], 0
                few.append((run, begin, end))
                n_few += end - begin
        if few:
            self._call(programs, batch, tokens, few, out, is_few=True)
        return out

    def _call(
        self, programs: _Programs, batch: Batch, tokens: np.ndarray, pieces: list[tuple[Run, int, int]],
        out: np.ndarray, *, is_few: bool,
    ) -> None:  # fmt: skip
        """One call: writes the pieces' keys and values to their caches, and their wanted rows' logits to `out`."""
        n = sum(end - begin for _, begin, end in pieces)
        (run, first, last), n_threads = pieces[0], threads.get_num_threads()
        start = int(batch.positions[first])
        program = programs.few if is_few else programs.tiles
        if len(pieces) > 1:  # not always adjacent: other sessions' tokens may be between them
            rows = np.concatenate([np.arange(begin, end) for _, begin, end in pieces])
            tokens = tokens[rows]
            places = np.flatnonzero(np.isin(batch.wanted, rows))
            wanted = np.searchsorted(rows, batch.wanted[places]).astype(np.int64)
        else:
            tokens = tokens[first:last]
            places = np.flatnonzero((batch.wanted >= first) & (batch.wanted < last))
            wanted = np.ascontiguousarray(batch.wanted[places] - first, np.int64)
        side_by_side = len(places) > 0 and places[-1] - places[0] == len(places) - 1
        logits = out[places[0] : places[-1] + 1] if side_by_side else np.empty((len(places), out.shape[1]), np.float32)
        crew = team(self._serve)
        with crew.turn:
            if self._closed:  # closed while this call waited: the memory is freed
                raise ClosedError("the model was closed while this evaluation waited; load it again")
            if is_few:
                table = self._rows_of(programs, batch, pieces, n)
                chunks = int(table["parts"].sum())  # `parts` still has the numbers of chunks
                buffers = self._reserve(program, n, chunks, 0, n_threads)
                at = buffers[1] + 4 * program.parts_width * (np.cumsum(table["parts"]) - table["parts"])
                table["parts"] = at
                rows_at, angles_at, keys_at, values_at = table.ctypes.data, 0, 0, 0
            else:
                angles = [table.tiles(start, n, run.cache.seq_len) for table in programs.angles]
                for i, one in enumerate(angles):
                    self._tables[i] = one.ctypes.data
                keys, values = run.cache.addresses()
                buffers = self._reserve(program, n, 0, start + n, n_threads)
                rows_at, angles_at = 0, self._tables.ctypes.data
                keys_at, values_at = keys.ctypes.data, values.ctypes.data
            self._job[()] = (
                program.table.ctypes.data, len(program.table), n, start, tokens.ctypes.data, rows_at, keys_at,
                values_at, run.cache.seq_len, angles_at, wanted.ctypes.data, len(wanted),
                logits.ctypes.data, *buffers,
            )  # fmt: skip
            crew.run(self._job, n_threads)
            if not is_few and self._workspace is not None:  # a prefill's is large: return the memory
                self._workspace.give_back(0, self._workspace.nbytes)
        if len(places) and not side_by_side:
            out[places] = logits

    def _rows_of(
        self, programs: _Programs, batch: Batch, pieces: list[tuple[Run, int, int]], n: int
    ) -> np.ndarray[Any, Any]:
        """A ROW for each token. Its `parts` is the largest number of chunks that its attention can take."""
        table, t = self._row_table[:n], 0
        self._in_use = []  # keeps the tables of angles alive: one that grows for a later session is replaced
        for run, begin, end in pieces:
            cache, first = run.cache, int(batch.positions[begin])
            keys, values = cache.addresses()
            angles = [one.reach(first + end - begin, cache.seq_len) for one in programs.angles]
            starts = [(one.ctypes.data, one.strides[0]) for one in angles]
            self._in_use += angles
            session = keys.ctypes.data, values.ctypes.data, cache.seq_len
            for position in range(first, first + end - begin):
                for i, (at, step) in enumerate(starts):
                    self._angles[t, i] = at + position * step
                table[t] = (*session, position, first, self._angles_at[t], (position + CHUNK) // CHUNK)
                t += 1
        return table

    def _reserve(
        self, program: Instructions, n: int, chunks: int, seen: int, n_threads: int
    ) -> tuple[int, int, int, int, int]:
        """Lays out the call's buffers in the workspace, one mapping that grows when a call needs more.

        Args:
            chunks: how many chunks the attention of a few tokens takes.
            seen: how many positions tiles attend to; 0 for a few tokens.

        Returns:
            the last five fields of a job.
        """
        if seen:
            rows = -(-n // WIDTH) * WIDTH
            private, scratch = program.scratch + max(rows * program.scratch_row, (seen + WIDTH) * WIDTH), 0
        else:
            rows, scratch = n, n * program.private_width
            private = scratch + program.scratch + n * program.scratch_row
        shared, private = _aligned(4 * rows * program.shared_width), _aligned(4 * private)
        parts = shared + _aligned(4 * program.parts_width * chunks)
        total = parts + n_threads * private
        if self._workspace is None or self._workspace.closed or self._workspace.nbytes < total:
            if self._workspace is not None:
                self._workspace.close()  # an interrupt may come after this
            workspace = Pages(total + total // 4)
            self._workspace_at = workspace.array(0, (1,), np.uint8).ctypes.data
            self._workspace = workspace  # last: until then the old one is closed, so the next call reserves again
        at = self._workspace_at
        return at, at + shared, at + parts, private, 4 * scratch

    def close(self) -> None:
        """Frees the workspace. Waits for a call that is still running."""
        with team(self._serve).turn:
            self._closed = True
            if self._workspace is not None:
                self._workspace.close()


class _Programs:
    """The two forms of one model's program."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        recorded = record(spec, weights)
        self.few = lower(recorded, spec, few=True)
        self.tiles = lower(recorded, spec, few=False)
        self.angles = [_Angles(rope) for rope in self.few.ropes]  # in the same order in both forms
        self.vocab_size, self._weights = spec.vocab_size, weights


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


class _Angles:
    """One kind of rotation's cosines and sines for all positions so far, (positions, 2 * pairs) float32."""

    def __init__(self, rope: Rope):
        self._rope = rope
        self._kept: dict[bool, np.ndarray] = {}

    def reach(self, n: int, seq_len: int) -> np.ndarray:
        """A table of at least the first n positions."""
        is_long = self._rope.at_length(seq_len)[0] is self._rope.long_frequencies
        table = self._kept.get(is_long)
        if table is None or len(table) < n:
            table = self._kept[is_long] = self._made(seq_len, 2 * n if table is not None else n)
        return table

    def tiles(self, start: int, n: int, seq_len: int) -> np.ndarray:
        """Cosines, then sines, of n positions as tiles (2 * pairs, width)."""
        both, tiles = self.reach(start + n, seq_len)[start : start + n], []
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
