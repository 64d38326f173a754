"""What does a request cost to an application? aiohttp says hello; wrk asks.

Most of it is aiohttp's own work, which is the same on all loops: this is what a change of loops is worth to a program.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from . import wrk
from .question import Case, Question, Ratio


async def serve(announce: Callable[[str], None]) -> None:
    web: Any = importlib.import_module("aiohttp.web")

    async def hello(request: Any) -> Any:
        return web.Response(text="Hello, world!\n")

    await wrk.serve(announce, "/", hello)


QUESTION = Question(
    title="aiohttp says hello, over HTTP",
    unit="CPU us/request",
    cases=(Case("x50", partial(wrk.measure, question="http", path="/", connections=50), target=Ratio(1.05)),),
    serve=serve,
)
