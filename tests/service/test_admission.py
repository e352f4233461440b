from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.admission import Admission
from service.errors import QueueFull, ScreenInProgress, TooManyScreens


class Door:
    """An admission of two screens, and what its gauge shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.admission = Admission(2, Gauge("screens_in_flight", "Of this test.", registry=self._registry))

    @property
    def in_flight(self) -> float | None:
        return self._registry.get_sample_value("screens_in_flight")


def test_screens_up_to_the_limit_are_admitted_and_counted() -> None:
    door = Door()
    with door.admission.admit("A"):
        assert door.in_flight == 1
        with door.admission.admit("B"):
            assert door.in_flight == 2
        assert door.in_flight == 1
    assert door.in_flight == 0


def test_one_more_is_told_when_to_come_back_and_takes_no_place() -> None:
    door = Door()
    with door.admission.admit("A"):
        with door.admission.admit("B"):
            with pytest.raises(TooManyScreens, match="2 screens are in flight") as caught, door.admission.admit("C"):
                pass
            assert caught.value.retry_after_s > 0
            assert isinstance(caught.value, QueueFull)  # for a client the same: come back later
            assert door.in_flight == 2
        with door.admission.admit("C"):
            assert door.in_flight == 2


@pytest.mark.parametrize("others", [[], ["B"]])
def test_a_screen_in_flight_is_refused_a_second_time_however_full_it_is(others: list[str]) -> None:
    door = Door()
    with ExitStack() as inside:
        for screen_id in ("A", *others):
            inside.enter_context(door.admission.admit(screen_id))
        with pytest.raises(ScreenInProgress, match="screen A"), door.admission.admit("A"):
            pass
        # the refused one did not take the first one's place away
        with pytest.raises(ScreenInProgress), door.admission.admit("A"):
            pass
        assert door.in_flight == 1 + len(others)


def test_a_screen_that_failed_leaves_its_place() -> None:
    door = Door()
    for _ in range(3):
        with pytest.raises(OSError, match="gone"), door.admission.admit("A"):
            raise OSError("the client is gone")
    assert door.in_flight == 0
    with door.admission.admit("A"):
        assert door.in_flight == 1
