"""Tokenizers: llama.cpp's ids, round trips of any text, and damaged files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachllama.errors import GGUFError, ParameterError, TokenError, UnsupportedModelError
from teachllama.gguf_file import open_gguf
from teachllama.tokenizer import PRE_TOKENIZERS, BytePairTokenizer, StreamDecoder, Tokenizer, tokenizer_from_metadata
from teachllama.tokenizer.byte_level import BYTE_TO_LETTER
from teachllama.tokenizer.merging import NEVER, merge, merge_long
from tests import tokenizer_fuzz
from tests.conftest import GOLDEN, golden

MORE: dict[str, Any] = json.loads((GOLDEN / "tokenize_more.json").read_text(encoding="utf-8"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # any Unicode except surrogates
ABSENT_IN_SMOLLM2 = b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"  # of the 243 bytes that occur in UTF-8


def shuffled(items: list[str]) -> list[str]:
    return sorted(items, key=lambda s: (zlib.crc32(s.encode()), s))


def bpe_metadata(pre: str = "gpt-2", **overrides: Any) -> dict[str, Any]:
    """A byte-level vocabulary where any two of these characters merge, so that only the regex separates words."""
    letters = sorted(
        {BYTE_TO_LETTER[b] for b in "asStTlLrRevEdm'1!. \n\r\t²x\u00e9\u00a0\u3000\u017f中٣\u0301".encode()}
    )
    pairs = shuffled([f"{a} {b}" for a in letters for b in letters])
    triples = [
        f"{a + b} {c}" for a, b, c in ([*p.split(" "), letters[zlib.crc32(p.encode()) % len(letters)]] for p in pairs)
    ]
    made = dict.fromkeys(m.replace(" ", "") for m in pairs + triples)
    special = {"<|end|>": 3, "<|x|>": 3, "  user  ": 4, "user": 4}
    tokens = [*BYTE_TO_LETTER.values(), *(m for m in made if m not in BYTE_TO_LETTER.values()), *special]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([special.get(t, 1) for t in tokens], np.int32),
        "tokenizer.ggml.merges": pairs + triples,
        "tokenizer.ggml.bos_token_id": 7,
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        **{f"tokenizer.ggml.{k}": v for k, v in overrides.items()},
    }


SPM_TEXTS = "▁ a b c < > . é \n ▁a ▁▁ ab ▁ab abc ▁abc ca bc aa ▁▁▁▁ >▁< .▁ >▁ ▁< a. cab ▁c éé"


def spm_metadata(**overrides: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary with byte fallback, and ">▁<", a token that spans a space."""
    texts = [*SPM_TEXTS.split(" "), "\n\na"]
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    extra = {"<c>": 3, "b a": 4, "\n\n": 4, "  user  ": 4, "aab": 4}
    tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), *texts, *extra]
    kinds = special | extra | {f"<0x{b:02X}>": 6 for b in range(256)} | {"cab": 5}
    scores = [0.0] * 259 + [-float(zlib.crc32(t.encode()) % 20) for t in texts] + [-1000.0] * len(extra)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([kinds.get(t, 1) for t in tokens], np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        **{f"tokenizer.ggml.{k}": v for k, v in overrides.items()},
    }


SYNTHETIC: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"bpe {pre}": lambda pre=pre: bpe_metadata(pre) for pre in ("smollm", "llama-bpe", "qwen2", "gpt-2")},
    "spm": spm_metadata,
    "spm without space prefix": lambda: spm_metadata(add_space_prefix=False, add_eos_token=True),
}
TOKENIZERS = {name: tokenizer_from_metadata(metadata()) for name, metadata in SYNTHETIC.items()}


# Vocabularies to fuzz; None means that of the model with this name.
FUZZED: dict[str, Callable[[], dict[str, Any]] | None] = {
    "smollm2-135m": None,
    "gemma3-270m": None,
    **SYNTHETIC,
    **{f"bpe {pre}": lambda pre=pre: bpe_metadata(pre) for pre in ("dbrx", "default")},
}


@pytest.fixture(scope="module")
def smollm2(smollm2_path: str) -> Tokenizer:
    return tokenizer_from_metadata(open_gguf(smollm2_path, metadata_only=True).metadata)


@pytest.fixture(scope="module")
def gemma3(gemma3_path: str) -> Tokenizer:
    return tokenizer_from_metadata(open_gguf(gemma3_path, metadata_only=True).metadata)


def check_golden(tokenizer: Tokenizer, name: str) -> None:
    for case in golden(name)["tokenize"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    for case in golden(name)["generate"]:
        assert tokenizer.encode(case["prompt"], add_special=True, parse_special=True) == case["prompt_ids"]
    check_more(tokenizer, name)


def check_more(tokenizer: Tokenizer, name: str) -> None:
    assert sorted(tokenizer.eog_ids) == MORE[name]["eog"]
    for kind, cases in MORE[name].items():
        options = {"parse_special": "special" in kind, "add_special": "added" in kind}
        for text, ids in cases if kind != "eog" else []:
            assert tokenizer.encode(text, **options) == ids, (kind, text)


# ---- equal to llama.cpp ----


@pytest.mark.model
def test_smollm2_ids_equal_those_of_llama_cpp(smollm2: Tokenizer) -> None:
    check_golden(smollm2, "smollm2-135m")


@pytest.mark.model
def test_gemma3_ids_equal_those_of_llama_cpp(gemma3: Tokenizer) -> None:
    check_golden(gemma3, "gemma3-270m")


@pytest.mark.parametrize("name", SYNTHETIC)
def test_ids_of_a_made_up_vocabulary_equal_those_of_llama_cpp(name: str) -> None:
    check_more(TOKENIZERS[name], name)


def check_fuzzed(tokenizer: Tokenizer, name: str) -> None:
    many, stored = tokenizer_fuzz.all_texts(tokenizer), golden("tokenize_fuzz")[name]
    for parse_special in (False, True):
        ids = [tokenizer.encode(text, parse_special=parse_special, errors="drop") for text in many]
        found, expected = tokenizer_fuzz.digests(tokenizer, ids).split(" "), stored[parse_special].split(" ")
        differ = [text for i, text in enumerate(many) if found[0][2 * i : 2 * i + 2] != expected[0][2 * i : 2 * i + 2]]
        assert not differ, (parse_special, differ[:10])
        assert found == expected, f"special tokens' texts, {parse_special=}"


@pytest.mark.model
def test_smollm2_ids_of_odd_texts_equal_those_of_llama_cpp(smollm2: Tokenizer) -> None:
    check_fuzzed(smollm2, "smollm2-135m")


@pytest.mark.model
def test_gemma3_ids_of_odd_texts_equal_those_of_llama_cpp(gemma3: Tokenizer) -> None:
    check_fuzzed(gemma3, "gemma3-270m")


@pytest.mark.parametrize("name", [name for name, metadata in FUZZED.items() if metadata])
def test_a_made_up_vocabularys_ids_of_odd_texts_equal_those_of_llama_cpp(name: str) -> None:
    metadata = FUZZED[name]
    assert metadata is not None
    check_fuzzed(tokenizer_from_metadata(metadata()), name)


# How llama.cpp's regexes, and Hugging Face's for the same models (tokenizer.json, "pre_tokenizer"), split texts.
WORDS = [
    ("gpt-2", "don't can't WE'LL", ["don", "'t", " can", "'t", " WE", "'", "LL"]),
    ("gpt-2", "a  b   12345!?\n\nc ", ["a", " ", " b", "  ", " 12345", "!?", "\n", "\n", "c", " "]),
    ("smollm", "a  b   123 4!?\n\nc ", ["a", " ", " b", "   ", "1", "2", "3", " ", "4", "!?", "\n", "\n", "c", " "]),
    ("llama-bpe", "WE'LL don't", ["WE", "'LL", " don", "'t"]),
    ("llama-bpe", "a  b   12345!?\n\nc \n d", ["a", " ", " b", "  ", " ", "123", "45", "!?\n\n", "c", " \n", " d"]),
    ("llama-bpe", "(hello) \tworld\r\n\r\n  x", ["(hello", ")", " ", "\tworld", "\r\n\r\n", " ", " x"]),
    ("qwen2", "a  b   12345!?\n\nc \n d", ["a", " ", " b", "  ", " ", *"12345", "!?\n\n", "c", " \n", " d"]),
    ("qwen2", "naïve 日本 x²", ["naïve", " 日本", " x", "²"]),
]


@pytest.mark.parametrize(("pre", "text", "words"), WORDS)
def test_a_pre_tokenizer_cuts_a_text_into_words(pre: str, text: str, words: list[str]) -> None:
    assert list(tokenizer_from_metadata(bpe_metadata(pre))._split(text)) == words
    assert "".join(words) == text


# ---- the round trip ----


def given_back(tokenizer: Tokenizer, text: str) -> str:
    """The expected decoding: SentencePiece uses one token for both a space and U+2581."""
    return text if isinstance(tokenizer, BytePairTokenizer) else text.replace("▁", " ")


@given(TEXT, st.booleans())
@settings(max_examples=300, deadline=None)
def test_decoding_gives_back_any_text(text: str, parse_special: bool) -> None:
    for tokenizer in TOKENIZERS.values():
        assert tokenizer.decode(tokenizer.encode(text, parse_special=parse_special)) == given_back(tokenizer, text)


@given(
    st.text("abc. \n▁<>é1't中s", max_size=80)
    | st.lists(st.sampled_from(["<c>", "<|x|>", "</s>", "user", "  user  ", "b a", " ", "a", "\n\n", "▁"])).map(
        "".join
    ),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_decoding_gives_back_texts_of_the_vocabularys_own_characters(text: str, parse_special: bool) -> None:
    for tokenizer in TOKENIZERS.values():
        assert tokenizer.decode(tokenizer.encode(text, parse_special=parse_special)) == given_back(tokenizer, text)


@pytest.mark.model
@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_smollm2_gives_back_any_text_or_names_the_byte_it_lacks(smollm2: Tokenizer, text: str) -> None:
    if set(text.encode()) & set(ABSENT_IN_SMOLLM2):
        with pytest.raises(TokenError, match="no token for byte 0x"):
            smollm2.encode(text)
    else:
        assert smollm2.decode(smollm2.encode(text)) == text


@pytest.mark.model
@given(TEXT | st.text("▁ <>/ab\n\t"))
@settings(max_examples=200, deadline=None)
def test_gemma3_gives_back_any_text(gemma3: Tokenizer, text: str) -> None:
    assert gemma3.decode(gemma3.encode(text)) == text.replace("▁", " ")


def test_a_lone_surrogate_is_refused_by_name() -> None:
    for tokenizer in TOKENIZERS.values():
        with pytest.raises(TokenError, match=r"character 1 .*udc80.*surrogate"):
            tokenizer.encode("a\udc80")
        with pytest.raises(TokenError, match="bytes"):
            tokenizer.encode(b"a")  # type: ignore[arg-type]


# ---- merging ----


@given(st.text("ab▁", max_size=60), st.dictionaries(st.text("ab▁", min_size=2, max_size=4), st.integers(0, 9)))
@settings(deadline=None)
def test_the_heap_merges_as_the_plain_loop_does(text: str, ranks: dict[str, int]) -> None:
    by_text = lambda a, b: ranks.get(a + b, NEVER)  # as in SentencePiece: equal joined texts, equal ranks
    by_pair = lambda a, b: ranks.get(a + b, NEVER) + len(a) / 10  # as in byte-level BPE: their ranks differ
    for rank in (by_text, by_pair):
        assert merge_long(list(text), rank) == merge(list(text), rank)


@pytest.mark.parametrize("name", ["bpe gpt-2", "bpe llama-bpe", "bpe smollm", "spm"])
@pytest.mark.parametrize("unit", ["x", "a", " ", "\n", "ab", "a.", "<c>"])
def test_very_long_words_take_no_quadratic_time(name: str, unit: str) -> None:
    text = unit * (200_000 // len(unit))
    assert TOKENIZERS[name].decode(TOKENIZERS[name].encode(text)) == text


def test_the_cache_of_words_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachllama.tokenizer.base.CACHE_WORDS", 5)
    tokenizer = tokenizer_from_metadata(spm_metadata())
    text = " ".join(f"w{i}" for i in range(50)) + " " + "y" * 100
    assert tokenizer.encode(text) == TOKENIZERS["spm"].encode(text)
    assert 0 < len(tokenizer._cache) <= 5
    assert max(map(len, tokenizer._cache)) < 100


def test_a_merge_whose_result_is_no_token_ends_as_its_letters() -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.merges"] = ["Q Z", "QZ Q"]
    assert tokenizer_from_metadata(metadata).encode("QZQ") == [ord(c) - 33 for c in "QZQ"]  # as in llama.cpp


# ---- special tokens ----


def test_control_tokens_are_made_only_when_asked_and_user_defined_ones_always() -> None:
    tokenizer = TOKENIZERS["spm"]
    ids = {t: i for i, t in enumerate(spm_metadata()["tokenizer.ggml.tokens"])}
    assert ids["<c>"] not in tokenizer.encode("a<c>a</s>")
    assert tokenizer.encode("<c>a", parse_special=True) == [ids["<c>"], ids["▁a"]]
    assert ids["b a"] in tokenizer.encode("ab a")


def test_merging_never_makes_a_control_token() -> None:
    metadata = bpe_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.token_type"][tokens.index("st")] = 3
    assert tokenizer_from_metadata(metadata).encode("st") == [tokens.index("s"), tokens.index("t")]
    assert tokenizer_from_metadata(metadata).encode("st", parse_special=True) == [tokens.index("st")]


def test_a_user_defined_token_stands_for_its_text_as_it_is_written() -> None:
    metadata = spm_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "▁▁b"  # found in old conversions of Gemma; it is not "  b"
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.encode("▁▁b") == [tokenizer.vocab_size - 1]
    for text in ("  b", "▁▁b", "a  b▁▁b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_longest_special_token_is_found_first_even_if_another_begins_before_it() -> None:
    metadata = spm_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "xyz", "yzxyz"]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [4, 4])
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], [0, 0])
    tokenizer = tokenizer_from_metadata(metadata)
    assert [tokenizer.piece(i) for i in tokenizer.encode("xyzxyz")] == [" ", "x", "yzxyz"]


def test_bos_and_eos_are_added_where_the_file_or_its_kind_says() -> None:
    spm, both = TOKENIZERS["spm"], TOKENIZERS["spm without space prefix"]
    assert (spm.bos_id, spm.eos_id, spm.add_bos, spm.add_eos) == (1, 2, True, False)
    assert spm.encode("", add_special=True) == [1]
    assert both.encode("", add_special=True) == [1, 2]
    assert both.encode("a") == both.encode("a", add_special=True)[1:-1]
    assert TOKENIZERS["bpe llama-bpe"].encode("", add_special=True) == [7]
    assert TOKENIZERS["bpe gpt-2"].encode("", add_special=True) == []


def test_a_text_that_begins_with_the_bos_tokens_text_gets_no_second_bos() -> None:
    spm, both = TOKENIZERS["spm"], TOKENIZERS["spm without space prefix"]
    options: dict[str, Any] = {"add_special": True, "parse_special": True}
    assert spm.encode("<s>a", **options) == spm.encode("a", add_special=True) == [1, *spm.encode("a")]
    assert both.encode("<s>a</s>", **options) == both.encode("a", add_special=True) == [1, *both.encode("a"), 2]
    assert both.encode("<s>", **options) == [1, 2]
    # Without parsing of special tokens it is plain text; later in the text it is encoded as an ordinary BOS.
    assert spm.encode("<s>a", add_special=True) == [1, *spm.encode("<s>a")]
    assert spm.encode("a<s>", **options) == [1, *spm.encode("a"), 1]


@pytest.mark.parametrize("add_special", [False, True])
def test_a_text_that_spells_two_bos_tokens_is_encoded_as_it_is_with_a_warning(add_special: bool) -> None:
    spm = TOKENIZERS["spm"]
    with pytest.warns(UserWarning, match=r"two beginning-of-text tokens \('<s>'\)"):
        assert spm.encode("<s><s>a", add_special=add_special, parse_special=True)[:2] == [1, 1]
    with pytest.warns(UserWarning, match="two beginning-of-text tokens"):
        assert spm.encode_parts([("<s>", True), ("", False), ("<s>a", True)])[:2] == [1, 1]


# ---- bytes that a vocabulary lacks ----


def lacking(*bytes_: int) -> Tokenizer:
    """A SentencePiece vocabulary without tokens for these bytes."""
    metadata = spm_metadata()
    names = {f"<0x{b:02X}>": f"unused {b}" for b in bytes_}
    metadata["tokenizer.ggml.tokens"] = [names.get(t, t) for t in metadata["tokenizer.ggml.tokens"]]
    return tokenizer_from_metadata(metadata)


def test_a_byte_that_no_token_stands_for_is_refused_or_dropped_as_asked() -> None:
    whole, tokenizer = TOKENIZERS["spm"], lacking(0xB8, 0x04)  # 中 is E4 B8 AD
    for text in ("a中b", "\x04", "中中 \x04中", "a" * 50 + "中"):
        with pytest.raises(TokenError, match=r"no token for byte 0x(B8|04)"):
            tokenizer.encode(text)
        kept = [i for i in whole.encode(text) if i not in (3 + 0xB8, 3 + 0x04)]
        assert tokenizer.encode(text, errors="drop") == kept
        assert tokenizer.encode_parts([(text, False)], errors="drop") == kept
        with pytest.raises(TokenError, match="no token for byte"):
            tokenizer.encode(text)  # the ids without the dropped byte must not be cached
    assert tokenizer.encode("abé", errors="drop") == tokenizer.encode("abé") == whole.encode("abé")


def test_the_characters_that_lose_a_byte_are_named_once_each() -> None:
    tokenizer = lacking(0xB8, 0x04)
    assert tokenizer.unwritable("a中b \x04 中") == "中\x04"
    assert tokenizer.unwritable("abc é") == tokenizer.unwritable("") == ""
    assert lacking(0xE4, 0xB8).unwritable("x中") == "中"


def test_dropping_is_no_answer_to_half_a_character_or_a_word_that_is_none() -> None:
    tokenizer = TOKENIZERS["spm"]
    with pytest.raises(TokenError, match="surrogate"):
        tokenizer.encode("a\udc80", errors="drop")
    for errors in ("ignore", "", None):
        with pytest.raises(ParameterError, match="expected 'strict' or 'drop'"):
            tokenizer.encode("a", errors=errors)  # type: ignore[arg-type]


@pytest.mark.model
def test_smollm2_drops_the_bytes_it_lacks_as_llama_cpp_does(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\x04b", errors="drop") == smollm2.encode("a") + smollm2.encode("b")
    assert smollm2.unwritable("a\x04b\x14") == "\x04\x14"


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("text", ["<|im_end|>", "<end_of_turn>", "</s>", "<|eot_id|>", "<reponame>", "<|file_sep|>"])
def test_a_token_known_to_end_a_generation_ends_one_whatever_its_type(text: str, kind: int) -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], text]
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [kind])
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.eog_ids == {tokenizer.vocab_size - 1, tokenizer.eos_id}
    assert tokenizer.vocab_size - 1 not in tokenizer.encode(text)
    assert tokenizer.encode(text, parse_special=True) == [tokenizer.vocab_size - 1]


# ---- pieces and streams ----


@pytest.mark.parametrize("bad", [-1, 10**6, 2**70, 1.0, True, None, "1", np.float32(1)])
def test_what_is_no_token_id_is_refused(bad: Any) -> None:
    for tokenizer in TOKENIZERS.values():
        for call in (tokenizer.piece, tokenizer.piece_bytes, lambda i, t=tokenizer: t.decode([i])):
            with pytest.raises(TokenError, match=f"0 to {tokenizer.vocab_size - 1}"):
                call(bad)


def test_numpy_ids_will_do() -> None:
    tokenizer = TOKENIZERS["spm"]
    assert tokenizer.decode(np.array(tokenizer.encode("a b<c>"), np.int32)) == "a b<c>"
    assert tokenizer.piece(np.int64(1)) == "<s>"


def test_a_piece_is_the_exact_bytes_of_a_token_and_its_text_shows_what_is_no_whole_character() -> None:
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode("中")
        assert b"".join(map(tokenizer.piece_bytes, ids)).lstrip() == "中".encode()
    spm = TOKENIZERS["spm"]
    assert (spm.piece_bytes(3 + 0xE4), spm.piece(3 + 0xE4)) == (b"\xe4", "\ufffd")


def test_an_unpaired_byte_in_a_token_survives() -> None:
    metadata = spm_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = b"\xff\xe2x".decode("utf-8", "surrogateescape")
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.piece_bytes(tokenizer.vocab_size - 1) == b"\xff\xe2x"
    assert tokenizer.piece(tokenizer.vocab_size - 1) == "\ufffd\ufffdx"


@given(st.data())
@settings(deadline=None)
def test_a_stream_gives_what_decoding_everything_gives(data: st.DataObject) -> None:
    for tokenizer in (TOKENIZERS["spm"], TOKENIZERS["bpe gpt-2"]):
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
        skip, stream = data.draw(st.booleans()), StreamDecoder(tokenizer)
        assert "".join(stream.feed([i]) for i in ids) + stream.feed([], final=True) == tokenizer.decode(ids)
        stream = StreamDecoder(tokenizer, skip_special=skip)
        assert stream.feed(ids, final=True) == tokenizer.decode(ids, skip_special=skip)


def test_a_stream_holds_a_character_back_until_it_is_whole() -> None:
    stream, spm = StreamDecoder(TOKENIZERS["spm"]), TOKENIZERS["spm"]
    assert [stream.feed([i]) for i in spm.encode("a中b")] == ["a", "", "", "中", "b"]
    assert stream.feed([3 + 0xE4]) == ""
    assert stream.feed([], final=True) == "\ufffd"


def test_a_stream_that_continues_a_text_keeps_its_first_space() -> None:
    spm = TOKENIZERS["spm"]
    ids = spm.encode("abc ab a")
    for n in range(1, len(ids)):
        assert spm.decode(ids[:n]) + StreamDecoder(spm, after=ids[n - 1]).feed(ids[n:], final=True) == "abc ab a"


def test_control_tokens_can_be_left_out_of_a_decoded_text() -> None:
    spm = TOKENIZERS["spm"]
    ids = spm.encode("<c>a b a</s>", add_special=True, parse_special=True)
    assert spm.decode(ids) == "<s><c>a b a</s>"
    assert spm.decode(ids, skip_special=True) == "a b a"


# ---- damaged files ----

BAD_SPM: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": None}, "tokens': expected an array of strings, found nothing"),
    "an empty list of tokens": ({"tokens": []}, "found none"),
    "tokens that are numbers": ({"tokens": np.arange(3)}, "array of strings, found ndarray"),
    "tokens that are one text": ({"tokens": "abc"}, "array of strings, found str"),
    "a token twice": ({"tokens": ["a", "b", "a"]}, "'a' twice"),
    "too many tokens": ({"tokens": ["a"] * (2**20 + 1)}, "at most 1048576"),
    "scores shorter than tokens": (
        {"scores": np.zeros(3, np.float32)},
        "scores': expected .* numbers.*found 3 of float32",
    ),
    "scores that are text": ({"scores": "high"}, "found str"),
    "scores that are not numbers": ({"scores": np.full(292, np.nan, np.float32)}, "NaN"),
    "fewer types than tokens": ({"token_type": np.ones(3, np.int32)}, "token_type': expected"),
    "types that are fractions": ({"token_type": np.ones(292, np.float32)}, "token_type': expected .*float32"),
    "bos out of range": ({"bos_token_id": 292}, "bos_token_id' is 292; expected a whole number from 0 to 291"),
    "a negative eos": ({"eos_token_id": -1}, "eos_token_id' is -1"),
    "bos that is a truth value": ({"bos_token_id": True}, "bos_token_id' is True"),
    "eot that is text": ({"eot_token_id": "</s>"}, "eot_token_id' is '</s>'"),
    "add_bos that is a number": ({"add_bos_token": 1}, "add_bos_token' is 1; expected true or false"),
    "add_space_prefix that is text": ({"add_space_prefix": "yes"}, "add_space_prefix' is 'yes'"),
}
BAD_BPE: dict[str, tuple[dict[str, Any], str]] = {
    "no merges": ({"merges": None}, "merges': expected an array of strings, found nothing"),
    "a merge of one symbol": ({"merges": ["s t", "st"]}, r"merges\[1\] is 'st'; expected two symbols"),
    "a merge of three symbols": ({"merges": ["s t x"]}, "two symbols"),
    "a merge with nothing to the right": ({"merges": ["s "]}, "two symbols"),
    "an empty merge": ({"merges": [""]}, "two symbols"),
    "bos to add, but none named": ({"add_bos_token": True, "bos_token_id": None}, "there is no bos_token_id"),
    "eos to add, but none named": ({"add_eos_token": True, "eos_token_id": None}, "there is no eos_token_id"),
}


@pytest.mark.parametrize("what", BAD_SPM)
def test_a_damaged_sentencepiece_vocabulary_is_refused_with_the_reason(what: str) -> None:
    change, reason = BAD_SPM[what]
    assert TOKENIZERS["spm"].vocab_size == 292
    with pytest.raises(GGUFError, match=reason):
        tokenizer_from_metadata(spm_metadata(**change))


@pytest.mark.parametrize("what", BAD_BPE)
def test_a_damaged_byte_level_vocabulary_is_refused_with_the_reason(what: str) -> None:
    change, reason = BAD_BPE[what]
    with pytest.raises(GGUFError, match=reason):
        tokenizer_from_metadata(bpe_metadata(**change))


def test_an_unknown_kind_or_pre_tokenizer_is_named_beside_what_is_supported() -> None:
    with pytest.raises(GGUFError, match="holds no tokenizer"):
        tokenizer_from_metadata({})
    for model in ("bert", 7, ["gpt2"]):
        with pytest.raises(UnsupportedModelError, match=r"supported: gpt2, llama"):
            tokenizer_from_metadata({"tokenizer.ggml.model": model})
    for pre in ("mystery", None, 7):
        with pytest.raises(
            UnsupportedModelError, match=rf"{pre!r} is not supported; supported: smollm, .*llama-bpe, .*gpt-2"
        ):
            tokenizer_from_metadata(bpe_metadata(pre))  # type: ignore[arg-type]


def test_empty_tokens_are_told_apart_by_their_ids() -> None:
    metadata = spm_metadata()
    metadata["tokenizer.ggml.tokens"][-2:] = ["", ""]
    assert tokenizer_from_metadata(metadata).piece(291) == "[EMPTY_291]"


def test_a_vocabulary_without_types_scores_or_bytes_still_works_for_the_texts_it_covers() -> None:
    tokenizer = tokenizer_from_metadata(
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["▁", "a", "b", "ab"]}
    )
    assert tokenizer.decode(tokenizer.encode("ab ba")) == "ab ba"
    with pytest.raises(TokenError, match="no token for byte 0xE4"):
        tokenizer.encode("中")


def test_all_names_of_a_rule_cut_alike() -> None:
    assert PRE_TOKENIZERS["llama3"] is PRE_TOKENIZERS["llama-bpe"]
    assert all(tokenizer_from_metadata(bpe_metadata(pre)).encode("a  1") for pre in PRE_TOKENIZERS)
