"""Memory of frames that are over, for those that come next.

A new frame of 50 MiB is new memory from the system, which fills it with zeros page by page: 16 ms of a core, a
twentieth of a screen's time, before a byte of it is received. Memory that was a frame before is there already.
"""

import weakref
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 160 * 2**20  # of frames that are over: three of 5120 x 10240, as many as a line has in flight
WORTH_BYTES = 2**20  # what is smaller comes from the system as fast


class FrameMemory:
    """Lends memory, and takes it back by itself once nothing refers to it any more.

    For any thread, without a lock: what comes back does so wherever its last reference went, which may be in here. So
    each step is one that the interpreter takes whole.

    Args:
        kept_bytes: that it keeps, or hardly more, while nobody has them.
        worth_bytes: that memory has at least which is kept.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES, worth_bytes: int = WORTH_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._worth_bytes = worth_bytes
        self._free: dict[int, list[NDArray[np.uint8]]] = {}  # by size

    @property
    def free_bytes(self) -> int:
        """Kept now."""
        return sum(size * len(memories) for size, memories in self._free.copy().items())

    def lend(self, size: int) -> NDArray[np.uint8]:
        """So many bytes (size,) of any content; views of them hold them as they do."""
        try:
            memory = self._free[size].pop()
        except (KeyError, IndexError):
            memory = np.empty(size, np.uint8)
        # over a buffer, and no view of the array: views of this one hold this one, and not what is behind it
        lent = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        if not self._worth_bytes <= memory.size <= self._kept_bytes:
            return
        self._free.setdefault(memory.size, []).append(memory)
        while self.free_bytes > self._kept_bytes:
            self._drop_one(spared=memory.size)

    def _drop_one(self, spared: int) -> None:
        """Of another size than that of the last one, if there is another."""
        for size in sorted(self._free.copy(), key=lambda size: size == spared):
            with suppress(KeyError, IndexError):
                self._free[size].pop()
                return
            self._free.pop(size, None)  # there is none of it
