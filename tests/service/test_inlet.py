"""Bodies that come straight into the memory that is to hold them, over sockets, under both event loops."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service import inlet
from service.bodies import receive
from service.errors import ServiceError
from service.inlet import EXTENSION
from tests.service.apps import WAIT_S
from tests.service.devices import until

LIMIT_BYTES = 2**22
LONG = 2**20  # bytes: many reads


class App:
    """Answers with the hash of a body, or with what went wrong.

    Attributes:
        timeout_s: that a sender has.
        straight: of each body that was let in straight, how many of its bytes came so.
        ended: of each request, what its sender is told, or would be.
    """

    def __init__(self) -> None:
        self.timeout_s = WAIT_S
        self.straight: list[int] = []
        self.ended: list[str] = []

    async def __call__(self, scope: Scope, receive_message: Receive, send: Send) -> None:
        extension = scope["extensions"][EXTENSION]
        into: inlet.Into = extension["into"]

        async def watched(memory: memoryview, start: int, tell: Callable[[int], None]) -> int:
            told: list[int] = []
            end = await into(memory, start, told.append)
            assert told == sorted(told)
            assert end == (told[-1] if told else start)
            if told:
                self.straight.append(end - start)
            return end

        extension["into"] = watched
        try:
            body = await receive(Request(scope, receive_message), limit_bytes=LIMIT_BYTES, timeout_s=self.timeout_s)
            answer = digest(body)
        except ServiceError as error:
            answer = f"{type(error).__name__}: {error}"
        self.ended.append(answer)
        await PlainTextResponse(answer)(scope, receive_message, send)


def digest(body: bytes | memoryview) -> str:
    return hashlib.sha256(body).hexdigest()


@contextmanager
def served(loop: str) -> Iterator[tuple[App, tuple[str, int]]]:
    """The app, and where it listens."""
    app = App()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=inlet.HTTP, loop=loop, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield app, listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[App, tuple[str, int]]]:
    with served(request.param) as there:
        yield there


@pytest.fixture
def app(serving: tuple[App, tuple[str, int]]) -> App:
    app, _ = serving
    app.timeout_s = WAIT_S
    app.straight.clear()
    app.ended.clear()
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
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_bodies_arrive_whole_wherever_the_stream_is_cut(
    serving: tuple[App, tuple[str, int]], sizes: Sequence[int], cuts: Sequence[float]
) -> None:
    """Requests one behind the other, without a wait for answers."""
    bodies = [noise(size, seed) for seed, size in enumerate(sizes)]
    stream = b"".join(head(len(body)) + body for body in bodies)
    places = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    with socket.create_connection(serving[1], WAIT_S) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in pairwise(places):
            line.sendall(stream[start:end])
        assert answers(line, len(bodies)) == [digest(body) for body in bodies]


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


def test_sender_that_is_too_slow_is_told_so_and_may_send_another(app: App, line: socket.socket) -> None:
    app.timeout_s = 0.3
    line.sendall(head(LONG) + noise(LONG // 2))
    (told,) = answers(line, 1)
    assert told == "DeadlineExceeded: the body did not arrive within 0.3 s"
    app.timeout_s = WAIT_S
    body = noise(LONG, seed=1)
    line.sendall(noise(LONG - LONG // 2))  # the rest, of which nobody knows any more
    line.sendall(head(len(body)) + body)
    assert answers(line, 1) == [digest(body)]


def test_length_and_chunks_at_once_are_refused(app: App, line: socket.socket) -> None:
    line.sendall(head(LONG, "transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n")
    assert line.recv(100).startswith(b"HTTP/1.1 400 ")
    assert app.ended == []
