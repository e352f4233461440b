"""Work that may hang: done in a thread of its own, waited for so long, then left behind.

A thread cannot be ended from outside, and one that hangs in a driver ends never. So nobody who must go on waits for it
without a limit: not whoever asked for the work, nor whoever would ask next, nor the process at its end, as the thread
is a daemon (`service.server.leave`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

import structlog

from service.errors import NotReady

Made = TypeVar("Made")

LEFT_MOST = 2  # one may hang and the next still be tried, as the way back

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.attempts")


class TooManyLeft(Exception):
    """As much as may be was left behind and has not come to an end."""


class Attempts(Generic[Made]):
    """Makes something, by one caller at a time, until `close`."""

    def __init__(self) -> None:
        self._closed = False
        self._left: list[threading.Thread] = []
        self._under_way: Future[Made] | None = None

    def make(self, make: Callable[[], Made], *, within_s: float, discard: Callable[[Made], None]) -> Made:
        """What `make` gives, called in a thread of its own; what it raises goes through.

        Args:
            make: makes it.
            within_s: the time that it has.
            discard: given what is made after all when nobody waits for it any more, in that same thread.

        Raises:
            TimeoutError: it took longer, and is left behind.
            TooManyLeft: `LEFT_MOST` were left behind and hang still, with what each of them holds.
            NotReady: `close` was called.
        """
        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) >= LEFT_MOST:
            raise TooManyLeft
        made: Future[Made] = Future()
        self._under_way = made
        try:
            if self._closed:  # looked at once `close` would find what is under way
                raise CancelledError
            thread = threading.Thread(target=_run, args=(made, make, discard), name="attempt", daemon=True)
            thread.start()
            return _of(made, within_s)
        except TimeoutError:
            self._left.append(thread)
            raise
        except CancelledError:
            raise NotReady("the service is stopping") from None
        finally:
            self._under_way = None
            del made  # else a failure would hold it by this frame, and be held by it

    def close(self) -> None:
        """Leave what is under way, and whatever comes."""
        self._closed = True
        made = self._under_way
        if made is not None:
            made.cancel()


def _of(made: "Future[Made]", within_s: float) -> Made:
    """What comes in time; a future that is still pending can be cancelled, and then takes nothing any more."""
    try:
        return made.result(within_s)
    except TimeoutError:
        if made.cancel():
            raise
        return made.result()  # it has come meanwhile
    finally:
        del made


def _run(made: "Future[Made]", make: Callable[[], Made], discard: Callable[[Made], None]) -> None:
    try:
        thing = make()
    except BaseException as error:  # noqa: BLE001 - for whoever waits
        if made.set_running_or_notify_cancel():
            made.set_exception(error)
        else:
            log.warning("what was left behind has failed", detail=str(error))
    else:
        if made.set_running_or_notify_cancel():
            made.set_result(thing)
        else:
            log.warning("what was left behind has come to an end, and is given back")
            discard(thing)
    finally:
        del made
