"""A whole embedded service, as a person starts it, and the command line run beside it."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from demo.embedded import running
from service.cli import main

DIGITS: dict[str, object] = {
    "name": "digits",
    "labels": {"team": "tests"},
    "data": {"dataset": "builtin:wine"},
    "regularizers": [{"kind": "l2", "strength": {"init": 0.1, "low": 1e-3, "high": 10.0}}],
    "method": {"kind": "implicit"},
    "budget": {"outer_steps": 30, "tolerance": 1e-3, "wall_seconds": 120.0},
}


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """`hyperdial`, against one server and one data folder."""

    url: str
    folder: Path

    def __call__(self, *arguments: str, stdin: str = "", **more: str) -> Run:
        """Run in this process: a new one for every command would take most of a second."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, self.environment(**more), clear=True))
            stack.enter_context(patch.multiple(sys, stdout=out, stderr=err, stdin=io.StringIO(stdin)))
            stack.enter_context(patch.object(sys, "argv", ["hyperdial", *arguments]))
            before = sys.excepthook
            try:
                main()
            except SystemExit as ended:
                code = ended.code
            finally:
                sys.excepthook = before  # typer sets one
        assert isinstance(code, int)
        return Run(int(code), _written(out), _written(err))

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HYPERDIAL_")}
        return {
            **clean,
            "HYPERDIAL_URL": self.url,
            "HYPERDIAL_DATA_DIR": str(self.folder),
            "HYPERDIAL_QUEUE": "database",
            "COLUMNS": "200",
            **more,
        }


def _written(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


@pytest.fixture(scope="session")
def hyperdial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line beside a service with one worker."""
    folder = tmp_path_factory.mktemp("data")
    with running(folder, workers=1) as url:
        yield CommandLine(url, folder)


ENDLESS: dict[str, object] = {
    **DIGITS,
    "name": "endless",
    "method": {
        "kind": "implicit",
        "solver": {"kind": "identity"},
        "step": {"kind": "adam", "learning_rate": 1e-4},
    },
    "budget": {"outer_steps": 1000000, "tolerance": 1e-12, "wall_seconds": 600.0},
    "verify": False,
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A small job, as a file."""
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(DIGITS))
    return file
