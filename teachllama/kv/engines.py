"""What an engine reserves for the caches of its sessions: more than the rule requires, by rules of its own.

Each function takes a `Model` and settings, and returns a `Reservation`: its buffers, and the rules behind them, each
with its source. Independent of files; of the weights only their size in bytes is used.

- llama.cpp: read from llama.cpp commit 0c1e57098 (vendored in llama-cpp-python 0.3.36) and compared with its log for
  every model of `tests/kv_corpus/`.
- vLLM: read from vLLM commit 001cabc1be (V1 engine, 2026), its share of memory from 002f10e0cf; not run here.
- teachllama: this package; the tests compare with its own cache and workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from teachllama.errors import ParameterError
from teachllama.kv.formula import KV_DTYPES, MAX_SEQ_LEN, KVDtype, KVLayout, LayerKV, pair_of, positive

PAD = 256  # llama.cpp: contexts, and caches of sliding windows, are multiples of this
LLAMA_CPP = "llama.cpp 0c1e57098"
VLLM = "vLLM 001cabc1be"
GPU_SHARE = 0.92  # vLLM's default gpu_memory_utilization; in version 0.10 it was 0.9
GPU_SHARE_SOURCE = "vLLM 002f10e0cf vllm/config/cache.py, CacheConfig"


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer of an engine's cache."""

    name: str
    n_layers: int
    cells: int  # positions (or blocks x block size) in each of its sequences
    n_sequences: int  # sequences with their own cells
    k_nbytes: int
    v_nbytes: int
    per_token: bool = True  # false: a fixed part, the same at any context

    @property
    def nbytes(self) -> int:
        """K and V together."""
        return self.k_nbytes + self.v_nbytes


@dataclass(frozen=True, slots=True)
class Rule:
    """Something an engine does, and the source for it."""

    text: str
    source: str


@dataclass(frozen=True)
class Reservation:
    """What an engine reserves."""

    engine: str
    buffers: tuple[Buffer, ...]
    rules: tuple[Rule, ...]
    compute_nbytes: int  # scratch memory, approximately; a fixed part
    compute_source: str
    notes: tuple[str, ...] = ()

    @property
    def kv_nbytes(self) -> int:
        """Bytes of keys and values (and index keys), as reserved."""
        return sum(b.nbytes for b in self.buffers if b.per_token)

    @property
    def state_nbytes(self) -> int:
        """Bytes of recurrent state, of all sessions."""
        return sum(b.nbytes for b in self.buffers if not b.per_token)

    @property
    def nbytes(self) -> int:
        """Cache and state, without compute buffers and weights."""
        return self.kv_nbytes + self.state_nbytes


@dataclass(frozen=True)
class Model:
    """What the engines' rules need besides the layout; unknown numbers are 0."""

    layout: KVLayout
    vocab_size: int = 0
    dim: int = 0
    n_heads: int = 0
    hidden: int = 0  # the widest feed-forward layer
    expert_hidden: int = 0
    experts_used: int = 0  # of the routed experts, for each token

    @classmethod
    def from_metadata(cls, layout: KVLayout, metadata: Mapping[str, Any]) -> Model:
        """Reads them from a GGUF file's metadata; missing and invalid values become 0."""

        def get(key: str) -> int:
            value = metadata.get(f"{layout.arch}.{key}")
            if not isinstance(value, (int, float, str, bytes, type(None))) and hasattr(value, "__iter__"):
                value = max((v for v in map(_whole, value)), default=0)
            return _whole(value)

        tokens = metadata.get("tokenizer.ggml.tokens", ())
        vocab = len(tokens) if not isinstance(tokens, (int, float)) and hasattr(tokens, "__len__") else 0
        return cls(
            layout, vocab or get("vocab_size"), get("embedding_length"), get("attention.head_count"),
            get("feed_forward_length"), get("expert_feed_forward_length"), get("expert_used_count"),
        )  # fmt: skip


def _whole(value: object) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if 0 < number < 2**31 else 0


def row_nbytes(numbers: int, kv_dtype: str) -> int:
    """Bytes of one row of a cache."""
    block, block_nbytes = KV_DTYPES[kv_dtype]
    return numbers // block * block_nbytes


def pad(n: int, multiple: int) -> int:
    """`n` rounded up to a multiple."""
    return -(-n // multiple) * multiple


def _check(layout: KVLayout, seq_len: int, n_sessions: int, kv_dtype: str, v_dtype: str) -> None:
    positive("seq_len", seq_len)
    positive("n_sessions", n_sessions)
    layout.bytes(1, (kv_dtype, v_dtype))  # raises if the heads' lengths are not multiples of blocks


# llama.cpp ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's settings that affect its cache, with the defaults of `llama-server`."""

    unified: bool = False  # --kv-unified: one buffer of cells that all sequences share
    swa_full: bool = False  # --swa-full
    n_batch: int = 2048  # --batch-size
    n_ubatch: int = 512  # --ubatch-size
    flash_attn: bool = True  # --flash-attn
    v_dtype: str | None = None  # --cache-type-v; by default that of K


def llama_cpp(
    model: Model, seq_len: int, kv_dtype: KVDtype = "f16", n_sessions: int = 1, options: LlamaCpp | None = None
) -> Reservation:
    """What llama.cpp reserves for `n_sessions` sequences (`--parallel`) of `seq_len` tokens each.

    `--ctx-size` is the context of all sequences together: n_sessions x seq_len.

    Raises:
        ParameterError: a setting is out of range, or llama.cpp would refuse it.
    """
    layout, o = model.layout, options or LlamaCpp()
    kv_dtype, v_dtype = pair_of(kv_dtype)
    if o.v_dtype is not None:
        if v_dtype not in (kv_dtype, o.v_dtype):
            raise ParameterError(f"V's type is given twice: {v_dtype} as part of a pair, and {o.v_dtype}; give one")
        v_dtype = o.v_dtype
    _check(layout, seq_len, n_sessions, kv_dtype, v_dtype)
    positive("n_batch", o.n_batch)
    positive("n_ubatch", o.n_ubatch)
    is_mla = any(layer.n_kv_heads and not layer.value_length for layer in layout.layers)
    if KV_DTYPES[v_dtype][0] > 1 and not o.flash_attn:
        raise ParameterError(
            f"llama.cpp stores V as {v_dtype} with flash attention only; leave it on, or use f16 for V"
        )
    if is_mla and v_dtype != kv_dtype:
        raise ParameterError("under latent attention K holds V, so llama.cpp refuses another type for V")

    rules = [
        Rule("the context is rounded up to a multiple of 256 cells", f"{LLAMA_CPP} src/llama-context.cpp, n_ctx"),
    ]
    asked = n_sessions * seq_len
    n_batch = min(asked, o.n_batch)
    n_ubatch = min(n_batch, o.n_ubatch)
    n_ctx = pad(asked, PAD)
    streams, cells = (1, n_ctx) if o.unified else (n_sessions, pad(n_ctx // n_sessions, PAD))
    if n_sessions > 1:
        rules.append(
            Rule(
                f"one buffer of cells for all {n_sessions} sequences (unified)" if o.unified else
                f"each of {n_sessions} sequences has cells of its own (split)",
                f"{LLAMA_CPP} src/llama-context.cpp, n_ctx_seq",
            )
        )  # fmt: skip
    windows = {layer.window for layer in layout.layers if layer.window is not None}
    buffers = []
    widest_v = max((layer.rows[1] for layer in layout.layers), default=0)
    if not o.flash_attn and len({layer.rows[1] for layer in layout.layers}) > 1:
        rules.append(
            Rule(
                f"without flash attention V is stored transposed, in every layer as wide as the widest: {widest_v}",
                f"{LLAMA_CPP} src/llama-kv-cache.cpp, TAG_V_CACHE_VARIABLE",
            )
        )

    def buffer(name: str, layers: Sequence[LayerKV], n: int) -> Buffer:
        wide = [widest_v if not o.flash_attn else layer.rows[1] for layer in layers]
        wide = [0 for _ in layers] if is_mla else wide
        k = sum(row_nbytes(layer.rows[0], kv_dtype) for layer in layers) * n * streams
        v = sum(row_nbytes(w, v_dtype) for w in wide) * n * streams
        return Buffer(name, len(layers), n, streams, k, v)

    caching = [layer for layer in layout.layers if layer.n_kv_heads]
    full = [layer for layer in caching if layer.window is None]
    if not o.flash_attn and layout.arch == "deci":  # its layers without attention stay in the list, and get V's width
        full = list(layout.layers)
    if full:
        buffers.append(buffer("full attention", full, cells))
    for window in sorted(windows):
        sliding = [layer for layer in caching if layer.window == window]
        n = cells
        if not o.swa_full:
            n = pad(min(cells, window * (n_sessions if o.unified else 1) + n_ubatch), PAD)
            rules.append(
                Rule(
                    f"a window of {window:,} gets room for a batch besides ({n_ubatch:,}), in multiples of 256: "
                    f"{n:,} cells",
                    f"{LLAMA_CPP} src/llama-kv-cache-iswa.cpp, size_swa",
                )
            )
        else:
            rules.append(Rule("--swa-full: windows keep every position", f"{LLAMA_CPP} src/llama-kv-cache-iswa.cpp"))
        buffers.append(buffer("sliding window", sliding, n))
    index = [layer.index_length for layer in layout.layers if layer.index_length]
    if index:
        rules.append(
            Rule("index keys are a cache of their own, in K's type", f"{LLAMA_CPP} src/llama-kv-cache-dsa.cpp")
        )
        k = sum(row_nbytes(length, kv_dtype) for length in index) * cells * streams
        buffers.append(Buffer("index keys", len(index), cells, streams, k, 0))
    if layout.state_nbytes:
        rules.append(
            Rule("recurrent state is f32, one for each sequence", f"{LLAMA_CPP} src/llama-memory-recurrent.cpp")
        )
        n = n_sessions * layout.state_nbytes
        buffers.append(Buffer("recurrent state", 0, 1, n_sessions, n, 0, per_token=False))
    return Reservation(
        "llama.cpp", tuple(buffers), tuple(rules),
        _llama_cpp_compute(model, cells, n_ubatch, o.flash_attn),
        f"estimated; {LLAMA_CPP} prints the exact size of its compute buffer when it starts",
    )  # fmt: skip


def _llama_cpp_compute(model: Model, cells: int, n_ubatch: int, flash_attn: bool) -> int:
    """Approximate size of llama.cpp's compute buffer on a processor: the larger of a layer's work and the logits.

    Fitted to the sizes that llama.cpp prints for the models of the corpus; `docs/kv-corpus.md` gives the accuracy.
    """
    if not model.dim:
        return 0
    layers = model.layout.layers
    attends = any(layer.n_kv_heads for layer in layers)
    latent = max((layer.key_length for layer in layers if layer.n_kv_heads and not layer.value_length), default=0)
    hidden = max(3 * model.hidden, model.experts_used * (3 * (model.expert_hidden or model.hidden) + model.dim))
    work = 4 * n_ubatch * (4 * model.dim + max(hidden, 4 * latent * model.n_heads))
    if attends:
        work += 2 * n_ubatch * cells if flash_attn else 4 * n_ubatch * cells * (1 + max(1, model.n_heads))
    return max(work, 4 * n_ubatch * (model.vocab_size + 2 * model.dim))


# vLLM -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's settings that affect its cache, with its defaults."""

    block_size: int = 16
    gpu_memory_utilization: float = GPU_SHARE
    max_num_batched_tokens: int = 2048  # vllm/config/scheduler.py; a server may set more. It affects only windows


@dataclass(frozen=True, slots=True)
class _Page:
    """A kind of layer, as vLLM's KVCacheSpec describes it: a page holds `block_size` tokens of one layer."""

    kind: str  # "full", "window", "state"
    block_size: int
    nbytes: int
    window: int | None = None

    def pages(self, seq_len: int, max_num_batched_tokens: int) -> int:
        """Pages that one sequence of `seq_len` tokens needs at most."""
        if self.kind == "state":
            return 1
        if self.window is None:
            return -(-seq_len // self.block_size)
        tokens = min(self.window - 1 + max_num_batched_tokens, seq_len)
        return -(-tokens // self.block_size) + 1


def vllm(
    model: Model, seq_len: int, kv_dtype: KVDtype = "f16", n_sessions: int = 1, options: Vllm | None = None
) -> Reservation:
    """What vLLM needs for `n_sessions` sequences of `seq_len` tokens (`--max-model-len`) at once.

    vLLM itself always takes its whole share of the GPU's memory; this is the part that these sequences fill.
    `vllm_blocks` returns how many blocks fit in a GPU's memory.

    Raises:
        ParameterError: a setting is out of range, vLLM does not have the type, or it cannot group the layers.
    """
    o = options or Vllm()
    keys, values = pair_of(kv_dtype)
    if keys != values:
        raise ParameterError(f"vLLM has one type for keys and values, so not {keys} and {values}; give one type")
    kv_dtype = keys
    _check(model.layout, seq_len, n_sessions, kv_dtype, kv_dtype)
    groups, _, page, rules, notes = _vllm_groups(model.layout, kv_dtype, o)
    buffers = []
    names = {"full": "full attention", "window": "sliding window", "state": "recurrent state"}
    for spec, n_layers in sorted(groups, key=lambda group: list(names).index(group[0].kind)):
        n = spec.pages(seq_len, o.max_num_batched_tokens)
        nbytes = n_sessions * n * n_layers * (page or spec.nbytes)
        cells = n * spec.block_size
        per_token = spec.kind != "state"
        buffers.append(Buffer(names[spec.kind], n_layers, cells, n_sessions, nbytes, 0, per_token))
    return Reservation(
        "vllm", tuple(buffers), tuple(rules), 0,
        "not estimated: vLLM measures its activations by a trial run when it starts", tuple(notes),
    )  # fmt: skip


def _vllm_groups(
    layout: KVLayout, kv_dtype: str, o: Vllm
) -> tuple[list[tuple[_Page, int]], int, int, list[Rule], list[str]]:
    """Groups of layers: ([(kind, layers), ...], layers in each group or 0, bytes of a page, rules, notes)."""
    if kv_dtype not in ("f32", "f16", "bf16", "q8_0"):
        raise ParameterError(f"vLLM has no cache of type {kv_dtype}; f16 and bf16 are its own, and q8_0 stands for fp8")
    width = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}[kv_dtype]
    positive("block_size", o.block_size)
    file = f"{VLLM} vllm/v1/core/kv_cache_utils.py"
    rules = [
        Rule(f"each layer's cache is cut into blocks of {o.block_size} tokens; a started block is whole", file),
        Rule(
            f"weights, activations and cache share {o.gpu_memory_utilization:g} of the GPU's memory "
            "(gpu_memory_utilization), and the cache takes all that is left of it",
            GPU_SHARE_SOURCE,
        ),
    ]
    notes: list[str] = []
    if kv_dtype == "q8_0":
        notes.append("vLLM's 8-bit type is fp8, one byte a number, without q8_0's scales")
    # One spec per layer. Index keys have none: see the note below.
    specs: list[_Page] = []
    for layer in layout.layers:
        numbers = layer.rows[0] + layer.rows[1]
        if numbers:
            kind = "full" if layer.window is None else "window"
            specs.append(_Page(kind, o.block_size, o.block_size * numbers * width, layer.window))
    index = [layer.index_length for layer in layout.layers if layer.index_length]
    n_state = sum(1 for layer in layout.layers if not any(layer.rows)) if layout.state_nbytes else 0
    if layout.state_nbytes and not n_state:
        n_state = len(layout.layers)
    if n_state:
        # The attention block grows until its page holds a state (vllm/model_executor/models/config.py).
        state = -(-layout.state_nbytes // n_state)
        if specs:
            per_token = max(s.nbytes // s.block_size for s in specs)
            block = o.block_size * -(-state // (o.block_size * per_token))
            specs = [_Page(s.kind, block, s.nbytes // s.block_size * block, s.window) for s in specs]
            state = max(s.nbytes for s in specs)
            rules.append(
                Rule(
                    f"a block grows to {block:,} tokens, so that a page of attention is as large as a layer's state",
                    f"{VLLM} vllm/model_executor/models/config.py, HybridAttentionMambaModelConfig",
                )
            )
        specs += [_Page("state", 1, state)] * n_state
        notes.append("recurrent state is counted in f32; vLLM keeps its convolution part in the model's type")
    counts: dict[_Page, int] = {}
    for s in specs:
        counts[s] = counts.get(s, 0) + 1
    if index:
        notes.append(
            f"index keys ({len(index)} layers) are not counted here: vLLM keeps them in an fp8 layout of its own"
        )
    kinds = {(s.kind, s.window) for s in counts}
    if len(counts) <= 1 or len(kinds) == 1:  # one group; layers may have pages of different size
        return list(counts.items()), 0, 0, rules, notes
    largest = max(s.nbytes for s in counts)
    unified: dict[_Page, int] = {}
    for s, n in counts.items():
        if largest % s.nbytes:
            raise ParameterError(
                f"vLLM cannot page this model: a page of {largest:,} bytes is no multiple of one of {s.nbytes:,}"
            )
        block = s.block_size * (largest // s.nbytes) if s.kind != "state" else 1
        unified[_Page(s.kind, block, largest, s.window)] = unified.get(_Page(s.kind, block, largest, s.window), 0) + n
    least, most = min(unified.values()), max(unified.values())
    group_size = most if most < 1.5 * least else least
    groups = [(s, group_size) for s, n in unified.items() for _ in range(-(-n // group_size))]
    padding = sum(-(-n // group_size) * group_size - n for n in unified.values())
    text = f"layers are split into {len(groups)} groups of {group_size}, which share one pool of blocks"
    rules.append(Rule(text + (f"; {padding} layers are padding" if padding else ""), file))
    for s in unified:
        if s.window is not None:
            rules.append(
                Rule(
                    f"a window of {s.window:,} keeps the tokens of one step besides ({o.max_num_batched_tokens:,}; a "
                    "server may be started with more), and one block more",
                    f"{VLLM} vllm/v1/kv_cache_interface.py, SlidingWindowSpec",
                )
            )
    return groups, group_size, largest, rules, notes


def vllm_blocks(model: Model, memory: int, weights: int, kv_dtype: str = "f16", options: Vllm | None = None) -> int:
    """How many blocks vLLM makes on a GPU with `memory` bytes, before activations are subtracted.

    `memory * gpu_memory_utilization - weights`, divided by the bytes of a block in all layers of a group.
    """
    o = options or Vllm()
    groups, group_size, page, _, _ = _vllm_groups(model.layout, kv_dtype, o)
    per_block = group_size * page if group_size else sum(spec.nbytes * n for spec, n in groups)
    available = int(memory * o.gpu_memory_utilization) - weights
    return max(0, available) // per_block if per_block else 0


# teachllama -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Teachllama:
    """This package's settings that affect its scratch memory."""

    n_threads: int = 1


def teachllama(
    model: Model, seq_len: int, kv_dtype: KVDtype = "f32", n_sessions: int = 1, options: Teachllama | None = None
) -> Reservation:
    """What this package's sessions hold: exactly the rule, and scratch memory that all sessions of a model share."""
    layout, (keys, values) = model.layout, pair_of(kv_dtype)
    _check(layout, seq_len, n_sessions, keys, values)
    groups: dict[int | None, list[LayerKV]] = {}
    for layer in layout.layers:
        if any(layer.rows):
            groups.setdefault(layer.window, []).append(layer)
    buffers = []
    for window, layers in sorted(groups.items(), key=lambda item: item[0] or MAX_SEQ_LEN, reverse=True):
        cells = layers[0].positions(seq_len)
        k = sum(row_nbytes(r[0] + r[2], keys) for r in (layer.rows for layer in layers)) * cells * n_sessions
        v = sum(row_nbytes(layer.rows[1], values) for layer in layers) * cells * n_sessions
        buffers.append(
            Buffer("full attention" if window is None else "sliding window", len(layers), cells, n_sessions, k, v)
        )
    if layout.state_nbytes:
        buffers.append(
            Buffer("recurrent state", 0, 1, n_sessions, n_sessions * layout.state_nbytes, 0, per_token=False)
        )
    rules = (
        Rule("reserved whole when the session is created, resident as it fills", "teachllama/kv/cache.py"),
        Rule("pages of positions that have left every window are given back", "teachllama/kv/cache.py"),
    )
    scratch = _teachllama_compute(model, seq_len, (options or Teachllama()).n_threads)
    why = "estimated for a prompt that fills the context" if scratch else "the metadata does not give the dimensions"
    return Reservation("teachllama", tuple(buffers), rules, scratch, why)


def _teachllama_compute(model: Model, seq_len: int, n_threads: int) -> int:
    """Approximate memory of the compiled pass for a prompt of `seq_len` tokens, for any number of sessions.

    The sum of its workspace (`CompiledForward._reserve`: rows of up to 512 tokens, and tiles for each thread), which
    exists from the first call until the model is closed; the tables of RoPE angles; and a row of logits. The tests
    compare the workspace.
    """
    if not model.dim:
        return 0
    hidden = max(model.hidden, model.experts_used * model.expert_hidden)
    rows = pad(min(seq_len, 512), 32)
    workspace = rows * (3 * model.dim + 2 * hidden) + n_threads * max(48 * max(hidden, model.dim), 32 * (seq_len + 64))
    head = max((layer.key_length for layer in model.layout.layers if layer.n_kv_heads), default=0)
    kinds = len({layer.window is None for layer in model.layout.layers if layer.n_kv_heads})
    angles = kinds * head * pad(seq_len, 256)
    return 5 * (workspace + angles) + 4 * model.vocab_size  # 4 bytes each, and a quarter to grow


ENGINES: dict[str, Callable[..., Reservation]] = {"llama.cpp": llama_cpp, "teachllama": teachllama, "vllm": vllm}


@dataclass(frozen=True)
class Fit:
    """What fits into a given memory; None: no limit."""

    sessions: int | None
    longest_seq_len: int | None
    notes: tuple[str, ...] = field(default=())


def fit(
    model: Model,
    engine: str,
    memory: int,
    weights: int,
    seq_len: int,
    kv_dtype: KVDtype,
    n_sessions: int,
    options: Any = None,
) -> Fit:
    """The most sessions of `seq_len`, and the longest context for `n_sessions`, beside weights and compute buffers.

    Found by bisection over the engine's own reservation, which padding makes a step function.
    """
    available = memory - weights
    if engine == "vllm":
        available = int(memory * (options or Vllm()).gpu_memory_utilization) - weights

    def cost(length: int, sessions: int) -> int:
        r = ENGINES[engine](model, length, kv_dtype, sessions, options)
        return r.nbytes + r.compute_nbytes

    def most(high: int, price: Callable[[int], int]) -> int | None:
        if price(1) > available:
            return 0
        low, step = 1, 1
        while step < high and price(min(step * 2, high)) <= available:
            step *= 2
        if step >= high:
            return None
        low, high = step, step * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if price(middle) <= available else (low, middle)
        return low

    return Fit(most(2**20, lambda k: cost(seq_len, k)), most(2**32, lambda n: cost(n, n_sessions)))
