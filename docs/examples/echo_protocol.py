"""An echo server of asyncio protocols, run on uringloop by one argument.

Run it: python docs/examples/echo_protocol.py [HOST [PORT]]
Try it: nc 127.0.0.1 7777
"""

import asyncio
import contextlib
import sys

import uringloop


class Echo(asyncio.Protocol):
    """Sends back what it receives, and stops reading while the peer does not take it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main(host: str = "127.0.0.1", port: str = "7777") -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, host, int(port))
    print("listening on", *server.sockets[0].getsockname(), flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
