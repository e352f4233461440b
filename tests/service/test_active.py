"""Whatever is taken, swapped and given back in whatever order: closed once, and never while it is used."""

import threading
from contextlib import ExitStack

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from service.active import Active
from service.errors import NotReady

GUARD_S = 20.0


class Thing:
    """Counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def fail() -> None:
    raise OSError("the disk is full")


class Interleavings(RuleBasedStateMachine):
    """Users that come and go, and swaps whose old one is closed by a thread of its own."""

    uses = Bundle("uses")

    def __init__(self) -> None:
        super().__init__()
        self.now = Thing()
        self.active = Active(self.now)
        self.things = [self.now]
        self.users: dict[Thing, int] = {self.now: 0}
        self.retiring: dict[Thing, threading.Thread] = {}
        self.stopped = False

    @precondition(lambda self: not self.stopped)
    @rule(target=uses)
    def take(self) -> tuple[Thing, ExitStack]:
        use = ExitStack()
        thing = use.enter_context(self.active.take())
        assert thing is self.now
        self.users[thing] += 1
        return thing, use

    @rule(use=consumes(uses), fails=st.booleans())
    def give_back(self, use: tuple[Thing, ExitStack], fails: bool) -> None:
        thing, stack = use
        self.users[thing] -= 1
        if fails:
            error = LookupError("the screen failed")
            stack.__exit__(LookupError, error, None)
        else:
            stack.close()

    @precondition(lambda self: not self.stopped)
    @rule()
    def swap(self) -> None:
        new = Thing()
        self.users[new] = 0
        self.things.append(new)
        old = self.active.flip(new)
        assert old is self.now
        self.now = new
        self.retiring[old] = threading.Thread(target=self.active.retire, args=(old,), daemon=True)
        self.retiring[old].start()

    @rule()
    def stop(self) -> None:
        self.active.close()
        self.stopped = True

    @precondition(lambda self: self.stopped)
    @rule()
    def come_too_late(self) -> None:
        with pytest.raises(NotReady), self.active.take():
            pass
        own, recorded = Thing(), []
        with pytest.raises(NotReady):
            self.active.flip(own, lambda: recorded.append(own))
        assert own.closed == 0
        assert recorded == []

    @precondition(lambda self: not self.stopped)
    @rule()
    def fail_to_record(self) -> None:
        own = Thing()
        with pytest.raises(OSError, match="disk"):
            self.active.flip(own, fail)
        assert own.closed == 0

    @invariant()
    def closed_once_and_never_while_it_is_used(self) -> None:
        for thing in self.things:
            left = thing in self.retiring
            if self.stopped or (left and not self.users[thing]):
                if left:
                    self.retiring[thing].join(GUARD_S)
                    assert not self.retiring[thing].is_alive()
                assert thing.closed == 1
            else:
                assert thing.closed == 0
        if self.stopped:
            assert self.active.open == ()
        else:
            assert self.active.current is self.active.open[-1] is self.now
            assert set(self.active.open) == {thing for thing in self.things if not thing.closed}

    def teardown(self) -> None:
        self.active.close()
        for thread in self.retiring.values():
            thread.join(GUARD_S)


TestInterleavings = Interleavings.TestCase


def test_nobody_waits_for_the_record_and_a_stop_waits_for_it() -> None:
    active = Active(Thing())
    stop = threading.Thread(target=active.close)

    def record() -> None:
        with active.take() as thing:  # while it is written
            assert thing.closed == 0
        stop.start()
        stop.join(0.05)
        assert stop.is_alive()

    old = active.flip(Thing(), record)
    stop.join(GUARD_S)
    assert [thing.closed for thing in (old, active.current)] == [1, 1]


def test_threads_that_take_and_swap_at_once_never_meet_a_closed_one() -> None:
    active = Active(Thing())
    done = threading.Event()
    met: list[int] = []

    def use() -> None:
        while not done.is_set():
            with active.take() as thing:
                met.append(thing.closed)
                met.append(thing.closed)

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    left = []
    for _ in range(200):
        left.append(active.flip(Thing()))
        active.retire(left[-1])
    done.set()
    for user in users:
        user.join()
    assert len(met) > 0
    assert set(met) == {0}
    assert [thing.closed for thing in left] == [1] * 200
    assert active.current.closed == 0
