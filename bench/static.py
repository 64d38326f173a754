"""What does it cost to serve a file over HTTP? aiohttp's FileResponse, unchanged; wrk asks for it."""

import importlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import wrk
from .question import Case, Question

KIB = 1024
SIZES = {"1KiB": KIB, "100KiB": 100 * KIB, "10MiB": 10 * KIB * KIB}
CONNECTIONS = 16


async def serve(announce: Callable[[str], None]) -> None:
    web: Any = importlib.import_module("aiohttp.web")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, count in SIZES.items():
            (folder / size).write_bytes(b"x" * count)

        async def answer(request: Any) -> Any:
            return web.FileResponse(folder / request.match_info["size"])

        await wrk.serve(announce, "/{size}", answer)


def case(size: str) -> Case:
    measure = partial(wrk.measure, question="static", path=f"/{size}", connections=CONNECTIONS)
    return Case(size, measure, default=False)


QUESTION = Question(
    title="aiohttp's FileResponse, over HTTP",
    unit="CPU us/request",
    cases=tuple(case(size) for size in SIZES),
    serve=serve,
)
