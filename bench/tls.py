"""What does it cost to answer a request over TLS? The encryption is Python's own `ssl`, the same on all loops."""

import importlib
import ssl
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import load
from .echo import Echo, serve_protocol
from .launch import running_server
from .question import Case, Failed, Question, Ratio, Run, Sample

KIB = 1024


def write_certificate(path: Path) -> None:
    """A key and a certificate, made for this run."""
    try:
        trustme: Any = importlib.import_module("trustme")
    except ImportError as error:
        raise Failed(str(error)) from None
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)


async def serve(announce: Callable[[str], None], certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    await serve_protocol(announce, Echo, ssl=context)


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / "certificate.pem"
        write_certificate(certificate)
        with running_server("tls", run, str(certificate)) as server:
            return load.generate(server, run, size=size, connections=connections, tls=True).sample()


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, over TLS",
    unit="CPU us/request",
    cases=(
        Case("1KiBx50", partial(measure, size=KIB, connections=50), target=Ratio(1.0)),
        Case("100KiBx10", partial(measure, size=100 * KIB, connections=10), target=Ratio(1.0)),
    ),
    serve=serve,
)
