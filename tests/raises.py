"""Keeps which lines of the package raised: `pytest --raises=FOLDER`, Python 3.12.

`python docs/errors.py FOLDER` then lists the errors that no test provoked.
"""

import json
import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import hwtrain

PACKAGE = str(Path(hwtrain.__file__).parent)


class Raises:
    """A plugin that watches every raise of the package, in this process."""

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._found: dict[str, set[int]] = {}
        watch: Any = sys.monitoring  # type: ignore[attr-defined]
        watch.use_tool_id(watch.COVERAGE_ID, "raises")
        self.pytest_runtest_setup()

    def pytest_runtest_setup(self) -> None:
        """Watches anew, because a profiler in a test may have ended it."""
        watch: Any = sys.monitoring  # type: ignore[attr-defined]
        watch.register_callback(watch.COVERAGE_ID, watch.events.RAISE, self._raised)
        watch.set_events(watch.COVERAGE_ID, watch.events.RAISE)

    def _raised(self, code: CodeType, offset: int, error: BaseException) -> None:
        if code.co_filename.startswith(PACKAGE):
            line = list(code.co_positions())[offset // 2][0]
            file = f"hwtrain{code.co_filename.removeprefix(PACKAGE)}"
            if line is not None:
                self._found.setdefault(file, set()).add(line)

    def pytest_sessionfinish(self) -> None:
        """Writes the lines of this process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = {file: sorted(found) for file, found in sorted(self._found.items())}
        path = self._folder / f"{os.getpid()}.json"
        path.write_text(json.dumps(lines), "utf-8")
