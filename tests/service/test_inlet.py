"""Bodies that come straight into the memory that is to hold them, over sockets, under both event loops."""

import asyncio
import hashlib
import json
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service import inlet, lingering
from service.bodies import receive
from service.errors import ServiceError
from service.inlet import EXTENSION, LONGEST_HEAD_BYTES
from tests.service.apps import WAIT_S, running
from tests.service.devices import until

LIMIT_BYTES = 2**23
LONG = 2**22  # bytes: many reads
MOMENT_S = 0.005  # in which the other end reads what there is


class App:
    """Answers with the hash of a body, or with what went wrong.

    Attributes:
        timeout_s: that a sender has.
        answers_after_s: how long it thinks.
        straight: of each body that was let in straight, how many of its bytes came so.
        ended: of each request, what its sender is told, or would be.
        memory: that of the bodies.
    """

    def __init__(self) -> None:
        self.timeout_s = WAIT_S
        self.answers_after_s = 0.0
        self.straight: list[int] = []
        self.ended: list[str] = []
        self.memory: list[weakref.ref[Any]] = []

    async def __call__(self, scope: Scope, receive_message: Receive, send: Send) -> None:
        extension = scope["extensions"][EXTENSION]
        into: inlet.Into = extension["into"]

        async def watched(memory: memoryview, start: int, tell: Callable[[int], None]) -> int:
            told: list[int] = []
            self.memory.append(weakref.ref(memory.obj))
            try:
                end = await into(memory, start, told.append)
            finally:
                assert told == sorted(told)
                if told:
                    self.straight.append(told[-1] - start)
            assert end == (told[-1] if told else start)
            return end

        extension["into"] = watched
        try:
            body = await receive(Request(scope, receive_message), limit_bytes=LIMIT_BYTES, timeout_s=self.timeout_s)
            answer = digest(body)
        except ServiceError as error:
            answer = f"{type(error).__name__}: {error}"
        self.ended.append(answer)
        await asyncio.sleep(self.answers_after_s)
        await PlainTextResponse(answer)(scope, receive_message, send)


def digest(body: bytes | memoryview) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[App, tuple[str, int]]]:
    """The app, and where it listens; a connection that waits stays."""
    app = App()
    with running(app, loop=request.param, lifespan="off", timeout_keep_alive=10 * int(WAIT_S)) as address:
        yield app, address


@pytest.fixture
def app(serving: tuple[App, tuple[str, int]]) -> App:
    app, _ = serving
    app.timeout_s, app.answers_after_s = WAIT_S, 0.0
    app.straight.clear()
    app.ended.clear()
    app.memory.clear()
    return app


@pytest.fixture
def line(serving: tuple[App, tuple[str, int]], app: App) -> Iterator[socket.socket]:
    with socket.create_connection(serving[1], WAIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def head(size: int, *more: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "host: line", f"content-length: {size}", *more, "", ""]).encode()


def answers(line: socket.socket, count: int) -> list[str]:
    """The texts of so many answers."""
    read, texts = line.makefile("rb"), []
    for _ in range(count):
        assert read.readline() == b"HTTP/1.1 200 OK\r\n"
        size = 0
        while (header := read.readline()) != b"\r\n":
            name, _, value = header.partition(b":")
            size = int(value) if name == b"content-length" else size
        texts.append(read.read(size).decode())
    return texts


def test_all_of_a_long_body_but_its_beginning_comes_straight(app: App, line: socket.socket) -> None:
    body = noise(LONG)
    line.sendall(head(len(body)))
    line.sendall(body)
    assert answers(line, 1) == [digest(body)]
    # the app begins after a first read, and uvicorn stops reading after the second where it has not begun by then
    assert sum(app.straight) >= LONG - 2 * inlet.SCRATCH_BYTES


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 50), st.integers(0, 3 * inlet.SCRATCH_BYTES)), min_size=1, max_size=4),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    at_borders=st.lists(st.integers(0, 7), max_size=4),
)
def test_bodies_arrive_whole_wherever_the_stream_is_cut(
    serving: tuple[App, tuple[str, int]], sizes: Sequence[int], cuts: Sequence[float], at_borders: Sequence[int]
) -> None:
    """Requests one behind the other, without a wait for answers; a moment passes at each cut."""
    bodies = [noise(size, seed) for seed, size in enumerate(sizes)]
    parts = [part for body in bodies for part in (head(len(body)), body)]
    stream = b"".join(parts)
    borders = [0, *accumulate(map(len, parts))]
    places = {int(cut * len(stream)) for cut in cuts} | {borders[border % len(borders)] for border in at_borders}
    with socket.create_connection(serving[1], WAIT_S) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in pairwise(sorted({0, len(stream), *places})):
            line.sendall(stream[start:end])
            time.sleep(MOMENT_S)
        assert answers(line, len(bodies)) == [digest(body) for body in bodies]


@pytest.mark.parametrize("size", [5, LONG])
@pytest.mark.parametrize("patient", [False, True], ids=["at once", "after the first answer"])
def test_a_request_behind_another_keeps_its_own_body(app: App, line: socket.socket, size: int, patient: bool) -> None:
    """The head of a frame whose lines are still to be scanned comes with the last bytes of the one before."""
    first, second = noise(size), noise(LONG, seed=1)
    line.sendall(head(size))
    time.sleep(MOMENT_S)
    line.sendall(first + head(LONG))
    time.sleep(MOMENT_S)
    found = answers(line, 1) if patient else []
    line.sendall(second)
    found += answers(line, 2 - len(found))
    assert found == [digest(first), digest(second)]


@pytest.mark.parametrize("whole", [False, True], ids=["half", "whole"])
def test_no_memory_is_held_for_a_connection_that_waits(app: App, line: socket.socket, whole: bool) -> None:
    app.timeout_s = WAIT_S if whole else 0.3
    line.sendall(head(LONG) + noise(LONG if whole else LONG // 2))
    (told,) = answers(line, 1)
    assert told.startswith("BodyTooSlow") != whole
    assert app.straight  # it did come straight
    until(lambda: all(memory() is None for memory in app.memory))


def test_body_in_chunks_comes_as_it_always_did(app: App, line: socket.socket) -> None:
    body = noise(3 * inlet.SCRATCH_BYTES)
    line.sendall(b"POST / HTTP/1.1\r\nhost: line\r\ntransfer-encoding: chunked\r\n\r\n")
    for start in range(0, len(body), inlet.SCRATCH_BYTES):
        chunk = body[start : start + inlet.SCRATCH_BYTES]
        line.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    line.sendall(b"0\r\n\r\n")
    assert answers(line, 1) == [digest(body)]
    assert app.straight == []


def test_sender_that_asks_first_is_told_to_go_on(app: App, line: socket.socket) -> None:
    body = noise(LONG)
    line.sendall(head(len(body), "expect: 100-continue"))
    assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    line.sendall(body)
    assert answers(line, 1) == [digest(body)]


def test_sender_that_goes_away_half_way_is_missed_at_once(app: App, line: socket.socket) -> None:
    line.sendall(head(LONG) + noise(LONG // 2))
    line.close()
    until(lambda: bool(app.ended))
    assert app.ended == [f"IncompleteBody: the connection closed after {LONG // 2} bytes"]


def send_half_too_slowly(app: App, line: socket.socket) -> None:
    app.timeout_s = 0.3
    line.sendall(head(LONG) + noise(LONG // 2))
    (told,) = answers(line, 1)
    assert told == "BodyTooSlow: the body did not arrive within 0.3 s"
    app.timeout_s = WAIT_S


def test_sender_that_is_too_slow_is_told_so_and_may_send_another(app: App, line: socket.socket) -> None:
    send_half_too_slowly(app, line)
    body = noise(LONG, seed=1)
    line.sendall(noise(LONG - LONG // 2))  # the rest, of which nobody knows any more
    line.sendall(head(len(body)) + body)
    assert answers(line, 1) == [digest(body)]


def test_the_rest_of_a_body_that_came_too_late_may_come_with_the_next_request(app: App, line: socket.socket) -> None:
    send_half_too_slowly(app, line)
    body = noise(1000, seed=1)
    rest = LONG - LONG // 2
    line.sendall(noise(rest - 10))
    time.sleep(MOMENT_S)
    line.sendall(noise(10) + head(len(body)) + body)  # read at once
    assert answers(line, 1) == [digest(body)]


def test_connection_that_is_to_be_closed_is_closed_behind_the_answer(app: App, line: socket.socket) -> None:
    body = noise(LONG)
    line.sendall(head(len(body), "connection: close") + body)
    assert answers(line, 1) == [digest(body)]
    assert app.straight
    assert line.recv(1) == b""


def test_sender_that_closes_its_side_behind_a_body_is_answered(app: App, line: socket.socket) -> None:
    app.answers_after_s = 0.1
    body = noise(LONG)
    line.sendall(head(len(body)) + body)
    line.shutdown(socket.SHUT_WR)
    assert answers(line, 1) == [digest(body)]
    assert line.recv(1) == b""


def refusal(line: socket.socket) -> dict[str, Any]:
    """The problem document behind which the connection is closed."""
    answer = b""
    while data := line.recv(2**16):
        answer += data
    header, _, body = answer.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")
    document = json.loads(body)
    assert (document["status"], document["code"]) == (400, "malformed_request")
    return dict(document)


def test_length_and_chunks_at_once_are_refused(app: App, line: socket.socket) -> None:
    line.sendall(head(LONG, "transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n")
    refusal(line)
    assert app.ended == []


ENDLESS = {
    "headers": (b"POST / HTTP/1.1\r\nhost: line\r\n", b"x: y\r\n"),
    "a header": (b"POST / HTTP/1.1\r\nhost: line\r\nx: ", b"y"),
    "an address": (b"POST /", b"y"),
    "trailers": (head(0).replace(b"content-length: 0", b"transfer-encoding: chunked") + b"0\r\n", b"x: y\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_a_parser_would_hold_has_a_limit(app: App, line: socket.socket, what: str) -> None:
    begin, more = ENDLESS[what]
    line.sendall(begin)
    time.sleep(MOMENT_S)
    line.sendall(more * (8 * LONGEST_HEAD_BYTES // len(more)))
    assert "65536 bytes" in refusal(line)["detail"]


def test_a_refusal_arrives_though_its_sender_goes_on(app: App, line: socket.socket) -> None:
    line.sendall(b"no request\r\n\r\n")
    for _ in range(20):
        line.sendall(noise(LONG))
        time.sleep(MOMENT_S)
    refusal(line)


def test_an_answer_before_the_body_has_come_arrives_though_the_connection_is_closed_behind_it(
    app: App, line: socket.socket
) -> None:
    line.sendall(head(10 * LIMIT_BYTES, "connection: close"))
    until(lambda: len(app.ended) == 1)
    for _ in range(10):
        line.sendall(noise(LIMIT_BYTES))
    assert answers(line, 1) == app.ended
    assert app.ended[0].startswith("BodyTooLarge: ")
    assert line.recv(1) == b""


def send_on(line: socket.socket) -> None:
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:
        line.sendall(b"more")
        time.sleep(MOMENT_S)


def test_a_sender_that_never_ends_is_cut_off(app: App, line: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.3)
    begun_at = time.monotonic()
    line.sendall(b"no request\r\n\r\n")
    with pytest.raises(ConnectionError):
        send_on(line)
    assert time.monotonic() - begun_at > 0.3


def test_an_app_hears_of_a_body_that_turns_out_to_be_none(app: App, line: socket.socket) -> None:
    line.sendall(head(0).replace(b"content-length: 0", b"transfer-encoding: chunked") + b"3\r\nabc\r\n")
    line.sendall(b"no length\r\n")
    refusal(line)
    until(lambda: len(app.ended) == 1)
    assert app.ended[0].startswith("IncompleteBody: ")


@pytest.mark.parametrize("size", [0, 10, 1000, LONG])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_request_that_offers_another_protocol_is_one_of_this(
    app: App, line: socket.socket, size: int, chunked: bool, apart: bool
) -> None:
    """As curl --http2 and Java's own client offer h2c with each."""
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    bodies = [noise(size, seed) for seed in range(2)]
    for body in bodies:
        begin, sent = head(size, *offer), body
        if chunked:
            begin = begin.replace(f"content-length: {size}".encode(), b"transfer-encoding: chunked")
            sent = (b"%x\r\n%s\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
        if apart:
            line.sendall(begin)
            time.sleep(MOMENT_S)
            line.sendall(sent)
        else:
            line.sendall(begin + sent)
        assert answers(line, 1) == [digest(body)]


def test_a_connection_that_was_answered_early_is_closed_in_the_end() -> None:
    with running(App(), loop="asyncio", lifespan="off", timeout_keep_alive=1) as address:
        for more in (noise(1000), noise(2 * LIMIT_BYTES)):
            with socket.create_connection(address, WAIT_S) as connection:
                connection.sendall(head(2 * LIMIT_BYTES))
                assert answers(connection, 1)[0].startswith("BodyTooLarge: ")
                connection.sendall(more)
                assert connection.recv(1) == b""


def test_a_stop_does_not_wait_for_who_goes_on_sending() -> None:
    begun_at = 0.0
    with (
        running(App(), loop="asyncio", lifespan="off") as address,
        socket.create_connection(address, WAIT_S) as connection,
    ):
        connection.sendall(head(2 * LIMIT_BYTES))
        assert answers(connection, 1)[0].startswith("BodyTooLarge: ")
        connection.sendall(noise(1000))
        begun_at = time.monotonic()
    assert time.monotonic() - begun_at < 5


def test_headers_within_the_limit_are_taken_in_whatever_pieces(app: App, line: socket.socket) -> None:
    body, long_head = noise(9), head(9, *[f"x-{number}: {'y' * 1000}" for number in range(50)])
    for start in range(0, len(long_head), 7000):
        line.sendall(long_head[start : start + 7000])
        time.sleep(MOMENT_S)
    line.sendall(body)
    assert answers(line, 1) == [digest(body)]


def test_a_connection_that_brings_no_whole_head_is_closed() -> None:
    with running(App(), loop="asyncio", lifespan="off", timeout_keep_alive=1) as address:
        for begin in (b"", b"POST / HTTP/1.1\r\nhost:"):
            with socket.create_connection(address, WAIT_S) as connection:
                connection.sendall(begin)
                begun_at = time.monotonic()
                assert connection.recv(1) == b""
                assert time.monotonic() - begun_at > 0.9
