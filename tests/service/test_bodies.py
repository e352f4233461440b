import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.bodies import receive
from service.errors import BodyTooLarge, BodyTooSlow, IncompleteBody, ServiceError, UnsupportedMedia

LIMIT = 100
PLENTY_S = 60.0


class Sender:
    """The other end of a connection: sends its chunks, then what `after` says.

    Attributes:
        asked: how often it was asked for more.
    """

    def __init__(self, chunks: Sequence[bytes], *, after: str = "end") -> None:
        self._chunks = list(chunks)
        self._after = after
        self.asked = 0

    async def __call__(self) -> Message:
        self.asked += 1
        if self._chunks:
            chunk = self._chunks.pop(0)
            last = not self._chunks and self._after == "end"
            return {"type": "http.request", "body": chunk, "more_body": not last}
        if self._after == "end":
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._after == "disconnect":
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()  # says nothing more, and stays
        raise AssertionError


def received(
    sender: Sender, headers: Mapping[str, str], *, timeout_s: float = PLENTY_S, limit_bytes: int = LIMIT
) -> memoryview:
    """What `receive` makes of it."""
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": encoded}
    return asyncio.run(receive(Request(scope, sender), limit_bytes=limit_bytes, timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("chunks", "promised"),
    [
        ([b"abc"], "3"),
        # in pieces, some of them empty
        ([b"a", b"", b"bc", b""], "3"),
        # of a length that nobody promised
        ([b"abc"], None),
        ([b"a", b"bc"], None),
        ([], "0"),
        ([], None),
        # at the limit
        ([bytes(LIMIT)], str(LIMIT)),
        ([bytes(LIMIT // 2)] * 2, None),
    ],
)
def test_body_arrives_whole(chunks: list[bytes], promised: str | None) -> None:
    headers = {} if promised is None else {"content-length": promised}
    assert bytes(received(Sender(chunks), headers)) == b"".join(chunks)


@pytest.mark.parametrize(
    ("headers", "error", "message"),
    [
        ({"content-length": "101"}, BodyTooLarge, "101 bytes is over the limit of 100"),
        ({"content-length": "9" * 20}, BodyTooLarge, "over the limit"),
        # Python does not read so long a number
        ({"content-length": "9" * 5000}, IncompleteBody, "is not a number"),
        ({"content-length": "-1"}, IncompleteBody, "is not a number"),
        ({"content-length": "1e2"}, IncompleteBody, "is not a number"),
        ({"content-length": "+3"}, IncompleteBody, "is not a number"),
        ({"content-length": "3, 3"}, IncompleteBody, "is not a number"),
        ({"content-length": ""}, IncompleteBody, "is not a number"),
        # a digit to Python, and to nobody else
        ({"content-length": "²"}, IncompleteBody, "is not a number"),
        # a small body may become a large one
        ({"content-encoding": "gzip", "content-length": "3"}, UnsupportedMedia, "'gzip' is not supported"),
        ({"transfer-encoding": "gzip, chunked"}, UnsupportedMedia, "'gzip, chunked' is not supported"),
        ({"content-encoding": "br"}, UnsupportedMedia, "send the bytes as they are"),
        ({"content-encoding": "identity, gzip"}, UnsupportedMedia, "not supported"),
    ],
)
def test_headers_are_refused_before_the_body_is_read(
    headers: dict[str, str], error: type[ServiceError], message: str
) -> None:
    sender = Sender([b"abc"])
    with pytest.raises(error, match=message):
        received(sender, headers)
    assert sender.asked == 0


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
def test_identity_is_no_encoding(encoding: str) -> None:
    assert bytes(received(Sender([b"abc"]), {"content-encoding": encoding})) == b"abc"


def test_chunk_that_passes_the_limit_ends_it() -> None:
    sender = Sender([bytes(40)] * 10)
    with pytest.raises(BodyTooLarge, match="over the limit of 100"):
        received(sender, {})
    assert sender.asked == 3


@pytest.mark.parametrize(
    ("chunks", "after", "message"),
    [
        # less than promised, and the end
        ([b"ab"], "end", "2 bytes arrived of 3"),
        ([], "end", "0 bytes arrived of 3"),
        # more than promised
        ([b"abcd"], "end", "more than the 3 bytes arrived"),
        ([b"abc", b"d"], "end", "more than the 3 bytes arrived"),
        # the connection breaks; also when every byte is there, but not the end
        ([], "disconnect", "closed after 0 bytes"),
        ([b"a", b"b"], "disconnect", "closed after 2 bytes"),
        ([b"abc"], "disconnect", "closed after 3 bytes"),
    ],
)
def test_body_of_another_length_is_incomplete(chunks: list[bytes], after: str, message: str) -> None:
    with pytest.raises(IncompleteBody, match=message):
        received(Sender(chunks, after=after), {"content-length": "3"})


def test_connection_that_breaks_within_a_chunked_body_is_incomplete() -> None:
    with pytest.raises(IncompleteBody, match="closed after 2 bytes"):
        received(Sender([b"ab"], after="disconnect"), {})


@pytest.mark.parametrize("chunks", [[], [b"a", b"b"]])
def test_sender_that_is_too_slow_is_not_waited_for(chunks: list[bytes]) -> None:
    with pytest.raises(BodyTooSlow, match=r"did not arrive within 0.01 s"):
        received(Sender(chunks, after="silence"), {"content-length": "3"}, timeout_s=0.01)


def test_deadline_that_has_passed_already_ends_it() -> None:
    with pytest.raises(BodyTooSlow):
        received(Sender([b"ab"], after="silence"), {}, timeout_s=-1.0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("headers", [{"content-length": str(2**28)}, {}])
def test_promise_that_is_not_kept_costs_no_memory(headers: dict[str, str]) -> None:
    before = resident_bytes()
    during = []

    class Watched(Sender):
        async def __call__(self) -> Message:
            during.append(resident_bytes())  # the buffer is there by now
            return await super().__call__()

    with pytest.raises(IncompleteBody):
        received(Watched([b"abc"], after="disconnect"), headers, limit_bytes=2**28)
    assert max(during) - before < 2**26
