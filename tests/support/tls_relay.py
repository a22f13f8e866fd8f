"""What trusts put before a sender that speaks no TLS: a plain port on this machine whose connections go on inside TLS, as stunnel's do."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def tls_relay(port: int, context: ssl.SSLContext, *, name: str = "hub.example") -> Iterator[int]:
    """A local port that leads to `port`, with our certificate and the peer's checked."""
    ready = threading.Event()
    found: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(65_536):
                writer.write(block)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inside[1]), pump(inside[0], writer))

    async def run() -> None:
        stop = asyncio.Event()
        async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
            found.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    loop, stop, own = found[0]
    try:
        yield own
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
