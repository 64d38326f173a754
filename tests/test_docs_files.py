"""The examples of docs/files.md, in order, in one folder, as one program each for the loop."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import FileResponse
from support import LOOPS

PAGE = Path(__file__).parents[1] / "docs" / "files.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("loop", ["uringloop", "asyncio"])
def test_examples_run(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FileResponse, "_open_file", FileResponse._open_file)  # to be put back
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        for example in EXAMPLES:
            code = compile(example, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if running is not None:
                runner.run(running)
    assert capsys.readouterr().out == "first line\nsecond line\nthird line\n12\n"
    assert Path("inbox/journal").read_bytes() == b"it happened\n"
