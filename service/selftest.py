"""The proof that a device still computes what was trained: golden patches, at start and while it serves.

Each device thread has one `SelfTest` and runs it ahead of the screens that wait. Whoever decides or
reports reads the last `SelfTestReport`.
"""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from engine import Backend, DeviceLost, Golden, InferenceError, recover, self_test

FRESH_S = 120.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.selftest")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestReport:
    """What is known of a device at one moment.

    Attributes:
        ok: whether the last run gave the known answers; False before the first.
        age_s: time since a run last did; None when none ever did.
        difference: largest difference of a probability in that run; None when none ever did.
        detail: why the last run failed, for people; empty while `ok`.
        gone: the device is lost, and recovering it has failed: this process will not have it again.
    """

    ok: bool
    age_s: float | None
    difference: float | None
    detail: str
    gone: bool = False

    @property
    def fresh(self) -> bool:
        """Whether the last success is recent enough to prove a pass."""
        return self.age_s is not None and self.age_s < FRESH_S


JUST_PASSED = SelfTestReport(ok=True, age_s=0.0, difference=0.0, detail="")  # of what is judged without a device


def worst(reports: Iterable[SelfTestReport]) -> SelfTestReport:
    """The one of the device that is worst off: gone, else failing, else the longest without a success."""
    return max(reports, key=lambda r: (r.gone, not r.ok, math.inf if r.age_s is None else r.age_s))


class SelfTest:
    """The self-test of one device.

    `run` belongs to the device's thread; `report` may be called by any.

    Args:
        golden: patches with known answers.
        interval_s: time from one run to the next.
        clock: monotonic seconds.
    """

    def __init__(self, golden: Golden, *, interval_s: float, clock: Callable[[], float]) -> None:
        self._golden = golden
        self._interval_s = interval_s
        self._clock = clock
        self._due_at = -math.inf
        # one tuple, so that a reader never sees half of a run: (ok, passed at, difference, detail)
        self._last: tuple[bool, float | None, float | None, str] = (False, None, None, "has not run yet")
        self._gone = False
        self._has_run = threading.Event()

    def due_in_s(self) -> float:
        """Time until the next run; 0 when it is due, and as good as endless where none comes any more."""
        return min(max(0.0, self._due_at - self._clock()), threading.TIMEOUT_MAX)

    def lost(self, error: DeviceLost) -> None:
        """Take note that the device failed at a screen and will fail at the next: it is tested, and recovered, at once.

        One that is gone is left: it has had its last run.
        """
        log.error("device lost", detail=str(error))
        _, passed_at, difference, _ = self._last
        if not self._gone:
            self._last = (False, passed_at, difference, str(error))
            self._due_at = -math.inf

    def run(self, backend: Backend) -> None:
        """Run the golden patches and remember what came out; a failure is logged and reported, not raised.

        A lost device is recovered first. Where that fails this was the last run: CUDA would refuse this process another
        context as it has refused the first, and a new process has the device again before the next run were due.
        """
        _, passed_at, difference, _ = self._last
        try:
            difference = self._test(backend)
        except DeviceLost as error:
            log.critical("device lost for good", detail=str(error))
            self._last = (False, passed_at, difference, str(error))
            self._gone = True
        except InferenceError as error:
            log.error("self-test failed", detail=str(error))
            self._last = (False, passed_at, difference, str(error))
        except Exception:
            # the device's thread lives on, and no screen passes until a run succeeds
            log.exception("self-test failed in a way that nobody expected")
            self._last = (False, passed_at, difference, "failed in a way that nobody expected")
        else:
            self._last = (True, self._clock(), difference, "")
        self._due_at = math.inf if self._gone else self._clock() + self._interval_s
        self._has_run.set()

    def wait_for_first_run(self, within_s: float) -> None:
        """Wait until it has run once, whatever came out, or until the time is over."""
        self._has_run.wait(within_s)

    def _test(self, backend: Backend) -> float:
        try:
            return self_test(backend, self._golden)
        except DeviceLost as error:
            log.error("device lost", detail=str(error))
            recover(backend)
            log.warning("device recovered")
            return self_test(backend, self._golden)

    def report(self) -> SelfTestReport:
        """The device as it is known now."""
        ok, passed_at, difference, detail = self._last
        age_s = None if passed_at is None else max(0.0, self._clock() - passed_at)
        return SelfTestReport(ok=ok, age_s=age_s, difference=difference, detail=detail, gone=self._gone)
