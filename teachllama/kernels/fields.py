"""Definitions shared by compiled code and the Python around it: operations, fields of tables, sizes of buffers.

Needs only NumPy, so that a process with cached kernels needs no compiler.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

WIDTH = 32  # tokens of a tile
FEW = 16  # the most tokens, of all sessions together, that are evaluated as vectors
TILE_FROM = 12  # tokens of one session from which on a tile is faster, even if half empty
DEPTH = 192  # products summed in one register: 24 kB of x for 32 tokens
PANEL = 48  # rows of weights unpacked at a time: with 1536 columns 295 kB, which stays in the second-level cache
CHUNK = 256  # positions of the cache that one thread takes at a time for a single token's attention
BLOCK = 64  # positions per page of the cache, converted to float32 at a time
KV_HEADER = 2  # numbers in a layer's table of pages before the first page's address


class Op(IntEnum):
    """Operations of a program. *Split*: each thread does its share. *Repeated*: each thread does all of it."""

    BARRIER = 0  # every thread waits until all have arrived
    EMBED = 1
    NORM = 2
    LINEAR = 3
    ROPE = 4
    STORE = 5  # keys or values into the cache
    ATTEND = 6
    JOIN = 7  # combines the chunks of one token's attention
    ADD = 8
    GATE = 9  # activation(gate) * up
    COPY = 10
    LINEAR_HEADS = 11
    SELECT = 12  # chooses experts
    EXPERTS_UP = 13
    EXPERTS_DOWN = 14
    EXPERTS = 15  # both, for tiles: each thread takes whole experts
    COMBINE = 16  # adds the weighted results of each token's experts
    TIMES_SIGMOID = 17
    LOGITS = 18


class Act(IntEnum):
    """Numbers of `spec.Activation` for compiled code."""

    SILU = 0
    GELU = 1
    SWIGLU_OAI = 2


class Score(IntEnum):
    """Numbers of `spec.Scores` for compiled code."""

    SOFTMAX = 0
    SOFTMAX_OF_CHOSEN = 1
    SIGMOID = 2


# One instruction. Operands (x, y, z, out) are twice an offset, in float32 per row, plus 1 in a thread's own buffer.
INSTRUCTION = np.dtype(
    [
        *(
            (name, np.int64) for name in ("x", "y", "z", "out", "w", "bias", "w2", "bias2", "w3", "bias3")
        ),  # w, bias: addresses
        *((name, np.int64) for name in ("op", "kind", "kind2", "kind3", "rows", "columns", "step", "add", "layer")),
        *((name, np.int64) for name in ("heads", "kv_heads", "head_dim", "value_dim", "window", "latent")),
        *((name, np.int64) for name in ("table", "first", "pairs", "neox")),
        *((name, np.int64) for name in ("activation", "n_experts", "n_used", "scores", "normalize", "n_groups")),
        *((name, np.int64) for name in ("n_groups_used",)),
        *((name, np.float32) for name in ("scale", "eps", "softcap", "unused2")),
    ],
    align=True,
)
# One call.
JOB = np.dtype(
    [
        *((name, np.int64) for name in ("program", "n_instructions", "n_tokens", "start", "tokens")),
        ("rows", np.int64),  # address of a ROW for each token, where there are few; 0: tiles
        *((name, np.int64) for name in ("keys", "values")),  # addresses of the layers' tables, one after another
        *((name, np.int64) for name in ("seq_len", "angles")),  # angles: a table of tables' addresses
        *((name, np.int64) for name in ("wanted", "n_wanted", "logits")),
        *((name, np.int64) for name in ("shared", "parts", "private", "private_nbytes", "scratch")),
    ],
    align=True,
)
# One token of a call with few tokens.
ROW = np.dtype(
    [
        *((name, np.int64) for name in ("keys", "values", "seq_len")),  # as in a job, for the token's session
        *((name, np.int64) for name in ("position", "first")),  # first: the session's first new position in this call
        *((name, np.int64) for name in ("angles", "parts")),  # a table of addresses; where chunks of attention go
    ],
    align=True,
)
# Indices of the numbers that threads share, each on its own cache line.
GENERATION, JOB_AT, ARRIVED, PHASE, N_SYNC = 0, 8, 16, 24, 32
MAX_THREADS = 4096
