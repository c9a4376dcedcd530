"""A TCP relay that makes a network bad on purpose: dead, refused, silent, late, slow or torn.

A client connects to `relay.port`; the relay passes the bytes to the target and back. All of it runs on one
asyncio loop in one thread; the controls may be called from any thread and have taken effect when they return.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.real_servers.processes import free_port

_READ_BYTES = 16 * 1024
_SLICES_PER_S = 20
_CONTROL_TIMEOUT_S = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
T = TypeVar("T")


class Relay:
    """A relay to `target_port` on the loopback; `with Relay(port) as relay` starts and stops it."""

    def __init__(self, target_port: int, *, port: int | None = None) -> None:
        self.target_port = target_port
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"relay {self.port}", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._delay_s = 0.0
        self._bytes_per_s: int | None = None
        self._remaining_bytes: int | None = None
        self._accepted = 0

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return self._ask(lambda: len(self._connections))

    @property
    def accepted(self) -> int:
        """How many connections were accepted since the start."""
        return self._ask(lambda: self._accepted)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()
        self.restore()

    def close(self) -> None:
        """Drop every connection and end."""
        if self._thread.is_alive():
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CONTROL_TIMEOUT_S)
            self._loop.close()

    def restore(self) -> None:
        """A good network again: accepts, flows at full speed. Connections that were dropped stay dropped."""

        async def restore() -> None:
            self._delay_s, self._bytes_per_s, self._remaining_bytes = 0.0, None, None
            self._flowing.set()
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, self.host, self.port)

        self._run(restore())

    def cut(self) -> None:
        """A dead link: resets every connection and refuses new ones."""

        async def cut() -> None:
            self._stop_listening()
            await self._drop()

        self._run(cut())

    def refuse(self) -> None:
        """Refuse new connections; those that are open go on."""

        async def refuse() -> None:
            self._stop_listening()

        self._run(refuse())

    def drop_connections(self) -> None:
        """Reset every open connection; new ones are welcome."""
        self._run(self._drop())

    def pause(self) -> None:
        """Silence: connections open and stay, no byte passes in either direction."""
        self._ask(self._flowing.clear)

    def resume(self) -> None:
        """End a pause; what waited passes."""
        self._ask(self._flowing.set)

    def delay(self, delay_s: float) -> None:
        """Hold every piece back for `delay_s`, in each direction."""

        def set_delay() -> None:
            self._delay_s = delay_s

        self._ask(set_delay)

    def throttle(self, bytes_per_s: int | None) -> None:
        """Pass at most so many bytes a second per connection and direction; None is no limit."""

        def set_rate() -> None:
            self._bytes_per_s = bytes_per_s

        self._ask(set_rate)

    def cut_after(self, count_bytes: int) -> None:
        """Pass `count_bytes` more from the target to clients, then end that connection: a torn answer."""

        def set_remaining() -> None:
            self._remaining_bytes = count_bytes

        self._ask(set_remaining)

    def _ask(self, do: Callable[[], T]) -> T:
        async def call() -> T:
            return do()

        return self._run(call())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CONTROL_TIMEOUT_S)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _drop(self) -> None:
        for writer in self._open:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        tasks = [task for task in self._connections if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepted += 1
        self._connections.add(task)
        self._open.add(writer)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the target refuses, or the relay is cut: the client's connection ends
        finally:
            self._connections.discard(task)
            self._open.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(self.host, self.target_port)
        self._open.add(target_writer)
        try:
            await asyncio.gather(
                self._pump(reader, target_writer, from_target=False),
                self._pump(target_reader, writer, from_target=True),
            )
        finally:
            self._open.discard(target_writer)
            target_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_target: bool) -> None:
        while True:
            rate = self._bytes_per_s
            piece = await reader.read(_READ_BYTES if rate is None else max(1, rate // _SLICES_PER_S))
            await self._flowing.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if self._bytes_per_s is not None:
                await asyncio.sleep(len(piece) / self._bytes_per_s)
            await self._flowing.wait()
            if not piece:
                writer.write_eof()
                return
            if from_target and self._remaining_bytes is not None:
                piece = piece[: self._remaining_bytes]
                self._remaining_bytes -= len(piece)
            writer.write(piece)
            await writer.drain()
            if from_target and self._remaining_bytes == 0:
                await _sent(writer)
                raise ConnectionResetError("the relay tore this answer")


async def _sent(writer: asyncio.StreamWriter) -> None:
    while writer.transport.get_write_buffer_size():
        await asyncio.sleep(0.001)
