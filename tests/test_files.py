"""Files that are written whole or not at all, and checks of whole numbers."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachllama.errors import ParameterError, TokenError
from teachllama.files import replacing
from teachllama.whole_numbers import is_whole, whole


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_file_s_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError, match="file"), replacing(path) as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_private_file_is_the_user_s_alone_from_the_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    with replacing(path, private=True) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(7)])
def test_integers_in_range_are_whole_numbers(value: Any) -> None:
    assert is_whole(value, 1, 7)
    assert whole("n", value, 1) == value
    assert type(whole("n", value, 1, 7)) is int


@pytest.mark.parametrize("value", [0, 8, True, np.bool_(True), 1.0, np.float32(2), "3", None, [3], np.arange(3)])
def test_what_is_no_integer_or_out_of_range_is_refused_by_name(value: Any) -> None:
    assert not is_whole(value, 1, 7)
    with pytest.raises(ParameterError, match=r"^n is .*; expected a whole number from 1 to 7$"):
        whole("n", value, 1, 7)


def test_a_range_without_end_and_another_error() -> None:
    assert is_whole(10**30, 0)
    with pytest.raises(TokenError, match=r"^n is -1; expected a whole number, 0 or more$"):
        whole("n", -1, 0, error=TokenError)
