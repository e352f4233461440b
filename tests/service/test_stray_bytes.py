"""What stands behind whole requests and is none: they are answered, in order, and then the connection ends."""

import socket
import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.service.apps import WAIT_S, running
from tests.service.test_inlet import MOMENT_S, App, answers, digest, head, noise

IDLE_S = 1
CHUNKED = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
STRAY = {
    "no request": b"no request\r\n\r\n",
    "a broken head": b"POST / HTTP/1.1\r\nbroken\r\n\r\n",
    "zeros": bytes(1000),
    "a broken body": CHUNKED + b"no length\r\n",
    "a broken body, begun": CHUNKED + b"3\r\nabc\r\nno length\r\n",
}


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def serving(request: pytest.FixtureRequest) -> Iterator[tuple[App, tuple[str, int]]]:
    app = App()
    with running(app, loop=request.param, lifespan="off", timeout_keep_alive=IDLE_S) as address:
        yield app, address


@pytest.fixture
def app(serving: tuple[App, tuple[str, int]]) -> App:
    app, _ = serving
    app.ended.clear()
    return app


@pytest.fixture
def line(serving: tuple[App, tuple[str, int]]) -> Iterator[socket.socket]:
    with socket.create_connection(serving[1], WAIT_S) as connection:
        yield connection


@pytest.mark.parametrize("what", STRAY)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("whole", [1, 3])
def test_whole_requests_are_answered_and_nothing_else(
    app: App, line: socket.socket, what: str, apart: bool, whole: int
) -> None:
    app.answers_after_s = 0.05
    bodies = [noise(1000, seed) for seed in range(whole)]
    sent = b"".join(head(len(body)) + body for body in bodies)
    with capture_logs() as logs:
        line.sendall(sent if apart else sent + STRAY[what])
        if apart:
            time.sleep(MOMENT_S)
            line.sendall(STRAY[what])
        assert answers(line, whole) == [digest(body) for body in bodies]
        assert line.recv(1) == b""
    assert app.ended == [digest(body) for body in bodies]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["malformed behind a request"]


def test_an_answer_that_takes_longer_than_a_connection_may_be_idle_comes(app: App, line: socket.socket) -> None:
    app.answers_after_s = 1.5 * IDLE_S
    body = noise(1000)
    line.sendall(head(len(body)) + body + STRAY["no request"])
    assert answers(line, 1) == [digest(body)]


def test_who_sends_on_can_read_the_answer(app: App, line: socket.socket) -> None:
    """A connection that is closed at once is reset, and its answer may be thrown away."""
    app.answers_after_s = 0.2
    body = noise(1000)
    line.sendall(head(len(body)) + body)
    begun_at = time.monotonic()
    while time.monotonic() < begun_at + 0.5:
        line.sendall(noise(1000))
        time.sleep(0.01)
    assert answers(line, 1) == [digest(body)]
