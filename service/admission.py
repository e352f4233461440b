"""Which screens are being received or inspected: bounds their memory, and runs no id twice at a time.

Used on the event loop alone, so that looking and entering are one step without a lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from service.errors import ScreenInProgress, TooManyScreens

# places come free one by one, each as a screen is answered, which a takt of up to 10 s may well put off for longer:
# whoever asks again too early is refused again at once, before its body is read
RETRY_AFTER_S = 1.0


class Admission:
    """A bounded set of screens in flight."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        """Admit up to `limit` screens at a time; `gauge` shows how many there are."""
        self._limit = limit
        self._gauge = gauge
        self._screens: set[str] = set()

    @contextmanager
    def admit(self, screen_id: str) -> Iterator[None]:
        """Hold a place for the screen from its first byte to its recorded answer.

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
            yield
        finally:
            self._screens.discard(screen_id)
            self._gauge.set(len(self._screens))
