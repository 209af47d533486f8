"""The recorded program: its steps, where threads meet, and which work is split."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import teachllama as tl
from teachllama.kernels.program import Instructions, lower
from teachllama.kernels.record import Program, record
from tests.families import VARIANTS, build
from tests.tools import tiny_model

# The hand-written program of one plain Llama layer for one token; steps between two barriers need no wait.
LAYER_OF_ONE_TOKEN = [
    ["norm", "linear q", "linear k", "linear v"],
    ["rope", "rope", "attend"],
    ["join", "linear output"],
    ["add", "norm", "linear gate", "linear up", "gate"],
    ["linear down"],
    ["add"],  # the next layer continues this stage
]
LAYER_OF_MANY = [
    ["norm"],
    ["linear q", "linear k", "linear v"],
    ["rope", "rope", "store", "store"],
    ["attend"],
    ["linear output"],  # with the addition to the residual stream fused in
    ["norm"],
    ["linear gate", "linear up", "gate"],
    ["linear down"],
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, tl.ModelSpec]:
    path = tiny_model(tmp_path_factory.mktemp("program") / "t.gguf", **{"llama.block_count": 3})
    with tl.load_model(path, backend="numpy", weights="f32") as model:
        return record(model.spec, model.weights), model.spec


def stages(made: Instructions) -> list[list[str]]:
    """The names of instructions between barriers."""
    out: list[list[str]] = [[]]
    for name, how in made.listing():
        if how == "all meet":
            out.append([])
        else:
            out[-1].append(name)
    return [stage for stage in out if stage]


def plain(stage: list[str]) -> list[str]:
    return [name.split()[0] for name in stage]


def test_a_llama_layer_of_one_token_has_the_five_barriers_a_hand_would_write(
    recorded: tuple[Program, tl.ModelSpec],
) -> None:
    program, spec = recorded
    made = lower(program, spec, few=True)
    found = stages(made)
    hand: list[list[str]] = [["embed"]]
    for _ in range(3):
        hand[-1] += plain(LAYER_OF_ONE_TOKEN[0])
        hand += [plain(stage) for stage in LAYER_OF_ONE_TOKEN[1:]]
    hand[-1] += ["logits"]
    assert found == hand
    assert sum(how == "all meet" for _, how in made.listing()) == 5 * 3 + 1


def test_a_llama_layer_of_many_tokens_has_eight(recorded: tuple[Program, tl.ModelSpec]) -> None:
    program, spec = recorded
    found = stages(lower(program, spec, few=False))
    # The first norm needs no wait: the thread that embedded a tile also normalizes it.
    hand = [["embed", "norm"]] + [plain(stage) for stage in LAYER_OF_MANY[1:]]
    for _ in range(2):
        hand += [plain(stage) for stage in LAYER_OF_MANY]
    assert found == [*hand, ["logits"]]


def test_norms_rotations_and_additions_are_repeated_and_products_split(recorded: tuple[Program, tl.ModelSpec]) -> None:
    program, spec = recorded
    how = dict(lower(program, spec, few=True).listing())
    assert {name for name, h in how.items() if h == "split"} == {"linear", "attend", "gate", "logits"}
    assert {name for name, h in how.items() if h == "repeated"} == {"embed", "norm", "rope", "join", "add"}


def test_every_value_is_made_once_and_before_it_is_read(recorded: tuple[Program, tl.ModelSpec]) -> None:
    program, _ = recorded
    made = set()
    for step in program.steps:
        assert set(step.inputs) <= made
        assert step.out not in made
        made.add(step.out)
    text = str(program)
    assert text.count("attend") == 3
    assert "linear" in text
    assert "<8 x 32>" not in text.splitlines()[0]


READS = {  # operands that each operation reads, for one token
    "norm": "x", "linear": "x", "rope": "x", "attend": "xyz", "add": "xy", "gate": "xy", "copy": "x",
    "linear_heads": "x", "select": "x", "experts_up": "x", "experts_down": "x", "times_sigmoid": "xy", "logits": "x",
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_thread_wrote_its_share_of_is_read_after_a_barrier(variant: str, tmp_path: Path) -> None:
    # An independent check of the operands, because places in the workspace are reused.
    with tl.load_model(build(variant, tmp_path / "t.gguf"), backend="numpy", weights="f32") as model:
        made = lower(record(model.spec, model.weights), model.spec, few=True)
    written: dict[int, tuple[str, int]] = {}  # shared offset -> the instruction that wrote it since the last barrier
    read: set[int] = set()
    for i, (row, (name, how)) in enumerate(zip(made.table, made.listing(), strict=True)):
        if how == "all meet":
            written.clear()
            read.clear()
            continue
        for operand in (int(row[field]) for field in READS.get(name, "")):
            if operand & 1 == 0:  # shared
                writer, rows = written.get(operand >> 1, ("", 0))
                assert not writer or (name, writer, rows) == ("gate", "linear", row["rows"]), f"{i}: {name}, {writer}"
                read.add(operand >> 1)
        if how == "split" and name not in ("attend", "logits"):
            at = int(row["out"]) >> 1
            assert int(row["out"]) & 1 == 0
            assert at not in read or name == "gate", f"{i}: {name} overwrites what another thread may still read"
            written[at] = (name, int(row["rows"]))


def test_inspect_prints_the_program_and_counts(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "t.gguf")
    done = subprocess.run(
        [sys.executable, "-m", "teachllama", "inspect", "--program", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "attend(0, " in done.stdout
    assert "a few tokens: " in done.stdout
    assert "threads meet 11 times" in done.stdout  # two layers


def test_a_family_added_in_ten_lines_runs_on_both_backends(tmp_path: Path) -> None:
    from dataclasses import replace

    from teachllama.families import FAMILIES

    mine = tl.Family(
        "louder", "Llama, whose layers add twice as much", change=lambda m, spec: replace(spec, residual_scale=2.0)
    )
    tl.register_family(mine)
    try:
        with pytest.raises(tl.ParameterError, match="louder"):
            tl.register_family(mine)
        ids = np.arange(9)
        overrides = {"general.architecture": "louder"}
        from tests.tools import tiny_metadata, tiny_tensors, write_gguf

        metadata = {k.replace("llama.", "louder."): v for k, v in (tiny_metadata() | overrides).items()}
        sizes = {"louder.embedding_length": 64, "louder.feed_forward_length": 96}
        metadata |= sizes
        tensors = tiny_tensors(metadata)
        path = write_gguf(tmp_path / "t.gguf", metadata, tensors)
        with (
            tl.load_model(path, backend="numpy", weights="f32") as a,
            tl.load_model(path) as b,
            a.create_session() as s,
            b.create_session() as t,
        ):
            np.testing.assert_allclose(t.eval(ids), s.eval(ids), atol=1e-4)
    finally:
        del FAMILIES["louder"]


def test_a_registered_family_must_be_one() -> None:
    with pytest.raises(tl.ParameterError, match="Family"):
        tl.register_family("llama")  # type: ignore[arg-type]
