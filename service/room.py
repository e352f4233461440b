"""Bytes that screens may hold together: who wants more than is free waits, in the order of arrival.

What a screen needs is asked for before any of it is allocated, so that memory is bounded by a setting and not by how
large the bodies are that come together. For the event loop, where bodies wait unread, and for threads, which decode.
"""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine import available_cpus
from service.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """Bytes that are asked for, and then held."""

    size: int
    granted: "Future[None]" = field(default_factory=Future)


class Room:
    """Room for a number of bytes.

    Args:
        limit_bytes: that all together may hold. A claim over it counts as all of it, and so goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._waiting: deque[Claim] = deque()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Held now."""
        return self._held

    @property
    def waiting(self) -> int:
        """Claims that have no room yet."""
        return len(self._waiting)

    @contextmanager
    def hold(self, size: int, *, timeout_s: float) -> Iterator[None]:
        """Hold so many bytes while the block runs; waits in its thread.

        Raises:
            DeadlineExceeded: they did not come free in time.
        """
        claim = self._claim(size)
        try:
            try:
                claim.granted.result(max(0.0, timeout_s))
            except TimeoutError as error:
                raise _late(size) from error
            yield
        finally:
            self.leave(claim)

    async def enter(self, size: int, *, timeout_s: float) -> Claim:
        """Hold so many bytes until `leave`; waits on the event loop.

        Raises:
            DeadlineExceeded: they did not come free in time.
        """
        claim = self._claim(size)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(claim.granted)
        except TimeoutError as error:
            self.leave(claim)
            raise _late(size) from error
        except BaseException:  # cancelled: nobody will leave in its place
            self.leave(claim)
            raise
        return claim

    def leave(self, claim: Claim) -> None:
        """Give the bytes back, or no longer ask for them."""
        with self._lock:
            if claim in self._waiting:
                self._waiting.remove(claim)
            elif not claim.granted.cancelled():
                self._held -= claim.size
            self._grant()

    def _claim(self, size: int) -> Claim:
        claim = Claim(min(size, self._limit))
        with self._lock:
            self._waiting.append(claim)
            self._grant()
        return claim

    def _grant(self) -> None:
        """First come, first served: a large one is not put off for ever by small ones that would fit."""
        while self._waiting and self._held + self._waiting[0].size <= self._limit:
            claim = self._waiting.popleft()
            if claim.granted.set_running_or_notify_cancel():  # else whoever asked has gone
                self._held += claim.size
                claim.granted.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """What all that decode files share, one for a process: a bundle of its own each would double both in a swap.

    Attributes:
        room: for what decoding takes; without a bound by default.
        turns: of those that decode at a time; more would be no faster.
    """

    room: Room = field(default_factory=lambda: Room(sys.maxsize))
    turns: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(available_cpus()))


def _late(size: int) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed before there was memory for {size} bytes")
