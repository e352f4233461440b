"""How a connection ends whose other end may still be sending.

The system answers what comes for a closed socket with a reset, upon which the other end throws away what it has not
read yet: a sender would lose the answer that tells why nobody waits for the rest of its body. RFC 9112, section 9.6,
has a server close its own half first, and read on for a while.
"""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 30.0  # longer than a frame takes whose lines come as they are scanned
STOPPING_LINGER_S = 1.0  # the same of a service that is to stop


class Lingering(asyncio.Transport):
    """A transport that, closed while more may come, sends no more and lets the other end finish.

    Args:
        transport: the connection's own. What is read while `is_closing` is for nobody.
        unread: whether the other end may still be sending.

    Attributes:
        stopping: the service is to stop, and the other end has a moment and no more.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._unread = unread
        self._timer: asyncio.TimerHandle | None = None
        self.stopping = False

    def close(self) -> None:
        """Close it, at once where nothing more is to come or where this was asked for before."""
        if self.is_closing() or not self._unread():
            self._transport.close()
            return
        linger_s = STOPPING_LINGER_S if self.stopping else LINGER_S
        self._timer = asyncio.get_running_loop().call_later(linger_s, self._transport.close)
        self._transport.resume_reading()
        self._transport.write_eof()

    def closed(self) -> None:
        """Told that the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()

    def is_closing(self) -> bool:
        """As in `asyncio.BaseTransport`; so while it lingers."""
        return self._timer is not None or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as asyncio has it
        """As in `asyncio.BaseTransport`."""
        return self._transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As in `asyncio.WriteTransport`; not while it lingers."""
        self._transport.write(data)

    def pause_reading(self) -> None:
        """As in `asyncio.ReadTransport`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As in `asyncio.ReadTransport`."""
        self._transport.resume_reading()
