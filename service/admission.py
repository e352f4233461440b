"""Which screens are being received or inspected: bounds their number and memory, and runs no id twice at a time.

Used on the event loop alone, so that looking and entering are one step without a lock. One screen too many is refused
at once; one that is in, and for whose bytes there is no room yet, waits for it with its body unread.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import Gauge

from service.errors import ScreenInProgress, TooManyScreens
from service.room import Room
from service.settings import Settings

# places come free one by one, each as a screen is answered, which a takt of up to 10 s may well put off for longer:
# whoever asks again too early is refused again at once, before its body is read
RETRY_AFTER_S = 1.0


class Place:
    """The place of one screen, at first without room for its bytes."""

    def __init__(self, room: Room, leaving: ExitStack) -> None:
        self._room = room
        self._leaving = leaving

    async def hold(self, size: int, *, timeout_s: float) -> None:
        """Wait for room for the screen's bytes; until then its body stays where it is, with the sender.

        Raises:
            DeadlineExceeded: there was none in time.
        """
        self._leaving.callback(self._room.leave, await self._room.enter(size, timeout_s=timeout_s))


class Admission:
    """A bounded set of screens in flight, and the room for their bytes."""

    def __init__(self, limit: int, gauge: Gauge, room: Room) -> None:
        """Admit up to `limit` screens at a time, `gauge` shows how many there are; `room` for bodies and frames."""
        self._limit = limit
        self._gauge = gauge
        self._room = room
        self._screens: set[str] = set()

    @contextmanager
    def admit(self, screen_id: str) -> Iterator[Place]:
        """Hold a place for the screen, and what it takes there, from its first byte to its recorded answer.

        Raises:
            ScreenInProgress: this screen has a place already.
            TooManyScreens: all places are taken.
        """
        if screen_id in self._screens:
            raise ScreenInProgress(f"screen {screen_id} is being inspected: ask again for its answer")
        if len(self._screens) >= self._limit:
            raise TooManyScreens(f"{self._limit} screens are in flight already", retry_after_s=RETRY_AFTER_S)
        self._screens.add(screen_id)
        self._gauge.set(len(self._screens))
        try:
            with ExitStack() as leaving:
                yield Place(self._room, leaving)
        finally:
            self._screens.discard(screen_id)
            self._gauge.set(len(self._screens))


def needed_bytes(content_length: str | None, *, settings: Settings) -> int:
    """What a screen that comes as a file holds at most between its first byte and its answer, but while it is decoded.

    Args:
        content_length: of the request, as it stands there.
        settings: how large the body may be, and the frame that follows it, of a size that nobody knows yet.
    """
    body = settings.max_body_bytes
    # what is no number, and what is over the limit, is refused when the body is read
    if content_length is not None and re.fullmatch(r"[0-9]{1,20}", content_length):
        body = min(body, int(content_length))
    return max(body, settings.largest_frame_pixels)
