"""docs/beyond.md: its code runs, and what the text says of the output is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "beyond.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)

pytestmark = pytest.mark.model


def output_of(program: str, smollm2_path: str) -> str:
    program = program.replace('"smollm2-135m"', repr(smollm2_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_value_depends_on_text_that_a_shift_would_drop(smollm2_path: str) -> None:
    found = re.search(
        r"value differs by (\d+) %\n.* moves the logits by up to (\d+\.\d)", output_of(PROGRAMS[0], smollm2_path)
    )
    assert found
    assert int(found[1]) == pytest.approx(38, abs=1)
    assert float(found[2]) == pytest.approx(3.9, abs=0.1)


def test_a_mask_chooses_no_where_the_model_would_begin_with_the(smollm2_path: str) -> None:
    lines = output_of(PROGRAMS[1], smollm2_path).splitlines()
    assert lines[:2] == ["free:        'The'", "constrained: 'No'"]
    share = re.fullmatch(r"the two words had ([\d.]+) % of the probability", lines[2])
    assert share
    assert float(share[1]) == pytest.approx(11.0, abs=0.1)  # so nine in ten would have said something else
    assert len(PROGRAMS) == 2
