"""Where the time of one screen goes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the time of named stages: `with spent("decode"):` adds that of the block, without what blocks in it take.

    Args:
        clock: monotonic seconds.

    Attributes:
        seconds: by stage; a part that another stage is to answer for may be moved there.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._within_s = 0.0  # of the blocks that have ended within the one that runs

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """A part of a stage, until the block ends."""
        before_s, self._within_s = self._within_s, 0.0
        begun_at = self._clock()
        try:
            yield
        finally:
            took_s = self._clock() - begun_at
            self.seconds[stage] += took_s - self._within_s
            self._within_s = before_s + took_s
