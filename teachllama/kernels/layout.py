"""Numbers that compiled code and the Python around it agree on: the tables' fields, and sizes of buffers.

Imports nothing, so that a process that finds the kernels compiled needs no compiler.
"""

from __future__ import annotations

WIDTH = 32  # tokens of a tile
ROWS = 8  # rows of weights whose sums are held in registers at a time: 8 * 32 float32 are half of AVX-512's
DEPTH = 192  # products summed in one register: 24 kB of x for 32 tokens
PANEL = 48  # rows of weights unpacked at a time: with 1536 columns 295 kB, which stays in the second-level cache
CHUNK = 256  # positions of the cache one thread takes at a time, when a single token attends
BLOCK = 64  # positions whose float16 keys are made float32 at a time

# The plan: one int64 each (float32 numbers lie in the low four bytes).
(
    N_LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM, HIDDEN_DIM, VOCAB, GELU, QK_NORM, POST_NORMS, ROPE_PAIRS,
    ROPE_HALVES, EPS, ATTENTION_SCALE, EMBEDDING_SCALE, EMBEDDING, EMBEDDING_TYPE, OUTPUT, OUTPUT_TYPE, OUTPUT_NORM,
    N_PLAN,
) = range(22)  # fmt: skip
# Then, for each layer: addresses and types of seven matrices, addresses of norms, the window, which angles.
(
    Q, Q_TYPE, K, K_TYPE, V, V_TYPE, O, O_TYPE, GATE, GATE_TYPE, UP, UP_TYPE, DOWN, DOWN_TYPE,
    ATTN_NORM, FFN_NORM, Q_NORM, K_NORM, POST_ATTENTION_NORM, POST_FFW_NORM, WINDOW, LOCAL_ANGLES, N_LAYER,
) = range(23)  # fmt: skip
# The job of one call. Sizes in bytes; buffers for prefill are tiles, for decode vectors.
(
    N_TOKENS, START, TOKENS, KEYS, VALUES, SEQ_LEN, HALF, ANGLES, ANGLES_LOCAL, ALL_LOGITS, LOGITS,
    X, H, QKV, MIXED, GATES, PRIVATE, PRIVATE_NBYTES, N_JOB,
) = range(19)  # fmt: skip
# What threads share: each on a cache line of its own.
GENERATION, PLAN_AT, JOB_AT, ARRIVED, PHASE, N_SYNC = 0, 8, 9, 16, 24, 32
MOST_THREADS = 4096
