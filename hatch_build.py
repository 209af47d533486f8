"""Adds the course's notebooks, without their outputs, and the glossary to the wheel."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CourseHook(BuildHookInterface):
    """Makes `teachllama/notebooks`, which exists only in an installed package, not in a checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is built."""
        if version == "editable":
            return
        root = Path(self.root)
        folder = Path(tempfile.mkdtemp())
        for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell["outputs"], cell["execution_count"] = [], None
            target = folder / path.name
            target.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            build_data["force_include"][str(target)] = f"teachllama/notebooks/{path.name}"
        build_data["force_include"][str(root / "docs" / "glossary.md")] = "teachllama/notebooks/glossary.md"
