"""The event loop: asyncio's own selector loop, with the ring in the selector's place and the native paths in
asyncio's seams.

Everything that is neither here nor in what it imports is asyncio's: happy eyeballs, `Server`, signals, executors,
exception handlers, the calls of subprocesses' protocols, the states of TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from uringloop import compat, environment, transports
from uringloop.operations import Operations
from uringloop.probe import DATAGRAM_BUFFERS, DEFAULT_ENTRIES, default_buffers, probe, unwanted_flags, usable_files
from uringloop.reactor import EVENT_DATAGRAM, EVENT_READABLE, TURN_DUE, Event, Options, Reactor, unpack_event
from uringloop.scheduling import NO_TIMER, UNKNOWN_TIMER, Scheduling
from uringloop.selector import RingSelector
from uringloop.sockets import KeptSockets, SocketCoroutines
from uringloop.transports.base import set_nodelay
from uringloop.transports.server import Listener
from uringloop.transports.stream import StreamTransport

if TYPE_CHECKING:
    from uringloop.stats import Stats


class Loop(Scheduling, SocketCoroutines):
    """An asyncio event loop on io_uring. Use `uringloop.new_event_loop()`, which says what to do where io_uring is
    missing."""

    # What asyncio.SelectorEventLoop has, for mypy.
    _closed: bool
    _stopping: bool
    _transports: Any
    _signal_handlers: dict[int, asyncio.Handle]
    _ssock: socket.socket
    _csock: socket.socket
    _selector: RingSelector

    def __init__(
        self,
        *,
        entries: int | None = None,
        buffers: int | None = None,
        buffer_size: int | None = None,
        files: int | None = None,
        datagram_buffers: int | None = None,
        hardened: bool | None = None,
    ) -> None:
        """A loop on a ring of its own; what is None is chosen. The arguments are those of `reactor.Options`.

        Raises OSError where io_uring cannot be used, ValueError or TypeError for arguments that cannot be.
        """
        self._closed = True  # until there is something to close
        # CPython finds methods and attributes of an instance by their place, without a search, as long as it has no
        # more than 30; asyncio's have 26.
        self._reactor = Reactor(
            choose_options(
                entries=entries,
                buffers=buffers,
                buffer_size=buffer_size,
                files=files,
                datagram_buffers=datagram_buffers,
                hardened=hardened,
            )
        )
        self._selector = RingSelector(self._reactor)
        self._operations = Operations(self, self._selector, self._reactor)
        self._kept = KeptSockets()
        try:
            super().__init__(self._selector)
        except BaseException:
            self._closed = True
            self._selector.close()
            raise

    def __del__(self) -> None:
        # Wrong arguments, and not even that is known. A default in the class would do, but cost each callback 40 ns:
        # CPython does not specialize what an instance and its class both have.
        if "_closed" in vars(self):
            super().__del__()

    # --- running -----------------------------------------------------------------------------------------------------

    def run_forever(self) -> None:
        self._check_closed()  # type: ignore[attr-defined]
        self._check_running()  # type: ignore[attr-defined]
        self._reactor.begin()
        try:
            self._watch_signals()
            super().run_forever()
        finally:
            try:
                self._unwatch_signals()
            finally:
                self._reactor.end()

    def _watch_signals(self) -> None:
        """Let every signal end the sleep of the loop, as on uvloop: one that comes just before the sleep begins would
        otherwise not be seen before something else happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            # A signal is only to end the sleep: no matter if the socket is full of those that came before.
            theirs = signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
        except ValueError:  # the main thread of another interpreter
            return
        if theirs != -1:
            with contextlib.suppress(ValueError, OSError):  # it is closed: nobody's
                signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)  # the application's own

    def _unwatch_signals(self) -> None:
        if self._signal_handlers or threading.current_thread() is not threading.main_thread():
            return
        with contextlib.suppress(ValueError, OSError):
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, self._csock.fileno()):  # the application's own, maybe set while the loop ran
                signal.set_wakeup_fd(current, warn_on_full_buffer=False)

    def remove_signal_handler(self, sig: int) -> bool:
        removed: bool = super().remove_signal_handler(sig)
        if self.is_running() and not self._signal_handlers:  # the last one: asyncio gives the wake-up fd up with it
            self._watch_signals()
        return removed

    def close(self) -> None:
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        super().close()
        self._operations.close()
        self._kept.close()

    def _close_self_pipe(self) -> None:
        # Of a loop that was dropped unclosed the collector may have closed the sockets before it calls __del__: it goes
        # by their age, and a collection between them makes the sockets come first. The ring is to be closed even so.
        with contextlib.suppress(ValueError):
            super()._close_self_pipe()  # type: ignore[misc]

    def _run_once(self) -> None:
        """Turns, until the loop is to stop: asyncio calls this again and again until then, and it returns then."""
        # What a turn needs is in the frame, and it is one frame from the kernel to the sink. A loop with little to do
        # finds its caches cold after each sleep: there, an attribute or a frame more is a hundredth of a request.
        ready, scheduled, selector, reactor = self._ready, self._scheduled, self._selector, self._reactor
        wait, glance, look, pointer = reactor.wait, reactor.glance, reactor.look, reactor.pointer
        first_event, pool = reactor.first_event, reactor.pool
        streams, polled = selector.streams, selector.ready
        timer_number = UNKNOWN_TIMER
        may_sleep = not self._stopping
        while True:
            if scheduled:
                if self._timer_cancelled_count:
                    self._sweep_cancelled_timers()
                if self.time is not monotonic or not scheduled or scheduled[0][1] != timer_number:
                    timer_number = self._set_deadline()
            elif timer_number != NO_TIMER:
                timer_number = self._set_deadline()
            if selector.behind:
                selector.catch_up()  # first: it may make callbacks ready, and then there is no sleep
                may_sleep = not self._stopping
            sleeps = may_sleep and not ready
            if sleeps or glance(pointer):
                try:
                    count = wait(pointer) if sleeps else look(pointer)
                    is_due = count >= TURN_DUE
                    if is_due:
                        count -= TURN_DUE
                    # One event is not worth an iterator.
                    events = (unpack_event(first_event),) if count == 1 else selector.events(count) if count > 0 else ()
                except BaseException:  # out of the handler of a signal, which most likely came while the loop slept
                    reactor.keep_events()
                    raise
            else:
                count, is_due = 0, False
            if count:
                if count < 0 or selector.watch is not None:
                    selector.hand_out(count)
                else:
                    try:
                        for kind, token, start, stop in events:
                            if kind:
                                if kind == EVENT_DATAGRAM:
                                    selector.endpoints[token].on_datagram(start, stop, not sleeps)
                                elif kind == EVENT_READABLE:
                                    streams[token].on_readable(start)
                                else:
                                    selector.hand_out_other(kind, token, start, stop)
                                continue
                            try:  # EVENT_DATA is 0
                                stream = streams[token]
                                stream._context.run(stream._sink, pool[start:stop])
                            except (SystemExit, KeyboardInterrupt):
                                raise
                            except BaseException as exc:
                                streams[token].on_receive_failed(exc)
                    except BaseException:
                        if not isinstance(events, tuple):
                            selector.leave(events)
                        raise
                    stream = None  # type: ignore[assignment]  # else this frame keeps it alive
            if polled:
                self._process_events(selector.take_ready())  # type: ignore[attr-defined]
            if is_due:
                self._collect_due_timers()
            if ready:
                self._run_ready()
            if self._stopping:
                return

    def _write_to_self(self) -> None:
        self._reactor.wake()

    # --- debug mode --------------------------------------------------------------------------------------------------

    def set_debug(self, enabled: bool) -> None:
        super().set_debug(enabled)
        if not self._closed:
            self._selector.watch = self._watch_event if self._debug else None

    def _watch_event(self, hand_out: Callable[[Event], None], event: Event) -> None:
        owner = self._selector.owner_of(event)
        start = self.time()
        hand_out(event)
        self._report_slow(owner, self.time() - start)

    # --- transports: the seams of asyncio.SelectorEventLoop ----------------------------------------------------------
    # `context` is that of the transport's callbacks: asyncio chooses it from 3.15 on, before it is that of the caller.

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: contextvars.Context | None = None,
    ) -> StreamTransport:
        self._ensure_fd_no_transport(sock)
        set_nodelay(sock)
        transport = StreamTransport(
            self, sock, protocol, contextvars.copy_context() if context is None else context, extra, server
        )
        self.call_soon(transport.start, waiter)
        return transport

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: contextvars.Context | None = None,
    ) -> Any:
        context = contextvars.copy_context() if context is None else context
        ssl_protocol = transports.tls.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            context=context,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server, context=context)
        return ssl_protocol._app_transport

    async def start_tls(self, transport: Any, protocol: asyncio.BaseProtocol, sslcontext: Any, **options: Any) -> Any:
        return await transports.tls.start_tls(self, transport, protocol, sslcontext, **options)

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        if not (self._reactor.options.datagram_buffers and transports.datagram.is_native(sock)):
            return super()._make_datagram_transport(sock, protocol, address, waiter, extra)  # type: ignore[misc]
        self._ensure_fd_no_transport(sock)
        context = contextvars.copy_context()
        transport = transports.datagram.DatagramTransport(self, sock, protocol, context, address, extra)
        self.call_soon(transport.start, waiter)
        return transport

    def _make_read_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        if not transports.pipe.is_native_pipe(pipe):
            return super()._make_read_pipe_transport(pipe, protocol, waiter, extra)  # type: ignore[misc]
        return transports.pipe.ReadPipeTransport(self, pipe, protocol, contextvars.copy_context(), waiter, extra)

    def _make_write_pipe_transport(self, pipe: Any, protocol: Any, waiter: Any = None, extra: Any = None) -> Any:
        return transports.pipe.WritePipeTransport(self, pipe, protocol, contextvars.copy_context(), waiter, extra)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._check_closed()  # type: ignore[attr-defined]
        tls = None
        if sslcontext is not None:
            tls = {
                "sslcontext": sslcontext,
                "ssl_handshake_timeout": ssl_handshake_timeout,
                "ssl_shutdown_timeout": ssl_shutdown_timeout,
            }
        self._selector.fileno(sock)  # raises ValueError for what has none
        Listener(self, sock, protocol_factory, server, tls, context)  # the selector knows it until it is closed

    async def create_server(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        *,
        sock: Any = None,
        **options: Any,
    ) -> Any:
        self._note_given(sock)
        return await super().create_server(protocol_factory, host, port, sock=sock, **options)

    async def create_unix_server(
        self, protocol_factory: Callable[[], Any], path: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        self._note_given(sock)
        return await super().create_unix_server(protocol_factory, path, sock=sock, **options)

    def _note_given(self, sock: Any) -> None:
        if isinstance(sock, socket.socket) and not self._closed:
            self._selector.given.add(sock)

    def _stop_serving(self, sock: socket.socket) -> None:
        if not self._closed:  # else it has no selector any more, and the listeners have gone with it
            for listener in tuple(self._selector.listeners.values()):
                if listener.sock is sock:
                    listener.close()
        super()._stop_serving(sock)  # type: ignore[misc]

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        reuse_address: bool | None = None,
        **options: Any,
    ) -> Any:
        # asyncio had this argument until 3.11, and uvloop has it still.
        if reuse_address:
            raise ValueError(
                "Passing `reuse_address=True` is no longer supported: on Linux it lets others take the port"
            )
        if reuse_address is not None:
            warnings.warn("The *reuse_address* parameter has no effect", DeprecationWarning, stacklevel=2)
        return await super().create_datagram_endpoint(protocol_factory, local_addr, remote_addr, **options)

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.BaseProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> transports.process.ProcessTransport:
        waiter = self.create_future()
        transport = transports.process.ProcessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        return transport

    # --- files to transports -----------------------------------------------------------------------------------------

    async def _sendfile_native(self, transp: StreamTransport, file: Any, offset: int, count: int | None) -> int:
        from uringloop import splice  # when it is needed, here and below: with what it imports it takes 80 KiB

        self._check_sendfile_params(transp._socket(), file, offset, count)  # type: ignore[attr-defined]
        fd = splice.regular_file(file)
        resume_reading = transp.is_reading()
        transp.pause_reading()
        try:
            drained = transp._make_empty_waiter()  # raises if another file is on its way, whose waiter is to stay
            try:
                await drained
                return await splice.send_file(self._operations, transp, fd, offset, count)
            finally:
                transp._reset_empty_waiter()
        finally:
            if resume_reading:
                transp.resume_reading()

    async def _sendfile_fallback(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """What TLS needs: the bytes pass through Python. asyncio reads them in the executor; here the ring does."""
        from uringloop import splice

        try:
            fd = splice.regular_file(file)
        except asyncio.SendfileNotAvailableError:
            return await super()._sendfile_fallback(transp, file, offset, count)  # type: ignore[misc, no-any-return]
        sent = 0
        protocol = compat.SendfileFallbackProtocol(transp)
        try:
            while not count or sent < count:
                size = min(splice.READ_BYTES, count - sent) if count else splice.READ_BYTES
                data = await splice.read(self._operations, fd, offset + sent, size)
                if not data:
                    break
                await protocol.drain()
                transp.write(data)
                sent += len(data)
        finally:
            if sent:
                file.seek(offset + sent)
            await protocol.restore()
        return sent

    # --- what it can tell about itself -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters and gauges of the ring as of now. Raises RuntimeError when the loop is closed."""
        from uringloop.stats import Stats  # not before: the making of so large a dataclass takes memory

        self._check_closed()  # type: ignore[attr-defined]
        # The poll on the socket pair that signals come through is the loop's own, not its user's.
        own_polls = int(self._selector.is_armed(self._ssock.fileno()))
        return Stats.of(self._reactor.report(), own_polls=own_polls)


def choose_options(
    *,
    entries: int | None = None,
    buffers: int | None = None,
    buffer_size: int | None = None,
    files: int | None = None,
    datagram_buffers: int | None = None,
    hardened: bool | None = None,
) -> Options:
    """The options given, and for the others what suits this kernel and this process."""
    found = probe()
    usual_buffers, usual_size = default_buffers(found)
    return Options(
        entries=DEFAULT_ENTRIES if entries is None else entries,
        buffers=usual_buffers if buffers is None else buffers,
        buffer_size=usual_size if buffer_size is None else buffer_size,
        files=usable_files(found, files),
        incremental_buffers=found.incremental_buffers,
        datagram_buffers=(DATAGRAM_BUFFERS if datagram_buffers is None else datagram_buffers) if found.datagrams else 0,
        rewound_buffers=found.rewound_buffers,
        register_ring=found.registered_ring,
        limited_receives=found.limited_receives,
        inline_sends=found.inline_sends,
        hardened=environment.hardened() if hardened is None else hardened,
        without_flags=unwanted_flags(found),
    )
