import asyncio
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.admission import Admission, needed_bytes
from service.errors import QueueFull, ScreenInProgress, TooManyScreens
from service.room import Room
from service.settings import Settings


class Door:
    """An admission of two screens, and what its gauge shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.admission = Admission(2, Gauge("screens_in_flight", "Of this test.", registry=self._registry), Room(100))

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


@pytest.mark.parametrize(
    ("content_length", "raw_pixels", "needed"),
    [
        ("700", 700, 700),  # the body is the frame
        (None, 700, 700),  # in chunks, as it comes from a camera
        ("900", 700, 900),  # refused once it is there
        ("5000", 700, 1000),  # refused at its header
        (None, 10**9, 1000),  # a size that is refused
        ("300", None, 600),  # the frame is larger than the file
        ("700", None, 700),
        (None, None, 1000),  # a file in chunks: as much as may come
        ("many", None, 1000),
    ],
)
def test_a_screen_needs_its_body_or_its_frame_whichever_is_larger(
    content_length: str | None, raw_pixels: int | None, needed: int
) -> None:
    settings = Settings(max_body_bytes=1000, max_pixels=1000, frame_size=(20, 30))
    assert needed_bytes(content_length, raw_pixels=raw_pixels, settings=settings) == needed


def test_whoever_leaves_makes_room_for_whoever_waits() -> None:
    door, order = Door(), list[str]()

    async def screen(name: str, until: asyncio.Event) -> None:
        with door.admission.admit(name) as place:
            await place.hold(60, timeout_s=10)
            order.append(f"{name} has room")
            await until.wait()
            order.append(f"{name} leaves")

    async def both() -> None:
        first, second = asyncio.Event(), asyncio.Event()
        second.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(screen("A", first))
            tasks.create_task(screen("B", second))
            for _ in range(10):
                await asyncio.sleep(0)
            assert order == ["A has room"]
            first.set()

    asyncio.run(both())
    assert order == ["A has room", "A leaves", "B has room", "B leaves"]
    assert door.in_flight == 0
