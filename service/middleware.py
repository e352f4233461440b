"""Around every request: its id, its line in the log, and the last resort for an exception nobody expected."""

import asyncio
import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.problems import PROBES, problem, respond, retry_after

REQUEST_ID_HEADER = "X-Request-ID"
# what a client may call its request; anything else is replaced, as it is written to logs and headers
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.requests")


def _client(scope: Scope) -> str | None:
    address = scope.get("client")  # none at a Unix socket
    return None if address is None else address[0]


class RequestScope:
    """ASGI middleware; the outermost code of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass the lifespan through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        # a request that came behind another begins in that one's context
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, client=_client(scope))
        started_at = time.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # uvicorn has waited for the end of its grace, and would now answer in plain text
            if status != 0:
                raise
            document = problem("not_ready", "the service stopped before the answer was there", instance=scope["path"])
            await respond(Request(scope), document, retry_after(NotReady.retry_after_s))(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected")
            if status == 0:
                document = problem("internal_error", "see the service's log", instance=scope["path"])
                await respond(Request(scope), document)(scope, receive, send_with_id)
        finally:
            level = "debug" if scope["path"] in PROBES else "info"
            getattr(log, level)(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_s=round(time.monotonic() - started_at, 4),
            )
