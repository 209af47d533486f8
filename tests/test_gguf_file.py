"""Opening GGUF files, valid and malicious."""

from __future__ import annotations

import os
import struct
import tracemalloc
from array import array
from itertools import accumulate
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama.gguf_file import StringArray
from tests.tools import F32, _add, copy_as, tiny_metadata, tiny_model, tiny_tensors, write_gguf


def header(version: int = 3, tensors: int = 0, keys: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def open_bytes(tmp_path: Path, data: bytes) -> tl.GGUFFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return tl.open_gguf(path)


def test_metadata_and_tensors_equal_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tiny_model(
        tmp_path / "tiny.gguf", **{"some.flag": True, "some.floats": [1.5, -2.0], "some.text": "naïve 😀"}
    )
    ours, theirs = tl.open_gguf(path), gguf.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert list(np.atleast_1d(ours.metadata[name])) == list(np.atleast_1d(field.contents())), name
    assert len(ours.tensors) == len(theirs.tensors)
    for t in theirs.tensors:
        info = ours.tensors[t.name]
        assert (info.shape, info.type, info.nbytes, info.offset) == (
            tuple(int(d) for d in t.shape[::-1]),
            t.tensor_type,
            t.n_bytes,
            t.data_offset,
        )
        assert bytes(ours.tensor_bytes(t.name)) == t.data.tobytes()


@pytest.mark.model
def test_the_real_files_open_with_the_tables_llama_cpp_documents(smollm2_path: str, gemma3_path: str) -> None:
    with tl.open_gguf(smollm2_path) as smol, tl.open_gguf(gemma3_path) as gemma:
        assert (
            len(smol.tensors),
            len(smol.metadata["tokenizer.ggml.tokens"]),
            len(smol.metadata["tokenizer.ggml.merges"]),
        ) == (272, 49152, 48900)
        assert (len(gemma.tensors), len(gemma.metadata["tokenizer.ggml.tokens"])) == (236, 262144)
        assert smol.tensors["token_embd.weight"].shape == (49152, 576)


def test_version_2_files_open(tmp_path: Path) -> None:
    data = bytearray(tiny_model(tmp_path / "t.gguf").read_bytes())
    data[4] = 2
    assert len(open_bytes(tmp_path, bytes(data)).tensors) == 20


def test_every_type_that_gguf_dequantizes_loads_as_a_model(tmp_path: Path) -> None:
    dims = {"llama.embedding_length": 256, "llama.feed_forward_length": 256, "llama.block_count": 1}
    metadata = tiny_metadata(**dims)
    tensors = tiny_tensors(metadata)
    kinds = [gguf.GGMLQuantizationType.F16, *gguf.quants._type_traits]
    for kind in kinds:
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(1)
        path = tmp_path / f"{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for k, v in metadata.items():
            if k != "general.architecture":
                _add(writer, k, v)
        expected: dict[str, np.ndarray] = {}
        for name, data in tensors.items():
            if data.ndim == 1:
                writer.add_tensor(name, data)
                continue
            try:
                raw = gguf.quants.quantize(data, kind)
            except NotImplementedError:  # no quantizer for these types, but any bytes are valid blocks
                raw = rng.integers(0, 60, (data.shape[0], data.shape[1] // block * nbytes), np.uint8)
            writer.add_tensor(name, raw, raw_dtype=kind)
            expected[name] = gguf.quants.dequantize(raw, kind) if kind.name != "F16" else raw.astype(np.float32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with tl.load_model(path, weights="f32", backend="numpy") as model:
            assert np.array_equal(model.weights.embedding.data, expected["token_embd.weight"], equal_nan=True), (
                kind.name
            )
            assert np.array_equal(
                model.weights.layers[0].ffn.down.data, expected["blk.0.ffn_down.weight"], equal_nan=True
            )


@given(st.lists(st.binary(max_size=12)))
def test_strings_decoded_at_once_are_those_decoded_one_by_one(items: list[bytes]) -> None:
    """Whatever the bytes are: zeros, which separate strings, and half characters at their ends."""
    raw = b"".join(len(item).to_bytes(8, "little") + item for item in items)
    ends = array("I", accumulate(8 + len(item) for item in items))
    strings = StringArray(raw, ends)
    one_by_one = [item.decode("utf-8", "surrogateescape") for item in items]
    assert list(strings) == strings.to_list() == one_by_one == [strings[i] for i in range(len(strings))]


def test_a_string_array_is_a_sequence(tmp_path: Path) -> None:
    words = ["a", "", "naïve", "😀" * 20, "z"]
    strings = tl.open_gguf(tiny_model(tmp_path / "t.gguf", **{"some.words": words})).metadata["some.words"]
    assert list(strings) == words == strings[:] == [strings[i] for i in range(5)]
    assert strings == words
    assert strings != words[:-1]
    assert (strings[-1], strings[1:3], strings.bytes_at(3)) == ("z", ["", "naïve"], ("😀" * 20).encode())
    with pytest.raises(IndexError):
        strings[5]


def test_closing_while_a_view_is_held_is_safe(tmp_path: Path) -> None:
    file = tl.open_gguf(tiny_model(tmp_path / "t.gguf"))
    view = file.tensor_bytes("output_norm.weight")
    before = bytes(view)
    file.close()
    file.close()
    assert bytes(view) == before
    with pytest.raises(tl.ClosedError):
        file.tensor_bytes("output_norm.weight")


U64 = struct.Struct("<Q").pack
U32 = struct.Struct("<I").pack
BIG = 2**63
HOSTILE = {
    "not a GGUF": b"<!DOCTYPE html><html>not found</html>",
    "empty": b"",
    "magic alone": b"GGUF",
    "version 1": header(1),
    "version 4": header(4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "more tensors than bytes": header(tensors=BIG),
    "more keys than bytes": header(keys=BIG),
    "all ones": header(tensors=2**64 - 1, keys=2**64 - 1),
    "a key longer than the file": header(keys=1, body=U64(BIG) + b"x" * 40),
    "a key that is not UTF-8": header(keys=1, body=key(b"\xff\xfe", 4, U32(1)) + b"\0" * 40),
    "an empty key": header(keys=1, body=key("", 4, U32(1)) + b"\0" * 40),
    "a key twice": header(keys=2, body=key("a", 4, U32(1)) * 2 + b"\0" * 40),
    "an unknown value type": header(keys=1, body=key("a", 13, U32(1)) + b"\0" * 40),
    "a string longer than the file": header(keys=1, body=key("a", 8, U64(BIG)) + b"\0" * 40),
    "an array longer than the file": header(keys=1, body=key("a", 9, U32(4) + U64(BIG)) + b"\0" * 40),
    "an array whose size overflows": header(keys=1, body=key("a", 9, U32(10) + U64(2**61)) + b"\0" * 40),
    "a string array longer than the file": header(keys=1, body=key("a", 9, U32(8) + U64(BIG)) + b"\0" * 40),
    "a string array whose second string lies": header(
        keys=1, body=key("a", 9, U32(8) + U64(2) + text("x") + U64(2**64 - 8)) + b"\0" * 40
    ),
    "nested arrays": header(keys=1, body=key("a", 9, U32(9) + U64(1) + U32(9) + U64(1)) + b"\0" * 40),
    "an array of an unknown type": header(keys=1, body=key("a", 9, U32(77) + U64(1)) + b"\0" * 40),
    "no dimensions": header(tensors=1, body=tensor("t", [], 0, 0) + b"\0" * 64),
    "five dimensions": header(tensors=1, body=tensor("t", [1] * 5, 0, 0) + b"\0" * 64),
    "four billion dimensions": header(tensors=1, body=text("t") + U32(2**32 - 1) + b"\0" * 64),
    "a dimension of zero": header(tensors=1, body=tensor("t", [4, 0], 0, 0) + b"\0" * 64),
    "a dimension of 2**63": header(tensors=1, body=tensor("t", [BIG], 0, 0) + b"\0" * 64),
    "dimensions whose product overflows to 0": header(tensors=1, body=tensor("t", [2**32, 2**32], 0, 0) + b"\0" * 64),
    "dimensions whose product overflows to 4": header(tensors=1, body=tensor("t", [2**62 + 1, 4], 0, 0) + b"\0" * 64),
    "an unknown tensor type": header(tensors=1, body=tensor("t", [4], 999, 0) + b"\0" * 64),
    "a removed tensor type": header(tensors=1, body=tensor("t", [4], 4, 0) + b"\0" * 64),
    "a row that is not whole blocks": header(tensors=1, body=tensor("t", [33], 8, 0) + b"\0" * 64),
    "an offset past the end": header(tensors=1, body=tensor("t", [4], 0, 32 * 1000) + b"\0" * 64),
    "an offset of 2**63": header(tensors=1, body=tensor("t", [4], 0, BIG) + b"\0" * 64),
    "an offset that is not aligned": header(tensors=1, body=tensor("t", [4], 0, 4) + b"\0" * 128),
    "overlapping tensors": header(tensors=2, body=tensor("a", [16], 0, 0) + tensor("b", [16], 0, 32) + b"\0" * 256),
    "two tensors of one name": header(tensors=2, body=tensor("a", [4], 0, 0) + tensor("a", [4], 0, 32) + b"\0" * 256),
    "an alignment of zero": header(1 + 2, 0, 1, key("general.alignment", 4, U32(0)) + b"\0" * 64),
    "an alignment that is no power of two": header(3, 0, 1, key("general.alignment", 4, U32(48)) + b"\0" * 64),
    "an alignment that is text": header(3, 0, 1, key("general.alignment", 8, text("32")) + b"\0" * 64),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_a_clear_error(what: str, tmp_path: Path) -> None:
    with pytest.raises(tl.GGUFError) as caught:
        open_bytes(tmp_path, HOSTILE[what])
    assert "x.gguf" in str(caught.value)
    assert caught.value.__cause__ is None


def test_things_that_are_not_files_are_clear_errors(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, tmp_path / "missing.gguf", fifo, "a\0b", "/dev/zero"):
        with pytest.raises(tl.GGUFError):
            tl.open_gguf(path)


def test_a_file_cut_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    data = tiny_model(tmp_path / "t.gguf").read_bytes()
    end = len(data) - 32  # padding may follow the last tensor
    for cut in [*range(0, 4000, 7), *range(4000, end, 997), end]:
        with pytest.raises(tl.GGUFError):
            open_bytes(tmp_path, data[:cut])


def test_a_header_made_to_cost_memory_is_refused_cheaply(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    strings = 30_000_000  # empty strings: a header of 240 MB, and as many Python objects if the count is trusted
    with path.open("wb") as f:
        f.write(header(keys=1, body=key("a", 9, U32(8) + U64(strings))))
        f.truncate(8 * strings + 1000)
    tracemalloc.start()
    try:
        with pytest.raises(tl.GGUFError, match="accepted"):
            tl.open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_metadata_alone_opens_where_tensor_data_is_missing(tmp_path: Path) -> None:
    data = tiny_model(tmp_path / "t.gguf").read_bytes()
    path = tmp_path / "part.gguf"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(tl.GGUFError, match="truncated"):
        tl.open_gguf(path)
    file = tl.open_gguf(path, metadata_only=True)
    assert file.metadata["llama.block_count"] == 2
    assert file.tensors == {}


def mutations(data: bytes, n: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    interesting = np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8)
    header_end = data.index(b"blk.1.ffn_down.weight") + 60
    out = []
    for _ in range(n):
        copy = np.frombuffer(data, np.uint8).copy()
        for _ in range(rng.integers(1, 4)):  # mostly in the header, which holds the structure
            at = rng.integers(4, header_end if rng.random() < 0.9 else len(data))
            match rng.integers(3):
                case 0:
                    copy[at] ^= 1 << rng.integers(8)
                case 1:
                    copy[at] = rng.choice(interesting)
                case 2:
                    copy[at : at + 8] = rng.choice(interesting)
        raw = copy.tobytes()
        if rng.random() < 0.2:
            cut = int(rng.integers(len(data)))
            raw = raw[:cut] if rng.random() < 0.5 else raw[:cut] + raw[cut + int(rng.integers(1, 64)) :]
        out.append(raw)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_cut_and_flipped_files_raise_our_errors_or_run(arch: str, tmp_path: Path) -> None:
    """At least 5,000 damaged files in all: each opens and runs, or raises one of our errors."""
    data = tiny_model(tmp_path / "t.gguf", arch).read_bytes()
    path = tmp_path / "fuzz.gguf"
    ran = refused = 0
    for raw in mutations(data, 2600, seed=int.from_bytes(os.urandom(4), "little")):
        path.write_bytes(raw)
        try:
            with tl.load_model(path) as model, model.create_session(seq_len=16) as session:
                session.eval(model.encode("the wall", add_special=True))
                session.sample(tl.SamplingParams(temperature=1.0, top_k=5))
                ran += 1
        except tl.TeachLlamaError as e:
            assert str(e)
            refused += 1
        except BaseException:
            (Path(os.environ.get("TEACHLLAMA_FUZZ_KEEP", tmp_path)) / "crash.gguf").write_bytes(raw)
            raise
    assert ran > 100, "mutations should leave some files usable, or nothing deep is reached"
    assert refused > 500


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
        st.one_of(
            st.booleans(),
            st.integers(-(2**62), 2**62),
            st.text(st.characters(codec="utf-8"), min_size=1),
            st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1),
            st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1),
        ),
        max_size=8,
    )
)
def test_any_metadata_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, metadata: dict) -> None:
    metadata = {f"k.{k}": v for k, v in metadata.items()}
    path = write_gguf(tmp_path_factory.mktemp("h") / "t.gguf", metadata, {"t": np.ones(4, np.float32)})
    read = tl.open_gguf(path).metadata
    assert {k: list(read[k]) if isinstance(v, list) else read[k] for k, v in metadata.items()} == metadata


def test_a_copy_in_another_type_holds_the_same_model(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "t.gguf")
    copy = copy_as(source, tmp_path / "c.gguf", F32)
    a, b = tl.open_gguf(source), tl.open_gguf(copy)
    assert a.metadata.keys() == b.metadata.keys()
    assert all(np.array_equal(a.metadata[k], b.metadata[k]) for k in a.metadata)
    assert all(bytes(a.tensor_bytes(n)) == bytes(b.tensor_bytes(n)) for n in a.tensors)


# Split models


def split_model(folder: Path, count: int = 3, stem: str = "big") -> list[Path]:
    """A tiny model in parts, as llama.cpp's gguf-split writes them: all metadata in the first, tensors in order."""
    folder.mkdir(exist_ok=True)
    metadata = tiny_metadata()
    tensors = list(tiny_tensors(metadata).items())
    share = -(-len(tensors) // count)
    paths = []
    for no in range(count):
        own = {"split.no": no, "split.count": count, "split.tensors.count": len(tensors)}
        path = folder / f"{stem}-{no + 1:05}-of-{count:05}.gguf"
        write_part(path, (metadata if no == 0 else {}) | own, dict(tensors[no * share : (no + 1) * share]))
        paths.append(path)
    return paths


def write_part(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Like `write_gguf`, but without the architecture key that its writer adds: later parts do not have it."""
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.kv_data[0].clear()
    for k, v in metadata.items():
        if k.startswith("split."):
            kind = gguf.GGUFValueType.INT32 if k == "split.tensors.count" else gguf.GGUFValueType.UINT16
            kind = gguf.GGUFValueType.STRING if isinstance(v, str) else kind
            writer.add_key_value(k, v, kind)
        elif k == "general.architecture":
            writer.add_string(k, v)
        else:
            _add(writer, k, v)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_any_part_of_a_split_model_opens_the_whole_model(tmp_path: Path) -> None:
    whole = tl.open_gguf(tiny_model(tmp_path / "whole.gguf"))
    parts = split_model(tmp_path / "parts")
    for one in parts:
        with tl.open_gguf(one) as file:
            assert file.path == str(parts[0])
            assert file.paths == tuple(map(str, parts))
            assert file.nbytes == sum(p.stat().st_size for p in parts)
            assert file.tensors.keys() == whole.tensors.keys()
            assert {t.part for t in file.tensors.values()} == {0, 1, 2}
            for name in whole.tensors:
                assert bytes(file.tensor_bytes(name)) == bytes(whole.tensor_bytes(name))
        with tl.open_gguf(one, metadata_only=True) as file:
            assert file.metadata["llama.block_count"] == 2
            assert file.tensors == {}


def test_a_split_model_gives_the_logits_of_the_whole_model(tmp_path: Path) -> None:
    logits = []
    for path in (tiny_model(tmp_path / "whole.gguf"), split_model(tmp_path / "parts")[1]):
        for weights in ("native", "f32"):
            with tl.load_model(path, weights=weights, backend="numpy") as model, model.create_session() as session:
                session.eval([1, 2, 3])
                logits.append(np.array(session.logits))
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


def test_renamed_parts_are_found_by_their_metadata(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    split_model(tmp_path / "parts", stem="other")  # named by the convention, so these parts belong together
    tiny_model(tmp_path / "parts" / "whole.gguf")
    (tmp_path / "parts" / "page.gguf").write_text("<html>")
    renamed = [p.rename(p.with_name(f"{letter}.gguf")) for letter, p in zip("cab", parts, strict=True)]
    for one in renamed:
        with tl.open_gguf(one) as file:
            assert file.paths == tuple(map(str, renamed))
            assert len(file.tensors) == 20


def test_a_part_without_the_others_is_an_error_that_names_them(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    parts[1].unlink()
    with pytest.raises(tl.GGUFError, match=r"part 1 of 3 .* in the same folder; missing: big-00002-of-00003\.gguf"):
        tl.open_gguf(parts[0])
    with pytest.raises(tl.GGUFError, match=r"part 3 of 3 .*big-00002"):
        tl.open_gguf(parts[2])
    assert tl.open_gguf(parts[0], metadata_only=True).metadata["llama.block_count"] == 2
    alone = tl.open_gguf(parts[2], alone=True)
    assert alone.paths == (str(parts[2]),)
    assert 0 < len(alone.tensors) < 20
    moved = parts[2].rename(parts[2].with_name("last.gguf"))
    with pytest.raises(tl.GGUFError, match=r"part 3 of 3 .*missing: part 2, under any name"):
        tl.open_gguf(moved)
    parts[0].unlink()
    moved.rename(parts[2])
    with pytest.raises(tl.GGUFError, match=r"big-00001-of-00003\.gguf.*the first part has the model's metadata"):
        tl.open_gguf(parts[2], metadata_only=True)


def test_two_files_that_could_be_the_same_part_are_an_error_that_names_both(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    for p in parts:
        p.rename(p.with_name(f"x{p.name[4:9]}.gguf"))
    (tmp_path / "parts" / "y.gguf").write_bytes((tmp_path / "parts" / "x00002.gguf").read_bytes())
    with pytest.raises(tl.GGUFError, match=r"'x00002\.gguf' and 'y\.gguf' could each be part 2"):
        tl.open_gguf(tmp_path / "parts" / "x00001.gguf")


ODD = {"odd.weight": np.ones(8, np.float32)}


@pytest.mark.parametrize(
    ("keys", "tensors", "words"),
    [
        ({"split.no": 2}, ODD, "expected part 2 of 3 .* say part 3 of 3"),
        ({"split.no": 7}, ODD, "split.no is 7 and split.count 3"),
        ({"split.count": 4}, ODD, "expected part 2 of 3 .* say part 2 of 4"),
        ({"split.count": 1, "split.no": 0}, ODD, "say no part of a split model"),
        ({"split.count": "three"}, ODD, "split.count 'three'"),
        ({"split.tensors.count": 21}, ODD, "of a model with 21 tensors"),
        ({"split.tensors.count": -1}, ODD, "split.tensors.count is -1"),
        ({}, ODD, "hold 14 tensors, and their metadata say 20"),
        ({}, {"token_embd.weight": np.ones(8, np.float32)}, r"'token_embd.weight' is in 'big-00001-of-00003.gguf' too"),
        ({"general.architecture": "gemma3"}, ODD, "part of another model: its architecture is 'gemma3'"),
    ],
)
def test_parts_that_do_not_belong_together_are_an_error(
    keys: dict[str, Any], tensors: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    parts = split_model(tmp_path / "parts")
    write_part(parts[1], {"split.no": 1, "split.count": 3, "split.tensors.count": 20} | keys, tensors)
    with pytest.raises(tl.GGUFError, match=words):
        tl.open_gguf(parts[0])


@pytest.mark.parametrize("keys", [{"split.count": 0}, {"split.count": 1}, {"split.count": 1, "split.no": 0}])
def test_a_file_split_into_one_is_a_whole_model(keys: dict[str, int], tmp_path: Path) -> None:
    assert len(tl.open_gguf(tiny_model(tmp_path / "t-00001-of-00002.gguf", **keys)).tensors) == 20


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts")
    os.truncate(parts[1], parts[1].stat().st_size - 64)
    with pytest.raises(tl.GGUFError, match=r"big-00002-of-00003\.gguf: .*truncated"):
        tl.open_gguf(parts[0])
    parts[1].write_text("<html>not found</html>")
    with pytest.raises(tl.GGUFError, match=r"big-00002-of-00003\.gguf: not a GGUF file"):
        tl.open_gguf(parts[0])


def test_a_copy_of_a_split_model_is_one_file(tmp_path: Path) -> None:
    from teachllama.requantize import requantize

    copy = requantize(split_model(tmp_path / "parts")[0], tmp_path / "copy.gguf", "F16")
    with tl.open_gguf(copy) as file:
        assert (len(file.tensors), len(file.paths)) == (20, 1)
        assert not any(key.startswith("split.") for key in file.metadata)
