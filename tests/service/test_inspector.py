import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engine import InferenceError, cover
from service.aggregation import aggregate
from service.arrival import Arrival
from service.early import EarlyLooks
from service.errors import Conflict, DeadlineExceeded, ServiceError
from service.images import RAW, Source, decode
from service.images import Frame as DecodedFrame
from service.inspector import Forgetful, Inspector
from service.meter import FrameDigest
from service.reasoning import Reasoner
from service.room import Decoding, Room
from service.scheduler import Queued, Scheduler
from service.store import Answered, StoreError
from service.verdict import from_json
from tests.service.apps import (
    GOLDEN,
    PATCH_PX,
    SCREENS,
    SIZE,
    WAIT_S,
    Device,
    Frame,
    Gate,
    encoded,
    frame,
    inspecting,
)
from tests.service.devices import until

NEVER = 1e9  # 31 years on any clock


@dataclass
class Memory:
    """A record in memory that fails when it is told to, and remembers in which order it was asked."""

    answers: dict[str, Answered] = field(default_factory=dict)
    failing: bool = False

    def find(self, screen_id: str) -> Answered | None:
        return self.answers.get(screen_id)

    def record(self, answered: Answered) -> None:
        if self.failing:
            raise StoreError("disk full")
        assert answered.screen_id not in self.answers
        self.answers[answered.screen_id] = answered


def raw(pixels: Frame) -> Source:
    return Source(data=pixels.tobytes(), media_type=RAW, size=pixels.shape[:2])


def png(pixels: Frame) -> Source:
    return Source(data=encoded(pixels), media_type="image/png")


def test_bytes_become_a_recorded_verdict() -> None:
    record = Memory()
    with inspecting(Device(), record) as inspector:
        inspection = inspector.inspect("one", png(SCREENS["pass"]), deadline_at=NEVER)
    verdict = inspection.verdict
    assert verdict is not None
    assert (verdict.screen_id, verdict.verdict, verdict.model.name) == ("one", "pass", "fake")
    assert verdict.proof.windows_inferred == 6
    assert from_json(inspection.answer) == verdict
    assert record.answers["one"].answer == inspection.answer
    assert record.answers["one"].verdict == "pass"
    np.testing.assert_array_equal(inspection.frame.pixels, SCREENS["pass"])


@pytest.mark.parametrize("comes", ["a file", "raw lines"])
def test_each_stage_has_its_own_time(monkeypatch: pytest.MonkeyPatch, comes: str) -> None:
    """Every part takes another power of two by the inspector's clock, so that a sum tells its parts."""
    now_s = [0.0]

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
            now_s[0] += seconds
            return work(*arguments, **options)

        return slow

    def look_early(early: EarlyLooks, lines: int) -> None:
        now_s[0] += 1024
        early.took_s += 1024

    record, decoding = Memory(), Decoding()
    monkeypatch.setattr(decoding.turns, "acquire", taking(1, decoding.turns.acquire))
    monkeypatch.setattr(Room, "hold", taking(2, Room.hold))
    monkeypatch.setattr(record, "find", taking(4, record.find))
    monkeypatch.setattr(record, "record", taking(8, record.record))
    monkeypatch.setattr("service.inspector.decode", taking(16, decode))
    monkeypatch.setattr("service.inspector.cover", taking(32, cover))
    monkeypatch.setattr("service.inspector.aggregate", taking(64, aggregate))
    monkeypatch.setattr(FrameDigest, "add", taking(128, FrameDigest.add))
    monkeypatch.setattr(Reasoner, "_together", taking(256, Reasoner._together))
    monkeypatch.setattr(Queued, "features", taking(512, Queued.features))
    source = png(SCREENS["pass"])
    if comes == "raw lines":
        monkeypatch.setattr(EarlyLooks, "look", look_early)
        arrival = Arrival(*SIZE)
        arrival.pixels[:] = SCREENS["pass"]
        arrival.finish()
        source = Source(data=arrival, media_type=RAW, size=SIZE)
    with inspecting(Device(), record, clock=lambda: now_s[0], decoding=decoding) as inspector:
        inspection = inspector.inspect("one", source, deadline_at=NEVER, receive_s=0.25)
    assert inspection.verdict is not None
    timing = inspection.verdict.timing
    until_last_line_s = 4 + 32 + 128  # asking the record, covering the frame, the look at each line
    if comes == "a file":
        assert (timing.receive_s, timing.decode_s) == (0.25, 16 + until_last_line_s)
        waited_s = 1 + 2
    else:
        assert (timing.receive_s, timing.decode_s) == (0.25 + until_last_line_s, 16)
        waited_s = 0
    # what it waited for a device, and how long that worked, the scheduler measures by its own clock
    assert waited_s <= timing.queue_s < waited_s + WAIT_S
    assert 0 < timing.features_s < WAIT_S
    assert (timing.reasoning_s, timing.aggregate_s, inspection.record_s) == (256, 32 + 64, 8)


class Decoder:
    """Decodes one at a time, behind a gate, and counts those that came to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.begun = Gate(), 0
        monkeypatch.setattr("service.room.available_cpus", lambda: 1)
        monkeypatch.setattr("service.inspector.decode", self._decode)

    def _decode(self, source: Source, *, agreed: None, patch_px: int, max_pixels: int, room: object) -> DecodedFrame:
        self.begun += 1
        self.gate.go_through()
        return decode(source, agreed=agreed, patch_px=patch_px, max_pixels=max_pixels)


def test_a_screen_waits_to_be_decoded_no_longer_than_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(monkeypatch)
    decoder.gate.hold()
    with inspecting(Device(), clock=time.monotonic) as inspector, ThreadPoolExecutor(1) as pool:
        first = pool.submit(inspector.inspect, "one", png(SCREENS["pass"]), deadline_at=NEVER)
        decoder.gate.wait_for()
        begun_at = time.monotonic()
        try:
            with pytest.raises(DeadlineExceeded, match="could be decoded"):
                inspector.inspect("two", png(SCREENS["pass"]), deadline_at=begun_at + 0.1)
            assert time.monotonic() - begun_at < WAIT_S
        finally:
            decoder.gate.open()
        assert first.result(WAIT_S).verdict is not None
        with pytest.raises(DeadlineExceeded, match="was decoded"):
            inspector.inspect("three", png(SCREENS["pass"]), deadline_at=begun_at)
        assert decoder.begun == 1
        assert (
            inspector.inspect("four", png(SCREENS["pass"]), deadline_at=NEVER).verdict is not None
        )  # none kept a place


def test_the_wait_for_room_to_decode_is_waiting_and_not_decoding() -> None:
    now_s, decoding = [0.0], Decoding(room=Room(1))  # so that every file goes alone
    with (
        inspecting(Device(), clock=lambda: now_s[0], decoding=decoding) as inspector,
        ThreadPoolExecutor(1) as pool,
    ):
        with decoding.room.hold(1, timeout_s=0):
            inspection = pool.submit(inspector.inspect, "one", png(SCREENS["pass"]), deadline_at=NEVER)
            until(lambda: decoding.room.waiting == 1)
            now_s[0] += 100
        verdict = inspection.result(WAIT_S).verdict
    assert verdict is not None
    assert verdict.timing.decode_s == 0
    assert 100 <= verdict.timing.queue_s < 100 + WAIT_S


def test_the_bytes_are_let_go_once_they_are_decoded() -> None:
    device, source = Device(), png(SCREENS["pass"])
    device.screen_gate.hold()
    with inspecting(device) as inspector, ThreadPoolExecutor(1) as pool:
        inspection = pool.submit(inspector.inspect, "one", source, deadline_at=NEVER)
        device.screen_gate.wait_for()
        left = source.data
        device.screen_gate.open()
        assert inspection.result(WAIT_S).verdict is not None
    assert left == b""


def test_a_known_screen_is_not_computed_again_and_its_answer_not_written_again() -> None:
    device, record = Device(), Memory()
    with inspecting(device, record) as inspector:
        first = inspector.inspect("one", png(SCREENS["pass"]), deadline_at=NEVER)
        batches = device.batches
        device.scores = (0.9, 0.9, 0.9, 0.9)  # even where the bundle would say otherwise by now
        again = inspector.inspect("one", raw(SCREENS["pass"]), deadline_at=NEVER)
    assert again.answer == first.answer
    assert again.verdict is None
    assert device.batches == batches
    np.testing.assert_array_equal(again.frame.pixels, first.frame.pixels)


def test_other_pixels_under_a_known_id_are_a_conflict_and_change_nothing() -> None:
    device, record = Device(), Memory()
    with inspecting(device, record) as inspector:
        first = inspector.inspect("one", png(SCREENS["pass"]), deadline_at=NEVER)
        batches = device.batches
        with pytest.raises(Conflict, match="screen one"):
            inspector.inspect("one", png(SCREENS["fail"]), deadline_at=NEVER)
    assert record.answers["one"].answer == first.answer
    assert device.batches == batches


def test_without_a_record_every_screen_is_new() -> None:
    device = Device()
    with inspecting(device) as inspector:
        for pixels in (SCREENS["pass"], SCREENS["pass"], SCREENS["fail"]):
            assert inspector.inspect("one", png(pixels), deadline_at=NEVER).verdict is not None
    assert device.batches == 3 * 2


def test_what_cannot_be_recorded_has_no_verdict() -> None:
    with inspecting(Device(), Memory(failing=True)) as inspector, pytest.raises(StoreError):
        inspector.inspect("one", png(SCREENS["pass"]), deadline_at=NEVER)


def test_a_screen_that_has_failed_waits_for_no_more_of_its_lines() -> None:
    """A device that is gone ends the process, and a sender that has stalled does not keep the line down meanwhile."""
    size = 256, 192  # of which the first three rows of windows are more than a batch
    device, arrival = Device(), Arrival(*size)
    device.failure = InferenceError("no device")
    arrival.pixels[:] = frame(size=size)
    with inspecting(device) as inspector:
        arrival.received(size[1] * (size[0] - 1))  # all lines but the last
        begun_at = time.monotonic()
        with pytest.raises(InferenceError, match="no device"):
            inspector.inspect("one", Source(data=arrival, media_type=RAW, size=size), deadline_at=NEVER)
        assert time.monotonic() - begun_at < WAIT_S


def test_a_verdict_that_comes_too_late_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    late_s, record = [0.0], Memory()

    def slowly(*arguments: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        late_s[0] = 100.0
        return aggregate(*arguments)

    monkeypatch.setattr("service.inspector.aggregate", slowly)
    with (
        inspecting(Device(), record, clock=lambda: time.monotonic() + late_s[0]) as inspector,
        pytest.raises(DeadlineExceeded, match="before the verdict could be recorded"),
    ):
        inspector.inspect("one", png(SCREENS["pass"]), deadline_at=time.monotonic() + 50)
    assert record.answers == {}


def test_a_failed_screen_is_not_recorded() -> None:
    device, record = Device(), Memory()
    device.failure = InferenceError("no device")
    with inspecting(device, record) as inspector:
        with pytest.raises(InferenceError, match="no device"):
            inspector.inspect("one", png(SCREENS["pass"]), deadline_at=NEVER)
        with pytest.raises(DeadlineExceeded):
            inspector.inspect("two", png(SCREENS["pass"]), deadline_at=0)
        with pytest.raises(ServiceError):
            inspector.inspect("three", png(frame(size=(64, 63))), deadline_at=NEVER)
    assert record.answers == {}


def test_the_expected_windows_are_those_of_the_agreed_size() -> None:
    with inspecting(Device(), frame_size=SIZE) as inspector:
        inspection = inspector.inspect("one", raw(SCREENS["pass"]), deadline_at=NEVER)
        with pytest.raises(ServiceError, match="this line sends 192 x 128"):
            inspector.inspect("two", raw(frame(size=(128, 256))), deadline_at=NEVER)
    assert inspection.verdict is not None
    assert inspection.verdict.proof.frame_size_from == "setting"
    assert inspection.verdict.proof.windows_expected == len(cover(*SIZE, patch_px=PATCH_PX))


@pytest.mark.parametrize("first", ["exact", "rough"])
def test_a_screen_is_judged_with_the_guard_band_of_the_device_that_computed_it(first: str) -> None:
    devices = {"exact": Device(), "rough": Device()}
    guards = {"exact": 0.0, "rough": 0.02}
    low = 0.3
    devices["exact"].scores = (low - 0.010, 0.1, 0.1, 0.1)
    devices["rough"].scores = (low - 0.011, 0.1, 0.1, 0.1)  # by which they are told apart
    names = sorted(devices, key=lambda name: name != first)
    backends = [devices[name].backend(guard={"bubble": guards[name]}) for name in names]
    for device in devices.values():
        device.screen_gate.hold()  # so that neither takes both screens
    with (
        Scheduler(backends, GOLDEN, max_patches=100, self_test_interval_s=60) as scheduler,
        ThreadPoolExecutor(2) as pool,
    ):
        inspector = Inspector(backends[0], scheduler, Forgetful(), frame_size=None, max_pixels=10**6)
        within = time.monotonic() + WAIT_S
        answers = [pool.submit(inspector.inspect, name, png(SCREENS["pass"]), deadline_at=within) for name in "ab"]
        for device in devices.values():
            device.screen_gate.wait_for()
        for device in devices.values():
            device.screen_gate.open()
        inspections = [answer.result() for answer in answers]
    found = {}
    for inspection in inspections:
        assert inspection.verdict is not None
        score = round(inspection.verdict.labels["bubble"].score, 3)
        found[score] = (inspection.verdict.verdict, inspection.guard["bubble"])
    assert found == {0.290: ("pass", 0.0), 0.289: ("review", 0.02)}
