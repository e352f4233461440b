"""A raw frame while its lines come: the event loop writes them, the screen's own thread works on what is there."""

import threading
import time
from collections.abc import Callable
from copy import copy

from service.frames import FrameMemory

_MEMORY = FrameMemory()  # one for the process: a bundle of its own each would double it in a swap

CHECK_S = 0.25  # between two looks at whether it is still worth waiting
STEPS = 20  # words about a frame while it comes: each wakes a thread, and a row of windows is a tenth of it


class Arrival:
    """The pixels of a frame, from the first line on.

    Args:
        height: lines of the frame.
        width: pixels of a line.

    Attributes:
        pixels: (H, W); the lines that `wait` has told of do not change any more.
        buffer: the same memory, flat, for whoever receives.
        ended_at: monotonic seconds when the last line had come; 0 before.
    """

    def __init__(self, height: int, width: int) -> None:
        # new memory is touched only as bytes arrive: a frame that is announced and does not come costs nothing
        self.pixels = _MEMORY.lend(height * width).reshape(height, width)
        self.buffer = self.pixels.reshape(-1).data
        self._step_lines = max(1, height // STEPS)
        self._lines = 0
        self._failure: Exception | None = None
        self.ended_at = 0.0
        self._changed = threading.Condition()

    def received(self, count_bytes: int) -> None:
        """So many bytes of the buffer are there. The last line is told by `finish` alone."""
        height, width = self.pixels.shape
        lines = min(count_bytes // width, height - 1)
        if lines >= self._lines + self._step_lines:
            self._tell(lines)

    def finish(self) -> None:
        """The body has ended, and it was whole."""
        self.ended_at = time.monotonic()
        self._tell(len(self.pixels))

    def fail(self, error: Exception) -> None:
        """No more lines will come: `wait` raises a copy of this."""
        with self._changed:
            # without its traceback, which holds this object: held in turn, it would keep the frame's memory for long
            self._failure = copy(error)
            self._changed.notify_all()

    def wait(self, lines: int, timeout_s: float, check: Callable[[], None] = lambda: None) -> int:
        """Wait for more than `lines` lines; how many are there.

        Args:
            lines: that are known to be there.
            timeout_s: how long to wait.
            check: called every quarter of a second while none comes; raises where it is in vain, as of a device that is
                gone for good, which waits for no slow sender.

        Raises:
            TimeoutError: none came in time.
            Exception: a copy of that of `fail`, or that of `check`.
        """

        def told() -> bool:
            return self._failure is not None or self._lines > lines

        left_s = timeout_s
        with self._changed:
            while not self._changed.wait_for(told, min(left_s, CHECK_S)):
                left_s -= CHECK_S
                if left_s <= 0:
                    raise TimeoutError
                check()
            if self._failure is not None:
                raise copy(self._failure)  # its traceback holds this call, and so this object, which must not hold it
            return self._lines

    def _tell(self, lines: int) -> None:
        with self._changed:
            self._lines = lines
            self._changed.notify_all()
