"""Every failure as a problem document (RFC 9457) with a stable `code`; `detail` is for people.

A problem never has a `verdict` key, so that no client can read one as a pass. Texts of unexpected
exceptions stay in the log: they may hold paths and data.
"""

import math
from collections.abc import Iterator
from http import HTTPStatus

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine import InferenceError
from service.errors import ServiceError
from service.metrics import Metrics

MEDIA_TYPE = "application/problem+json"

# what the errors of `service.errors` do not cover
STATUSES = {
    "not_found": 404,
    "method_not_allowed": 405,
    "invalid_request": 422,
    "inference_failed": 500,
    "internal_error": 500,
}

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.problems")


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str


def codes() -> dict[str, int]:
    """HTTP status of every code that the service answers with."""
    return {**STATUSES, **{error.code: error.status for error in _concrete(ServiceError)}}


def problem(code: str, detail: str, *, instance: str) -> Problem:
    """The document for one failure.

    Args:
        code: one of `codes()`.
        detail: what happened this time, for people.
        instance: what it happened to: the path of the request, or the name of a file.
    """
    return Problem(
        type=f"urn:screen-inspection:problem:{code}",
        title=code.replace("_", " ").capitalize(),
        status=codes()[code],
        detail=detail,
        instance=instance,
        code=code,
    )


def describe(error: ServiceError | InferenceError, *, instance: str) -> Problem:
    """The document for an expected error."""
    code = error.code if isinstance(error, ServiceError) else "inference_failed"
    return problem(code, str(error), instance=instance)


def respond(request: Request, document: Problem, headers: dict[str, str] | None = None) -> Response:
    """Answer with the document, count it and name it in the request's log line."""
    metrics: Metrics = request.state.running.metrics
    metrics.errors.labels(document.code).inc()
    structlog.contextvars.bind_contextvars(code=document.code, detail=document.detail)
    return Response(document.model_dump_json(), document.status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every expected exception of `app`'s routes with a problem document.

    What nobody expected is left to `service.middleware`, outside of which nothing of ours runs.
    """
    app.add_exception_handler(ServiceError, _on_expected)
    app.add_exception_handler(InferenceError, _on_expected)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError | InferenceError)
    document = describe(error, instance=request.url.path)
    if document.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed", exc_info=error)
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = None if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
    return respond(request, document, headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # what was sent is not repeated: it may be long, and is the sender's own
    faults = (f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
    return respond(request, problem("invalid_request", "; ".join(faults), instance=request.url.path))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    document = problem(code, str(error.detail), instance=request.url.path)
    return respond(request, document, dict(error.headers or {}))


def _concrete(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in error.__subclasses__():
        yield child
        yield from _concrete(child)
