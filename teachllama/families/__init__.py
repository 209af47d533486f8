"""The model families that this engine runs, as data: how each one changes the common forward pass."""

from __future__ import annotations

from teachllama.errors import ParameterError, UnsupportedModelError
from teachllama.families.common import Family, build_spec
from teachllama.families.deepseek2 import DEEPSEEK2
from teachllama.families.gemma import GEMMA2, GEMMA3
from teachllama.families.gpt_oss import GPT_OSS
from teachllama.families.granite import GRANITE
from teachllama.families.llama import LLAMA
from teachllama.families.olmo2 import OLMO2
from teachllama.families.phi3 import PHI3
from teachllama.families.qwen2 import QWEN2, QWEN2MOE
from teachllama.families.qwen3 import QWEN3, QWEN3MOE

__all__ = ["FAMILIES", "Family", "build_spec", "family_named", "register_family"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, GRANITE, OLMO2, QWEN2MOE, QWEN3MOE, GPT_OSS, DEEPSEEK2,
    )
}  # fmt: skip


def register_family(family: Family, *, replace: bool = False) -> Family:
    """Adds a family, so that `load_model` runs its files.

    Args:
        family: the differences from a plain Llama. Its name is the file's `general.architecture`.
        replace: allow replacing a family of the same name.

    Raises:
        ParameterError: `family` isn't a `Family`, or its name is taken.
    """
    if not isinstance(family, Family):
        raise ParameterError(f"expected a Family, found {type(family).__name__}")
    if family.name in FAMILIES and not replace:
        raise ParameterError(f"a family named {family.name!r} exists already; pass replace=True to use yours instead")
    FAMILIES[family.name] = family
    return family


def family_named(name: object) -> Family:
    """The family of `general.architecture`.

    Raises:
        UnsupportedModelError: this engine does not run that architecture; the message lists those it runs.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {name!r} is not supported; this engine runs {', '.join(sorted(FAMILIES))}. "
            "`teachllama kv` and `teachllama inspect` work for any GGUF file, and `register_family` adds a family"
        )
    return FAMILIES[name]
