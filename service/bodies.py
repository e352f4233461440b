"""Receive a request body into one bounded buffer: step 1 of an inspection.

Nothing is spooled to disk and no chunk is kept: a body too large is refused at its header where it says
so, else at the chunk that passes the limit. A body whose length is promised comes from the socket into the memory from
which it is decoded, or, where it comes raw, into the frame that is worked on while it comes (`service.inlet`).
"""

import asyncio
from collections.abc import Callable

import numpy as np
from starlette.requests import ClientDisconnect, Request

from service.arrival import Arrival
from service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    FrameSizeMismatch,
    IncompleteBody,
    ServiceError,
    UnsupportedMedia,
)
from service.inlet import inlet_of

LONGEST_CONTENT_LENGTH = 20  # digits; Python itself refuses to read 4,301


async def receive(request: Request, *, limit_bytes: int, timeout_s: float) -> memoryview:
    """The whole body.

    Args:
        request: whose body has not been read.
        limit_bytes: largest body accepted.
        timeout_s: time that the sender has.

    Raises:
        BodyTooLarge: the header or the body is over the limit.
        IncompleteBody: the sender went away, or sent another number of bytes than it said.
        BodyTooSlow: the sender's time was over.
        UnsupportedMedia: the body is compressed as a whole.
    """
    promised = _promised(request, limit_bytes)
    # memory is touched only as bytes arrive, which a bytearray would fill with zeros first: a large promise that is
    # not kept costs nothing
    buffer = np.empty(limit_bytes if promised is None else promised, np.uint8).data
    received = await _fill(request, buffer, timeout_s=timeout_s, overflow=lambda: _overflow(promised, limit_bytes))
    if promised is not None and received < promised:
        raise IncompleteBody(f"{received} bytes arrived of {promised}")
    return buffer[:received]


async def receive_lines(request: Request, arrival: Arrival, *, limit_bytes: int, timeout_s: float) -> None:
    """The whole body, into a frame; what goes wrong is told to whoever waits for its lines, and not raised.

    Beside the exceptions of `receive` that is `FrameSizeMismatch`: the body is not as long as the frame.
    """
    height, width = arrival.pixels.shape
    wanted = f"{width} x {height} pixels are {height * width}"
    try:
        promised = _promised(request, limit_bytes)
        if promised is not None and promised != len(arrival.buffer):
            raise FrameSizeMismatch(f"{promised} bytes; {wanted}")
        received = await _fill(
            request,
            arrival.buffer,
            timeout_s=timeout_s,
            overflow=lambda: FrameSizeMismatch(f"more bytes came; {wanted}"),
            tell=arrival.received,
        )
        if received < len(arrival.buffer):
            raise FrameSizeMismatch(f"{received} bytes; {wanted}")
    except ServiceError as error:
        arrival.fail(error)
    except BaseException:  # such as a cancelled request: nobody shall wait for lines that will not come
        arrival.fail(IncompleteBody("the request was given up"))
        raise
    else:
        arrival.finish()


async def _fill(
    request: Request,
    buffer: memoryview,
    *,
    timeout_s: float,
    overflow: Callable[[], ServiceError],
    tell: Callable[[int], None] = lambda count_bytes: None,
) -> int:
    """Write the body to the front of the buffer; how many bytes it had. After each chunk `tell` hears how many came.

    Where the header promises a length the buffer has that length.
    """
    received = 0
    inlet = inlet_of(request.scope) if "content-length" in request.headers else None
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                end = received + len(chunk)
                if end > len(buffer):
                    raise overflow()
                buffer[received:end] = chunk
                received = end
                tell(received)
                if inlet is not None:
                    received = await inlet(buffer, received, tell)
    except TimeoutError as error:
        request.state.unread = True  # what comes on this connection next may be the rest of it
        raise BodyTooSlow(f"the body did not arrive within {timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise IncompleteBody(f"the connection closed after {received} bytes") from error
    return received


def _promised(request: Request, limit_bytes: int) -> int | None:
    """The length that the header promises, within the limit; None where it promises none."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"content-encoding {encoding!r} is not supported: send the bytes as they are")
    transfer = request.headers.get("transfer-encoding", "chunked")
    if transfer.strip().lower() != "chunked":
        raise UnsupportedMedia(f"transfer-encoding {transfer!r} is not supported: send the bytes as they are")
    promised = _content_length(request)
    if promised is not None and promised > limit_bytes:
        raise BodyTooLarge(f"the body of {promised} bytes is over the limit of {limit_bytes}")
    return promised


def _content_length(request: Request) -> int | None:
    """What the header promises; None where it promises nothing."""
    value = request.headers.get("content-length")
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > LONGEST_CONTENT_LENGTH:
        raise IncompleteBody(f"content-length {value[:40]!r} is not a number")
    return int(value)


def _overflow(promised: int | None, limit_bytes: int) -> BodyTooLarge | IncompleteBody:
    if promised is None:
        return BodyTooLarge(f"the body is over the limit of {limit_bytes} bytes")
    return IncompleteBody(f"more than the {promised} bytes arrived that the header promised")
