"""Which one of several things is in use, and by how many: the heart of a swap, which knows nothing of bundles.

A user takes the active one once and keeps it to the end, whatever becomes active meanwhile. One that is no longer
active is closed when its last user is done: by whoever swapped it, who can wait, and not by the user, who cannot.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from service.errors import NotReady


class Closable(Protocol):
    """What gives something back in the end."""

    def close(self) -> None:
        """Give it back."""


Held = TypeVar("Held", bound=Closable)


class Active(Generic[Held]):
    """The active one, and those before it that still have users. Each is closed once.

    Args:
        first: what is active until something else is; owned from now on, and so is what `flip` is given.
    """

    def __init__(self, first: Held) -> None:
        self._deciding = threading.Lock()  # held by `flip` and `close` alone: nobody who takes waits for a disk
        self._changed = threading.Condition()
        self._current = first
        self._users = {first: 0}  # of each that is not closed
        self._stopped = False

    @property
    def current(self) -> Held:
        """The active one, to look at: it may be closed at any time."""
        return self._current

    @property
    def open(self) -> tuple[Held, ...]:
        """Each that is not closed, the active one last."""
        with self._changed:
            return tuple(self._users)

    @contextmanager
    def take(self) -> Iterator[Held]:
        """Use what is active now, until the block ends; it is not closed before, but by `close`.

        Raises:
            NotReady: everything was closed.
        """
        with self._changed:
            self._refuse_if_stopped()
            taken = self._current
            self._users[taken] += 1
        try:
            yield taken
        finally:
            with self._changed:
                if taken in self._users:
                    self._users[taken] -= 1
                    self._changed.notify_all()

    def flip(self, new: Held, record: Callable[[], None] = lambda: None) -> Held:
        """Let `new` be taken from now on, and give back what was taken before, which goes to `retire` next.

        Args:
            new: what is to be taken.
            record: called when nothing else can prevent it any more; what it raises does, and goes through.

        Raises:
            NotReady: everything was closed; nothing is recorded, and `new` stays its owner's.
        """
        with self._deciding:
            self._refuse_if_stopped()
            record()
            with self._changed:
                old, self._current = self._current, new
                self._users[new] = 0
                return old

    def retire(self, old: Held) -> None:
        """Wait until nobody uses `old` any more, then close it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users.get(old))
            mine = self._users.pop(old, None) is not None  # else `close` was first
        if mine:
            old.close()

    def close(self) -> None:
        """Close all, users or not: the process ends. Twice is harmless."""
        with self._deciding, self._changed:
            self._stopped = True
            left = tuple(self._users)
            self._users.clear()
            self._changed.notify_all()
        for held in left:
            held.close()

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise NotReady("the service is stopping")
