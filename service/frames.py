"""Memory of frames that are over, for those that come next.

A new frame of 50 MiB is new memory from the system, which fills it with zeros page by page: 16 ms of a core, a
twentieth of a screen's time, before a byte of it is received. Memory that was a frame before is there already.
"""

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 160 * 2**20  # of frames that are over: three of 5120 x 10240, as many as a line has in flight


class FrameMemory:
    """Lends memory, and takes it back by itself once nothing refers to it any more.

    For any thread, without a lock: what comes back does so wherever the last reference went, which may be within `lend`
    itself.

    Args:
        kept_bytes: that it keeps at most while nobody has them.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._free: deque[NDArray[np.uint8]] = deque()

    @property
    def free_bytes(self) -> int:
        """Kept now."""
        return sum(memory.size for memory in tuple(self._free))

    def lend(self, size: int) -> NDArray[np.uint8]:
        """So many bytes (size,) of any content; views of them hold them as they do."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if memory.size != size:  # another kind of frame: the ones before are of no use
            self._free.clear()
            memory = np.empty(size, np.uint8)
        # over a buffer, and no view of the array: views of this one hold this one, and not what is behind it
        lent = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        if self.free_bytes + memory.size <= self._kept_bytes:
            self._free.append(memory)
