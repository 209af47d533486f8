"""Builds a `ModelSpec` and its weights from an open GGUF file; everything is checked before memory is reserved.

A tensor that is missing, unused, or of another shape than the metadata requires is an error that names it. So is a
metadata key that may change the arithmetic but was not read. Independent of sessions.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import numpy as np

from teachllama.errors import GGUFError, UnsupportedModelError
from teachllama.families import Family, build_spec, family_named
from teachllama.families.common import FREQS, HARMLESS, LONG, NEUTRAL, SHORT, cache_layout
from teachllama.gguf_file import GGUFFile, TensorInfo
from teachllama.kv import KVLayout, kv_layout_from_metadata
from teachllama.metadata import Metadata
from teachllama.spec import FeedForwardSpec, LayerSpec, ModelSpec
from teachllama.weights import BlockStore, Experts, F32Matrix, F32Store, Gated, LayerWeights, Linear, Weights

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

FACTORS = (FREQS, SHORT, LONG)
# Types whose blocks the kernels multiply directly; kernels/blocks.py has one function per type.
NATIVE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "MXFP4")


def spec_of(file: GGUFFile) -> tuple[ModelSpec, KVLayout, Metadata]:
    """A model's spec, the layout of its KV cache, and the reader of its metadata.

    Raises:
        GGUFError: the metadata is damaged or contradicts itself or the tensor table.
        UnsupportedModelError: the architecture, or a feature the file asks for, is not one this engine runs.
    """
    if "general.architecture" not in file.metadata:
        raise GGUFError("the metadata has no 'general.architecture': not a model file?")
    family = family_named(file.metadata["general.architecture"])
    m = Metadata(file.metadata, family.name)
    for key in ("attention.head_count", "embedding_length"):
        if not m.has(key):
            raise GGUFError(f"the metadata has no '{m.arch}.{key}', which every {m.arch} model needs")
    layout = kv_layout_from_metadata(file.metadata)  # has its own reader, so that its reads don't count in `m.read`
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GGUFError(f"{file.path}: has no matrix 'token_embd.weight', which every model needs")
    factors = {name: _numbers(file, file.tensors[name]) for name in FACTORS if name in file.tensors}
    spec = build_spec(family, m, layout, embedding.shape[0], factors)
    _refuse_unread(family, m)
    return spec, cache_layout(spec, layout), m


def _numbers(file: GGUFFile, info: TensorInfo) -> list[float]:
    if info.type.name != "F32" or len(info.shape) != 1:
        raise GGUFError(f"{file.path}: tensor {info.name!r} has shape {info.shape} of {info.type.name}; expected F32")
    return [float(x) for x in file.tensor_bytes(info.name).view("<f4")]


def _refuse_unread(family: Family, m: Metadata) -> None:
    """Raises for a key of the architecture that was not read and is not harmless: it may change the arithmetic."""
    prefix = f"{m.arch}."
    known = m.read | {prefix + key for key in (*HARMLESS, *family.harmless)}
    for key in sorted(key for key in m.mapping if key.startswith(prefix) and key not in known):
        neutral, value = NEUTRAL.get(key.removeprefix(prefix), ()), m.mapping[key]
        if not (isinstance(value, (bool, int, float)) and value in neutral):
            raise UnsupportedModelError(
                f"metadata {key!r} ({reprlib.repr(value)}) is a key that this engine's {m.arch} does not know. It may "
                "change the arithmetic, so the file is refused rather than run with wrong results"
            )


def load_weights(file: GGUFFile, spec: ModelSpec, native: Container[GGMLQuantizationType] | None) -> Weights:
    """All weights of a model.

    Args:
        native: types that are kept as the file's blocks; None dequantizes everything.
    """
    family = family_named(spec.family)
    table = _Table(file, family, len(spec.layers))
    make_weights = _planned(table, family, spec)
    table.refuse_unused()
    if native is None:
        store = F32Store(file, [*table.matrices, *table.vectors])
    else:
        store = BlockStore(file, table.matrices, table.vectors, native)
    try:
        return make_weights(store)
    except BaseException:
        store.close()
        raise


class _Table:
    """The tensor table; each tensor is taken once.

    `linear`, `vector` and `row` check a shape and return a function that loads the weights.
    """

    def __init__(self, file: GGUFFile, family: Family, n_layers: int):
        self.file, self.family = file, family
        n_drafts = file.metadata.get(f"{family.name}.nextn_predict_layers", 0)  # layers that only draft tokens
        unused = {f"blk.{i}" for i in range(n_layers, n_layers + n_drafts)} | set(FACTORS)  # factors are in the spec
        self.left = {
            name: info
            for name, info in file.tensors.items()
            if name not in unused and ".".join(name.split(".", 2)[:2]) not in unused
        }
        self.matrices: list[TensorInfo] = []
        self.vectors: list[TensorInfo] = []

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def _take(self, name: str, *shapes: tuple[int, ...]) -> TensorInfo:
        info = self.left.pop(name, None)
        if info is None:
            raise GGUFError(f"{self.file.path}: has no tensor {name!r}, which every {self.family.name} model needs")
        if info.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise GGUFError(f"{self.file.path}: tensor {name!r} has shape {info.shape}; the metadata requires {wanted}")
        return info

    def vector(self, name: str, *lengths: int) -> Callable[[F32Store], np.ndarray]:
        info = self._take(name, *((length,) for length in lengths))
        self.vectors.append(info)
        return lambda store: store.vector(info)

    def linear(self, name: str, rows: int, columns: int, outer: int = 0) -> Callable[[F32Store], Linear]:
        """`name`.weight, and `name`.bias where the file has one; `outer` is the number of stacked experts, if any."""
        shape = (outer, rows, columns) if outer else (rows, columns)
        info = self._take(f"{name}.weight", shape)
        self.matrices.append(info)
        bias: TensorInfo | None = None
        if f"{name}.bias" in self and name != "token_embd":  # embedding rows are looked up, without a bias
            bias = self._take(f"{name}.bias", (outer, rows) if outer else (rows,))
            self.vectors.append(bias)

        def load(store: F32Store) -> Linear:  # loads once, though several fields may be cut from it
            if not made:
                made.append(Linear(store.matrix(info), None if bias is None else store.vector(bias).reshape(-1)))
            return made[0]

        made: list[Linear] = []
        return load

    def row(self, name: str, columns: int) -> Callable[[F32Store], Linear]:
        """A vector as a matrix of one row."""
        vector = self.vector(name, columns)
        return lambda store: Linear(F32Matrix(vector(store).reshape(1, -1)))

    def refuse_unused(self) -> None:
        """Raises if there are tensors that were not taken."""
        if self.left:
            names = ", ".join(sorted(self.left)[:4]) + (", ..." if len(self.left) > 4 else "")
            raise UnsupportedModelError(
                f"{self.file.path}: holds {len(self.left)} tensor(s) that this engine's {self.family.name} does not "
                f"use: {names}. Running without them would give wrong results, so it is refused"
            )


def _planned(table: _Table, family: Family, spec: ModelSpec) -> Callable[[F32Store], Weights]:
    """Takes every tensor from the table; returns the function that loads them."""
    embedding = table.linear("token_embd", spec.vocab_size, spec.dim)
    output = table.linear("output", spec.vocab_size, spec.dim) if "output.weight" in table else None
    output_norm = table.vector("output_norm.weight", spec.dim)
    layers = [_planned_layer(table, family, f"blk.{i}.", s, spec.dim) for i, s in enumerate(spec.layers)]

    def make(store: F32Store) -> Weights:
        embed = embedding(store)
        result = Weights(store, embed, output(store) if output else embed, output_norm(store))
        result.layers = [LayerWeights(**{name: load(store) for name, load in plan.items()}) for plan in layers]
        return result

    return make


def _planned_layer(
    table: _Table, family: Family, p: str, s: LayerSpec, dim: int
) -> dict[str, Callable[[F32Store], Any]]:
    """Fields of `LayerWeights` -> the function that loads each."""
    fused = f"{p}attn_qkv.bias" in table  # replaces the biases of q, k and v
    for name in family.required:
        if fused and name in ("attn_q.bias", "attn_k.bias", "attn_v.bias"):
            continue
        if p + name not in table and not (name.startswith("ffn_") and s.ffn.experts is None):
            raise GGUFError(f"{table.file.path}: has no tensor {p + name!r}, which every {family.name} model needs")
    a = s.attention
    q_dim, k_dim, v_dim = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.value_dim
    lengths = {"q_norm": (a.head_dim, q_dim), "k_norm": (a.head_dim, k_dim)}
    plan: dict[str, Callable[[F32Store], Any]] = {
        field: table.vector(f"{p}{name}.weight", *lengths.get(field, (dim,))) for field, name in family.norms.items()
    }
    if a.latent:
        plan |= _planned_latent(table, p, s, dim)
    elif f"{p}attn_qkv.weight" in table:
        qkv = table.linear(f"{p}attn_qkv", q_dim + k_dim + v_dim, dim)
        plan["q"] = lambda store: qkv(store).cut(0, q_dim)
        plan["k"] = lambda store: qkv(store).cut(q_dim, q_dim + k_dim)
        plan["v"] = lambda store: qkv(store).cut(q_dim + k_dim, q_dim + k_dim + v_dim)
    else:
        for name, rows in (("q", q_dim), ("k", k_dim), ("v", v_dim)):
            plan[name] = table.linear(f"{p}attn_{name}", rows, dim)
    if not a.latent:
        plan["output"] = table.linear(f"{p}attn_output", dim, a.n_heads * a.value_dim)
    if f"{p}attn_sinks.weight" in table:
        plan["sinks"] = table.vector(f"{p}attn_sinks.weight", a.n_heads)
    if s.ffn.experts is None:
        plan["ffn"] = _planned_gated(table, p, "", s.ffn.hidden_dim, dim)
        return plan
    plan["experts"] = _planned_experts(table, p, s.ffn, dim)
    if s.ffn.shared_hidden_dim:
        plan["shared"] = _planned_gated(table, p, "_shexp", s.ffn.shared_hidden_dim, dim)
        if f"{p}ffn_gate_inp_shexp.weight" in table:
            plan["shared_gate"] = table.row(f"{p}ffn_gate_inp_shexp.weight", dim)
    return plan


def _planned_gated(table: _Table, p: str, suffix: str, hidden: int, dim: int) -> Callable[[F32Store], Gated]:
    up_name = f"{p}ffn_up{suffix}"
    down = table.linear(f"{p}ffn_down{suffix}", dim, hidden)
    if f"{p}ffn_gate{suffix}.weight" not in table:  # gate and up in one tensor, the gate first
        both = table.linear(up_name, 2 * hidden, dim)
        return lambda store: Gated((m := both(store)).cut(0, hidden), m.cut(hidden, 2 * hidden), down(store))
    gate, up = table.linear(f"{p}ffn_gate{suffix}", hidden, dim), table.linear(up_name, hidden, dim)
    return lambda store: Gated(gate(store), up(store), down(store))


def _planned_experts(table: _Table, p: str, s: FeedForwardSpec, dim: int) -> Callable[[F32Store], Experts]:
    assert s.experts is not None
    n, hidden = s.experts.n_experts, s.hidden_dim
    router = table.linear(f"{p}ffn_gate_inp", n, dim)
    gate = table.linear(f"{p}ffn_gate_exps", hidden, dim, n)
    up = table.linear(f"{p}ffn_up_exps", hidden, dim, n)
    down = table.linear(f"{p}ffn_down_exps", dim, hidden, n)
    bias = table.vector(f"{p}exp_probs_b.bias", n) if f"{p}exp_probs_b.bias" in table else None
    return lambda store: Experts(router(store), gate(store), up(store), down(store), bias(store) if bias else None)


def _planned_latent(table: _Table, p: str, s: LayerSpec, dim: int) -> dict[str, Callable[[F32Store], Any]]:
    """The fields of DeepSeek's latent attention."""
    a = s.attention
    rank, rotating = a.value_dim, a.head_dim - a.value_dim
    q_rows = a.n_heads * (a.still_dim + rotating)
    plan: dict[str, Callable[[F32Store], Any]] = {}
    if a.q_rank:
        plan["q_a"] = table.linear(f"{p}attn_q_a", a.q_rank, dim)
        plan["q_a_norm"] = table.vector(f"{p}attn_q_a_norm.weight", a.q_rank)
    plan["q"] = table.linear(f"{p}attn_q_b", q_rows, a.q_rank) if a.q_rank else table.linear(f"{p}attn_q", q_rows, dim)
    kv = table.linear(f"{p}attn_kv_a_mqa", rank + rotating, dim)
    plan["kv_a"] = lambda store: kv(store).cut(0, rank)
    plan["k_rope"] = lambda store: kv(store).cut(rank, rank + rotating)
    plan["kv_a_norm"] = table.vector(f"{p}attn_kv_a_norm.weight", rank)
    plan["k_b"] = table.linear(f"{p}attn_k_b", rank, a.still_dim, a.n_heads)
    plan["v_b"] = table.linear(f"{p}attn_v_b", a.output_dim, rank, a.n_heads)
    plan["output"] = table.linear(f"{p}attn_output", dim, a.n_heads * a.output_dim)
    return plan
