"""`requantize` and `teachllama quantize`: copies in another type, whole or not at all; refusals by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, LlamaFileType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teachllama as tl
from teachllama import cli
from teachllama.requantize import KINDS, requantize
from tests.tools import tiny_metadata, tiny_model, tiny_tensors, write_gguf

STORIES = Path(tl.__file__).parent / "data" / "tiny-stories.gguf"


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_copy_in_its_own_type_is_the_same_file_byte_for_byte(tmp_path: Path) -> None:
    assert requantize(STORIES, tmp_path / "copy.gguf", "Q8_0").read_bytes() == STORIES.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_type_is_the_copys_and_a_copy_loads(kind: str, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source.gguf", **{"general.file_type": 0})
    path = requantize(source, tmp_path / "copy.gguf", kind)
    names = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
    with tl.open_gguf(path) as file:
        assert file.metadata["general.file_type"] == LlamaFileType[names.get(kind, f"MOSTLY_{kind}")]
        assert file.nbytes == path.stat().st_size
    with tl.load_model(path, backend="numpy") as model, model.create_session() as session:
        assert np.isfinite(session.eval([1, 2])).all()


def test_embedding_and_output_may_have_a_type_of_their_own(tmp_path: Path) -> None:
    metadata = tiny_metadata()
    tensors = tiny_tensors(metadata)
    tensors["output.weight"] = tensors["token_embd.weight"]
    source = write_gguf(tmp_path / "source.gguf", metadata, tensors)
    with tl.open_gguf(requantize(source, tmp_path / "copy.gguf", "Q4_0", mix="Q8_0")) as file:
        kinds = {name: t.type.name for name, t in file.tensors.items()}
    assert (kinds.pop("token_embd.weight"), kinds.pop("output.weight")) == ("Q8_0", "Q8_0")
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_0"}


def test_metadata_of_every_type_is_copied_byte_for_byte(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    source = tmp_path / "source.gguf"
    writer = GGUFWriter(source, "llama", use_temp_file=False)
    for i, bits in enumerate((8, 16, 32, 64)):
        getattr(writer, f"add_uint{bits}")(f"a.u{bits}", 3 + i)
        getattr(writer, f"add_int{bits}")(f"a.i{bits}", -3 - i)
    writer.add_float64("a.third", 1 / 3)
    writer.add_string("a.name", "ü\x1b[2J")
    writer.add_array("a.flags", [True, False])
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    raw = requantize(source, tmp_path / "copy.gguf", "F16").read_bytes()
    with tl.open_gguf(source) as before, tl.open_gguf(tmp_path / "copy.gguf") as after:
        begin = source.read_bytes()[24:]
        keys = begin[: begin.index(b"a.weight") - 8]
        assert keys in raw
        assert set(after.metadata) - set(before.metadata) == {"general.file_type"}


def test_routers_and_biases_keep_their_type(tmp_path: Path) -> None:
    names = ("blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.bias", "blk.0.attn_q_norm.weight", "blk.0.attn_q.weight")
    source = write_gguf(
        tmp_path / "source.gguf", {"general.architecture": "x"}, {n: np.ones((2, 32), np.float32) for n in names}
    )
    with tl.open_gguf(requantize(source, tmp_path / "copy.gguf", "Q8_0")) as file:
        assert [file.tensors[n].type.name for n in names] == ["F32", "F32", "F32", "Q8_0"]


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    source, target = tiny_model(tmp_path / "source.gguf"), tmp_path / "copy.gguf"
    target.write_text("mine")
    with pytest.raises(tl.ParameterError, match="is there already"):
        requantize(source, target, "Q8_0", replace=False)
    assert target.read_text() == "mine"
    requantize(source, target, "Q8_0")
    assert target.read_bytes()[:4] == b"GGUF"
    assert files(tmp_path) == ["copy.gguf", "source.gguf"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source, target = tiny_model(tmp_path / "source.gguf"), tmp_path / "copy.gguf"
    with pytest.raises(tl.ParameterError, match="is there already"):
        requantize(source, target, "Q8_0", replace=False, progress=lambda *_: target.write_text("mine") and None)
    assert target.read_text() == "mine"
    assert files(tmp_path) == ["copy.gguf", "source.gguf"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_copy_that_stops_half_way_leaves_nothing(failure: Any, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source.gguf")

    def stop(done: int, nbytes: int, name: str) -> None:
        if done > nbytes // 2:
            raise failure

    expected = KeyboardInterrupt if failure is KeyboardInterrupt else tl.ParameterError
    with pytest.raises(expected):
        requantize(source, tmp_path / "copy.gguf", "Q8_0", progress=stop)
    assert files(tmp_path) == ["source.gguf"]


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ([np.nan], "Q8_0", "not finite"),
        ([np.inf], "BF16", "not finite"),
        ([-1e6], "F16", "not converted to F16"),
        ([1e6], "Q4_0", "not converted to Q4_0"),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused_by_tensor(
    values: list[float], kind: str, says: str, tmp_path: Path
) -> None:
    data = np.zeros((2, 32), np.float32)
    data[1, 5] = values[0]
    source = write_gguf(tmp_path / "source.gguf", {"general.architecture": "x"}, {"a.weight": data})
    with pytest.raises(tl.GGUFError, match=rf"'a\.weight' has values .*{says}"):
        requantize(source, tmp_path / "copy.gguf", kind)
    assert files(tmp_path) == ["source.gguf"]


def test_blocks_that_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    damaged, q8_0 = np.full((2, 34), 255, np.uint8), GGMLQuantizationType.Q8_0  # the scales are NaN
    source = write_gguf(
        tmp_path / "s.gguf",
        {"general.architecture": "x"},
        {"a.weight": damaged},
        {"a.weight": q8_0},
    )
    with pytest.raises(tl.GGUFError, match="not finite"):
        requantize(source, tmp_path / "copy.gguf", "Q4_0")


@pytest.mark.parametrize("target", ["", "/", "nowhere/copy.gguf", "/dev/null", "a\0b", "x" * 300])
def test_a_target_that_cannot_be_a_file_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(tl.ParameterError):
        requantize(tiny_model(tmp_path / "source.gguf"), os.path.join(tmp_path, target), "Q8_0")
    assert files(tmp_path) == ["source.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_the_source_is_not_written_through_a_link(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "source.gguf")
    before = source.read_bytes()
    (tmp_path / "link.gguf").symlink_to(source)
    os.link(source, tmp_path / "hard.gguf")
    for name in ("link.gguf", "hard.gguf"):
        with pytest.raises(tl.ParameterError, match="the source itself"):
            requantize(source, tmp_path / name, "Q8_0")
    assert source.read_bytes() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_a_file_with_a_changed_byte_is_copied_or_refused(at: int, byte: int, tmp_path: Path) -> None:
    raw = bytearray(tiny_model(tmp_path / "source.gguf").read_bytes())
    raw[at] = byte
    (tmp_path / "hostile.gguf").write_bytes(raw)
    target = tmp_path / "copy.gguf"
    try:
        requantize(tmp_path / "hostile.gguf", target, "Q8_0")
    except tl.TeachLlamaError:
        assert files(tmp_path) == ["hostile.gguf", "source.gguf"]
    else:
        with tl.open_gguf(target) as file:
            assert file.tensors
        target.unlink()


# The command


def test_the_command_prints_sizes_and_bits_and_what_the_source_has_lost(tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "q4.gguf"
    assert cli.main(["quantize", "tiny-stories", str(target), "q4_0", "--mix", "q8_0"]) == 0
    out = capsys.readouterr().out
    assert f"{STORIES.stat().st_size:,}" in out
    assert f"{target.stat().st_size:,}" in out
    assert "8.53" in out
    assert "4.93" in out
    assert "43 matrices: 42 as Q4_0; 14 tensors as they were" in out
    assert "quantized already (Q8_0)" in out
    assert cli.main(["quantize", "tiny-stories", str(target), "q4_0"]) == 1
    assert "or use --force" in capsys.readouterr().err
    assert cli.main(["quantize", "tiny-stories", str(target), "F16", "--force"]) == 0
    assert "restores nothing" in capsys.readouterr().out


def test_matrices_that_no_block_fits_are_named(tmp_path: Path, capsys: Any) -> None:
    source = write_gguf(
        tmp_path / "s.gguf", {"general.architecture": "x"}, {"odd\x1b.weight": np.ones((3, 33), np.float32)}
    )
    assert cli.main(["quantize", str(source), str(tmp_path / "copy.gguf"), "Q8_0"]) == 0
    out = capsys.readouterr().out
    assert "1 matrices could not be Q8_0" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("q4_k", "Q4_K is not among those that the gguf package can write"),
        ("Q4_K_M", "a mixture of types"),
        ("IQ2_XS", "IQ2_XS is not among"),
        ("banana", "type is 'BANANA'"),
        ("", "type is ''"),
    ],
)
def test_a_type_that_cannot_be_written_is_refused_by_name(kind: str, says: str, tmp_path: Path, capsys: Any) -> None:
    for more in ([kind], ["Q8_0", "--mix", kind or "X"]):
        assert cli.main(["quantize", "tiny-stories", str(tmp_path / "copy.gguf"), *more]) == 1
        err = capsys.readouterr().err
        assert "expected one of F32, F16" in err
        assert says in err or not kind
    assert files(tmp_path) == []


def test_a_missing_source_and_one_that_is_no_model_are_one_line_each(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    for name in ("nothing.gguf", "page.gguf", "no-such-model"):
        source = str(tmp_path / name) if name.endswith("gguf") else name
        assert cli.main(["quantize", source, str(tmp_path / "copy.gguf"), "Q8_0"]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
    assert files(tmp_path) == ["page.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix sends them")
def test_ctrl_c_leaves_nothing_and_is_status_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from teachllama import cli, requantize\n"
        "real = requantize._converted\n"
        "def interrupted(file, info, kind):\n"
        "    if info.name.startswith('blk.3'): os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(file, info, kind)\n"
        "requantize._converted = interrupted\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", "tiny-stories", str(tmp_path / "copy.gguf"), "Q4_0"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == []
