"""Fixtures shared by all tests: where the real models are, and the golden figures of llama.cpp."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden"

if "PYTEST_XDIST_WORKER" in os.environ:  # workers inherit the terminal's width, but their output goes to no terminal
    os.environ.pop("COLUMNS", None)

# No deadline: a busy machine must not fail a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under xdist, keeps each file's tests in one process, to share fixtures; notebooks are distributed one by one."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("notebook") is None:
                item.add_marker(pytest.mark.xdist_group(item.path.name))


def _model_path(variable: str, name: str) -> str:
    if path := os.environ.get(variable):
        return path
    from teachllama import hub
    from teachllama.errors import TeachLlamaError

    try:
        return str(hub.find(name))
    except TeachLlamaError as e:
        pytest.skip(f"{name} is not here: {e}")


@pytest.fixture(scope="session")
def smollm2_path() -> str:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _model_path("TEACHLLAMA_TEST_SMOLLM2", "smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> str:
    """Gemma 3 270M, Q4_K_M."""
    return _model_path("TEACHLLAMA_TEST_GEMMA3", "gemma3-270m")


def golden(name: str) -> dict[str, Any]:
    """llama.cpp's tokens and logits for a model; `how` in the file describes how they were made."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
