"""The way of a body from the socket into the memory that is to hold it.

A server hands a body to its app in pieces, each of which it has copied several times by then, all within the event
loop. Of a frame of 50 MiB that took longer than anything but the network. Whoever knows how long a body is may hand its
memory to this one instead, and the system writes what comes into it. The parser, which would copy it once more, is not
shown such bytes: another one goes on behind them. All else is uvicorn's, which does not know of it.

What a connection is at, and what tells it. Where nothing else is said, what comes is read into our own memory and shown
to the parser, and a sender that ends is cut off.

    before a head    no `cycle`, or its response is complete    a timer, `_head_timer`, closes it
    in a head        `_in_head`                                 the same timer; the head has a longest
    body, in pieces  `cycle.more_body`, nothing `_unseen`       the app takes it from uvicorn's stream
    body, let in     `_unseen` bytes to come, and a `_body`     read into the app's memory, the parser is not shown it
    body, given up   `_unseen` bytes to come, and no `_body`    read, and for nobody
    answering        no `cycle.more_body`, response to come     a sender that ends still gets it, as the last one
    over             the transport `is_closing`                 read for nobody while it lingers (`service.lingering`);
                                                                `_refused`: what came was no request

A request that offers another protocol has its body all the same: `_framing` is the header that tells of it, by which a
new parser is told, `_deaf` meanwhile, where it is. `_heard` and `_unheard_bytes` bound what a parser holds of a head.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import httptools
import numpy as np
import structlog
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.lingering import Lingering
from service.problems import MEDIA_TYPE, problem

EXTENSION = "service.inlet"  # of ASGI
HTTP = f"{__name__}:Inlet"  # as uvicorn is told of a protocol that it has no type for
LONGEST_HEAD_BYTES = 2**16  # of headers before a body or behind it: the parser holds whatever comes
_LONGEST = f"{LONGEST_HEAD_BYTES} bytes"
SCRATCH_BYTES = 2**18  # of one read, for heads and for bodies that come piece by piece: as many as uvloop reads

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.inlet")


class Into(Protocol):
    """Let a body come straight into memory."""

    async def __call__(self, memory: memoryview, start: int, tell: Callable[[int], None]) -> int:
        """How many of its bytes are there; with fewer than all, the stream of the request tells what else came.

        Once for a body: given up half-way, what is left of it goes nowhere.

        Args:
            memory: as long as the body.
            start: bytes that are there by now.
            tell: hears how many are there, whenever more have come.
        """


def inlet_of(scope: Scope) -> Into | None:
    """What lets the body of a request come straight into memory; None where the server has no such thing."""
    found: Into | None = scope.get("extensions", {}).get(EXTENSION, {}).get("into")
    return found


class Inlet(asyncio.BufferedProtocol):
    """A connection: asyncio's protocol that is asked where to write, around uvicorn's that is told what was read."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's, whatever they are
        self._http = _Http(*args, **options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As in `asyncio.BaseProtocol`."""
        self._http.connection_made(cast(asyncio.Transport, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """As in `asyncio.BaseProtocol`."""
        self._http.connection_lost(exc)

    def eof_received(self) -> bool:
        """As in `asyncio.BufferedProtocol`: whether the connection stays open, for an answer that is still to come."""
        return self._http.ended()

    def pause_writing(self) -> None:
        """As in `asyncio.BaseProtocol`."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """As in `asyncio.BaseProtocol`."""
        self._http.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what is read next is to be written."""
        return self._http.lend()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes were written there."""
        self._http.written(nbytes)


class _Http(HttpToolsProtocol):
    """Uvicorn's protocol, which parses what was read wherever it lies."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's, whatever they are
        super().__init__(*args, **options)
        self._scratch = np.empty(SCRATCH_BYTES, np.uint8).data  # touched only as bytes come
        self._lent = self._scratch
        self._body: _Body | None = None
        self._unseen = 0  # bytes still to come that the parser is not shown, wanted or not
        self._heard = False  # since the last read, the end of a head or some of a body
        self._unheard_bytes = 0  # that the parser holds, or has made headers of
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._astray = False  # what comes now stands behind the last request that is answered, and is none
        self._before: RequestResponseCycle | None = None  # the request that is to be answered before the newest
        self._framing: bytes | None = (
            None  # the header by which the request under way has a body; None where it has none
        )
        self._deaf = False  # to what the parser tells of a head that we made

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._ending = Lingering(transport, self._more_may_come)
        super().connection_made(self._ending)
        self._await_head()

    def lend(self) -> memoryview:
        """Memory for what is read next: that which waits for the rest of a body, or else our own."""
        missing = self._body.missing() if self._body is not None else None
        self._lent = missing or self._scratch
        return self._lent

    def written(self, count_bytes: int) -> None:
        """So many bytes were read into what was lent."""
        data, self._lent = self._lent[:count_bytes], self._scratch  # a frame is held by nobody who only waits
        if self.transport.is_closing() or self._astray:
            return
        if unseen := min(self._unseen, count_bytes):
            self._unset_keepalive_if_required()
            self._unseen -= unseen
            if self._body is not None:
                self._body.more(unseen)
            if not self._unseen:
                self.parser = _parser(self)
                self.on_message_complete()
        if unseen < count_bytes:
            self._heard = False
            self.data_received(cast(bytes, data[unseen:]))  # the parser takes whatever holds bytes
            self._unheard_bytes = 0 if self._heard else self._unheard_bytes + count_bytes - unseen
            if self._unheard_bytes > LONGEST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"a head, or what stands between two pieces of a body, of over {_LONGEST}")
        if self._in_head or (self.cycle is not None and self.cycle.response_complete):
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but that a request which offers another protocol is one of this protocol, with its body."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:  # the parser takes what follows the head for that protocol's
            self.parser = _parser(self)
            if self._framing is not None:
                self._deaf = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + self._framing + b"\r\n\r\n")
                self._deaf = False
            if rest := data[offered.args[0] :]:
                self.data_received(rest)
        except httptools.HttpParserError:
            self.send_400_response("it cannot be parsed")

    def shutdown(self) -> None:
        """As uvicorn's; who is sending still is given a moment, and no more."""
        self._ending.stopping = True
        super().shutdown()

    def ended(self) -> bool:
        """Nothing more will be read; whether somebody waits for an answer to what was."""
        if self.cycle is None or self.transport.is_closing():
            return False
        answers = not self.cycle.more_body and not self.cycle.response_complete
        if answers:
            self.cycle.keep_alive = False  # the answer is the last one
        return answers

    def on_message_begin(self) -> None:
        if not self._deaf:
            super().on_message_begin()
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        if not self._deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._deaf:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._heard = True
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._heard, self._in_head = True, False
        self._stop_timer()
        framing = [
            b"%s: %s" % header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self._framing = next((line for line in framing if line != b"content-length: 0"), None)
        before = self.cycle
        super().on_headers_complete()
        self._before = None if before is None or before is self.cycle or before.response_complete else before
        if self.cycle is not None and self.cycle.scope is self.scope:  # not so where the connection is upgraded
            self.scope["extensions"] = {EXTENSION: {"into": partial(self._let_in, self.cycle)}}

    def on_message_complete(self) -> None:
        self._heard = True
        if self.parser.should_upgrade() and self._framing is not None:
            return  # its body is to come
        super().on_message_complete()
        if self.cycle is not None:
            self.cycle.more_body = False  # also where it was answered before
        self._end_body()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, unless within another answer, and close."""
        if self._astray:
            return
        if (last := self._last_to_answer()) is not None:
            self._end_behind(last, msg)
            return
        self._refused = True
        self._warn("malformed request", msg)
        if (running := self.app_state.get("running")) is not None:
            running.metrics.errors.labels("malformed_request").inc()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = problem("malformed_request", msg, instance="").model_dump_json().encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
        if self.cycle is not None:  # it hears of it now, and not when its sender has ended
            self.cycle.scope["state"]["answered"] = True
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _last_to_answer(self) -> RequestResponseCycle | None:
        """The last whole request that waits for its answer, behind which a malformed one stands, which is forgotten."""
        if self.cycle is None or self.cycle.response_complete:
            return None
        if self._before is not None and self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # the newest, which is itself the malformed one
            self.cycle = self._before
        return None if self.cycle.more_body else self.cycle

    def _end_behind(self, last: RequestResponseCycle, msg: str) -> None:
        """Answer what is to be answered, and close: a refusal now would be taken for one of those answers."""
        self._warn("malformed behind a request", msg)
        self._astray, self._in_head = True, False
        last.keep_alive = False
        self._stop_timer()
        self.flow.pause_reading()

    def _warn(self, event: str, msg: str) -> None:
        log.warning(event, client=None if self.client is None else self.client[0], detail=msg)

    def _more_may_come(self) -> bool:
        """Whether the sender may be within something that nobody waits for, of which it is to hear."""
        return self._refused or self._astray or (self.cycle is not None and self.cycle.more_body)

    def _await_head(self) -> None:
        """Close the connection where no whole head comes for as long as one may be idle between two requests."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._ending.closed()
        super().connection_lost(exc)
        self._before = None
        self._end_body()
        if self.scope is not None:
            self.scope["extensions"] = {}  # which hold this object, which holds them

    async def _let_in(
        self, cycle: RequestResponseCycle, memory: memoryview, start: int, tell: Callable[[int], None]
    ) -> int:
        """See `Into`; `cycle` is of the request, behind which others may have come already."""
        if cycle is not self.cycle or cycle.body or cycle.disconnected or not cycle.more_body or self._unseen:
            return start
        body = self._body = _Body(memory, start, tell)
        self._unseen = len(memory) - start
        self.flow.resume_reading()
        try:
            await body.ended.wait()
        finally:
            self._body, self._lent = None, self._scratch
        return body.received

    def _end_body(self) -> None:
        if self._body is not None:
            self._body.ended.set()
            self._body = None  # what is read from now on is of another request


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class _Body:
    """A body that comes into memory.

    Attributes:
        received: bytes that are there.
        ended: it is whole, or no more will come.
    """

    def __init__(self, memory: memoryview, start: int, tell: Callable[[int], None]) -> None:
        self._memory = memory
        self._tell = tell
        self.received = start
        self.ended = asyncio.Event()

    def missing(self) -> memoryview:
        """Where the next bytes belong; empty where it is whole."""
        return self._memory[self.received :]

    def more(self, count_bytes: int) -> None:
        """So many bytes were written there."""
        self.received += count_bytes
        self._tell(self.received)
