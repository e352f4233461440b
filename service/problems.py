"""Every failure as a problem document (RFC 9457) with a stable `code`; `detail` is for people.

A problem never has a `verdict` key, so that no client can read one as a pass. Texts of unexpected
exceptions stay in the log: they may hold paths and data.
"""

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from engine import InferenceError
from service.errors import ServiceError, concrete_errors
from service.metrics import Metrics
from service.store import StoreError

MEDIA_TYPE = "application/problem+json"
# asked every few seconds by machines: what they are answered is neither logged, unless somebody looks, nor counted
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Kind(NamedTuple):
    """What is the same for every problem with one code."""

    status: int
    title: str


# every code that the service answers with: the errors of `service.errors`, and what they do not cover
KINDS: dict[str, Kind] = {
    **{error.code: Kind(error.status, error.title) for error in concrete_errors()},
    "malformed_request": Kind(400, "What came is no HTTP request"),
    "method_not_allowed": Kind(405, "The resource does not take this method"),
    "inference_failed": Kind(500, "The model could not be run"),
    "record_failed": Kind(500, "The record could not be written or read"),
    "internal_error": Kind(500, "The service failed in a way that nobody expected"),
}

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.problems")


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = Field(examples=["urn:screen-inspection:problem:incomplete_image"])
    title: str = Field(examples=["The image is incomplete"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the PNG file lacks its end mark"])
    instance: str = Field(examples=["/v1/screens"])
    code: str = Field(examples=["incomplete_image"])


def problem(code: str, detail: str, *, instance: str) -> Problem:
    """The document for one failure.

    Args:
        code: one of `KINDS`.
        detail: what happened this time, for people.
        instance: what it happened to: the path of the request, or the name of a file.
    """
    return Problem(
        type=f"urn:screen-inspection:problem:{code}",
        title=KINDS[code].title,
        status=KINDS[code].status,
        detail=detail,
        instance=instance,
        code=code,
    )


def describe(error: ServiceError | InferenceError | StoreError, *, instance: str) -> Problem:
    """The document for an expected error."""
    if isinstance(error, ServiceError):
        return problem(error.code, error.detail, instance=instance)
    if isinstance(error, InferenceError):
        return problem("inference_failed", "the model failed on this screen; see the service's log", instance=instance)
    return problem("record_failed", "see the service's log", instance=instance)


def respond(request: Request, document: Problem, headers: dict[str, str] | None = None) -> Response:
    """Answer with the document, count it and name it in the request's log line.

    A probe is not counted: it is no screen that was refused, and an alert on errors would only repeat the self-test's.
    """
    metrics: Metrics = request.state.running.metrics
    if request.url.path not in PROBES and not getattr(request.state, "answered", False):
        metrics.errors.labels(document.code).inc()
    structlog.contextvars.bind_contextvars(code=document.code, detail=document.detail)
    if getattr(request.state, "unread", False) or "expect" in request.headers:
        # the rest of the body may never come, and the next request would be taken for it
        headers = {**(headers or {}), "Connection": "close"}
    return Response(document.model_dump_json(), document.status, headers=headers, media_type=MEDIA_TYPE)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to ask again; in whole seconds, and not too early."""
    return {"Retry-After": str(math.ceil(seconds))}


def install(app: FastAPI, resources: Sequence[BaseRoute] = ()) -> None:
    """Answer every expected exception of `app`'s routes with a problem document.

    `resources` are those of them that may take several methods.

    What nobody expected is left to `service.middleware`, outside of which nothing of ours runs.
    """
    app.state.resources = resources
    for kind in (ServiceError, InferenceError, StoreError):
        app.add_exception_handler(kind, _on_expected)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)


def faults_of(errors: Sequence[Any]) -> str:
    """What pydantic found wrong, without what was sent: that may be long, and is the sender's own."""
    return "; ".join(": ".join([*map(str, item["loc"][-1:]), item["msg"]]) for item in errors)


async def _on_expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError | InferenceError | StoreError)
    document = describe(error, instance=request.url.path)
    if document.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("failed", exc_info=error)
    retry_after_s = getattr(error, "retry_after_s", None)
    return respond(request, document, None if retry_after_s is None else retry_after(retry_after_s))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(request, problem("invalid_request", faults_of(error.errors()), instance=request.url.path))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    if code not in KINDS:
        code = "invalid_request" if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else "internal_error"
    document = problem(code, str(error.detail), instance=request.url.path)
    headers = dict(error.headers or {})
    if methods := _methods(request):
        headers["Allow"] = ", ".join(methods)  # given is that of one route, where a path may have several
    return respond(request, document, headers)


def _methods(request: Request) -> list[str]:
    """What the resource of a request takes, where it takes another method than that of the request."""
    there = [route for route in request.app.state.resources if isinstance(route, Route)]
    matching = [route for route in there if route.matches(request.scope)[0] == Match.PARTIAL]
    return sorted({method for route in matching for method in route.methods or ()})
