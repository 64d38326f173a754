"""TLS over any transport: asyncio's, with what our other transports give too.

Facts: asyncio's SSLProtocol is the protocol of the transport below and makes the one that the application sees. It
calls the application in the context of whoever called, and while close() waits for the peer it still hands out what
arrives; a record that comes after that fails the connection ("application data after close notify"). It reads until an
exception says that there is no more, 256 KiB of new memory at a time, though a record has 16 KiB at the most.
So: its states, time limits and errors stay; how the application is called and how records are read is here.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from typing import TYPE_CHECKING, Any

from uringloop import compat
from uringloop.transports.base import is_buffered

if TYPE_CHECKING:
    from uringloop.loop import Loop

RECORD_BYTES = 16 * 1024  # the most that a record holds, and so a read gives

_WRAPPED = compat.SSLProtocolState.WRAPPED
_FLUSHING = compat.SSLProtocolState.FLUSHING
_SHUTDOWN = compat.SSLProtocolState.SHUTDOWN
_UNWRAPPED = compat.SSLProtocolState.UNWRAPPED


class SSLTransport(compat.SSLProtocolTransport):  # type: ignore[misc]
    """What the application writes to."""

    _closed: bool
    _ssl_protocol: SSLProtocol

    def __init__(self, loop: Loop, ssl_protocol: SSLProtocol, context: contextvars.Context) -> None:
        super().__init__(loop, ssl_protocol)
        self._context = context

    def close(self) -> None:
        if not self._closed:
            self._ssl_protocol.discard()
        super().close()


class SSLProtocol(compat.SSLProtocol):  # type: ignore[misc]
    """What stands between the transport below and the application. `context` is the one of the application's
    callbacks."""

    # asyncio's.
    _app_protocol: Any
    _app_protocol_is_buffer: bool
    _app_reading_paused: bool
    _app_transport: SSLTransport | None
    _app_transport_created: bool
    _app_writing_paused: bool
    _eof_received: bool
    _incoming: ssl.MemoryBIO
    _loop: Loop
    _outgoing: ssl.MemoryBIO
    _sslobj: ssl.SSLObject
    _write_backlog: Any

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None,
        *,
        context: contextvars.Context,
        **options: Any,
    ) -> None:
        self._context = context
        self._discards = False  # the application has closed: what arrives is not for it
        self._held = False  # between the end of the handshake and the next turn
        super().__init__(loop, protocol, sslcontext, waiter, **options)

    def discard(self) -> None:
        """From now on nothing is handed to the application."""
        self._discards = True

    def _get_app_transport(self) -> SSLTransport:
        if self._app_transport is None and not self._app_transport_created:
            self._app_transport = SSLTransport(self._loop, self, self._context)
            self._app_transport_created = True
        return super()._get_app_transport()  # type: ignore[no-any-return]

    def _set_app_protocol(self, app_protocol: Any) -> None:
        super()._set_app_protocol(app_protocol)
        if not self._app_protocol_is_buffer and is_buffered(app_protocol):
            self._app_protocol_get_buffer = app_protocol.get_buffer
            self._app_protocol_buffer_updated = app_protocol.buffer_updated
            self._app_protocol_is_buffer = True

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "uvloop.sslproto":  # by which uvloop's users find it
            return self
        return super()._get_extra_info(name, default)

    # --- calls of the application, in its context --------------------------------------------------------------------
    # What the transport below calls is in the context already, and a context cannot be entered twice: a copy, as on
    # uvloop.

    def _control_app_writing(self) -> None:
        size = self._outgoing.pending + self._write_buffer_size
        due = size <= self._outgoing_low_water if self._app_writing_paused else size >= self._outgoing_high_water
        if due:
            self._context.copy().run(super()._control_app_writing)

    def _call_eof_received(self) -> None:
        self._context.copy().run(super()._call_eof_received)

    def _resume_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            self._loop.call_soon(self._read_on, context=self._context)

    def _read_on(self) -> None:
        if self._state is _WRAPPED:
            self._do_read()
        elif self._state is _FLUSHING:
            self._do_flush()
        elif self._state is _SHUTDOWN:
            self._do_shutdown()

    # --- the handshake -----------------------------------------------------------------------------------------------

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        # Whoever waits for the handshake is to have the new transport before the first bytes come: a protocol that is
        # upgraded has no other way to learn of it.
        self._held = True
        try:
            super()._on_handshake_complete(handshake_exc)
        except (SystemExit, KeyboardInterrupt):  # of connection_made
            self._loop.call_soon(self._made, context=self._context)  # if the loop is run again
            raise
        handshake_exc = None  # its traceback leads to this frame: else both wait for the collector
        if self._held and self._state is not _UNWRAPPED:
            self._loop.call_soon(self._let_go, context=self._context)

    def _made(self) -> None:
        self._wakeup_waiter()
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._read_on()

    def eof_received(self) -> Any:
        self._held = False  # what came before it must be handed out now, or never
        return super().eof_received()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _do_read(self) -> None:
        state = self._state
        if state is not _WRAPPED and state is not _FLUSHING:
            return
        try:
            if self._discards:
                self._read_into_void()
            elif not self._app_reading_paused and not self._held:
                if self._app_protocol_is_buffer:
                    self._do_read__buffered()
                else:
                    self._do_read__copied()
            if self._write_backlog:
                self._do_write()
            else:
                self._process_outgoing()
            self._control_ssl_reading()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")

    def _do_read__copied(self) -> None:
        incoming, sslobj = self._incoming, self._sslobj
        chunks: list[bytes] = []
        closed = False
        try:
            while incoming.pending or sslobj.pending():  # so that the exception is rare, which is dear
                chunk = sslobj.read(RECORD_BYTES)
                if not chunk:
                    closed = True
                    break
                chunks.append(chunk)
        except compat.SSL_AGAIN_ERRORS:
            pass
        if chunks:
            self._app_protocol.data_received(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if closed:  # by a close_notify
            self._call_eof_received()
            self._start_shutdown()

    def _read_into_void(self) -> None:
        read = self._sslobj.read
        try:
            while read(RECORD_BYTES):
                pass
        except compat.SSL_AGAIN_ERRORS:
            return
        except ssl.SSLZeroReturnError:
            pass
        self._call_eof_received()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _do_shutdown(self) -> None:
        if not self._eof_received:
            try:
                self._read_into_void()  # what is left there would fail it
            except ssl.SSLError as exc:
                self._on_shutdown_complete(exc)
                return
        super()._do_shutdown()


async def start_tls(
    loop: Loop, transport: Any, protocol: asyncio.BaseProtocol, sslcontext: ssl.SSLContext, **options: Any
) -> SSLTransport | None:
    """The upgrade of a transport: what `loop.start_tls` is on asyncio. None if the connection was lost meanwhile."""
    if not isinstance(sslcontext, ssl.SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
    if not getattr(transport, "_start_tls_compatible", False):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    context = getattr(transport, "_context", None) or contextvars.copy_context()
    waiter = loop.create_future()
    upgraded = SSLProtocol(loop, protocol, sslcontext, waiter, context=context, call_connection_made=False, **options)
    transport.pause_reading()  # so that nothing comes before connection_made
    _take_over(protocol, upgraded)
    transport.set_protocol(upgraded)
    steps = [
        loop.call_soon(upgraded.connection_made, transport, context=context),
        loop.call_soon(transport.resume_reading),
    ]
    try:
        await waiter
    except BaseException:
        transport.close()
        for step in steps:
            step.cancel()
        del waiter  # it has the exception, whose traceback leads to this frame
        raise
    return upgraded._app_transport


def _take_over(protocol: asyncio.BaseProtocol, upgraded: SSLProtocol) -> None:
    """What a StreamReader has received and nobody has read is the beginning of the peer's handshake."""
    reader = getattr(protocol, "_stream_reader", None)
    if isinstance(protocol, asyncio.StreamReaderProtocol) and reader is not None and reader._buffer:
        upgraded._incoming.write(reader._buffer)
        reader._buffer.clear()
