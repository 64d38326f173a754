"""What does it cost to answer a request over a Unix socket?"""

import asyncio
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import load
from .echo import Echo
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import for_ever

KIB = 1024


async def serve(announce: Callable[[str], None], path: str) -> None:
    _server = await asyncio.get_running_loop().create_unix_server(
        Echo, path
    )  # which lives as long as it is referred to
    announce(f"unix:{path}")
    await for_ever()


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder, running_server("unix", run, str(Path(folder) / "socket")) as server:
        return load.generate(server, run, size=size, connections=connections).sample()


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, over a Unix socket",
    unit="CPU us/request",
    cases=(Case("1KiBx50", partial(measure, size=KIB, connections=50), target=Ratio(1.1)),),
    serve=serve,
)
