"""The HTTP interface: steps 1 and 8 of an inspection, and what is asked about the service."""

import asyncio
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import anyio.to_thread
import structlog
from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from service import examples
from service.admission import Admission, Place, needed_bytes
from service.arrival import Arrival
from service.bodies import receive, receive_lines
from service.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotFound,
    NotReady,
    QueueFull,
    ScreenInProgress,
    UnsupportedMedia,
)
from service.images import MEDIA_TYPES, NO_SIZE, RAW, SIZE_OF_A_FILE, Source, refuse_size
from service.inspector import Inspection
from service.metrics import Metrics
from service.models import Models
from service.problems import KINDS, MEDIA_TYPE, Problem
from service.settings import Settings
from service.store import Answered, Store
from service.verdict import Verdict, to_json

# not of dots alone, which are no place at which it could be asked for
SCREEN_ID = r"^[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*$"
LONGEST_SCREEN_ID = 64
LONGEST_PAGE = 1000

ScreenId = Annotated[
    str,
    Query(
        pattern=SCREEN_ID, max_length=LONGEST_SCREEN_ID, description="The screen's name on the line: a serial number."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a running app holds, from the start of its lifespan to the end; `request.state.running`."""

    settings: Settings
    models: Models
    store: Store
    metrics: Metrics
    admission: Admission
    threads: CapacityLimiter


async def get_running(request: Request) -> Running:
    """What the app holds; async, as FastAPI calls what is not in a pool that every other request may hold."""
    running: Running = request.state.running
    return running


CurrentRunning = Annotated[Running, Depends(get_running)]


class Page(BaseModel):
    """Answers, newest first, and the cursor of the next page; null at the end."""

    items: list[Verdict]
    next: int | None


LATER = frozenset(error.code for error in (QueueFull, NotReady, ScreenInProgress))  # which say when to ask again
RETRY_AFTER = {
    "Retry-After": {
        "description": f"Seconds; with {', '.join(f'`{code}`' for code in sorted(LATER))}.",
        "schema": {"type": "integer"},
    }
}


def problem_responses(*names: str) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route answers with, for its documentation."""
    statuses: dict[int, list[str]] = {}
    for name in (*names, "internal_error"):
        statuses.setdefault(KINDS[name].status, []).append(name)
    return {
        status: {
            "description": ", ".join(f"`{name}`" for name in listed),
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
            **({"headers": RETRY_AFTER} if LATER.intersection(listed) else {}),
        }
        for status, listed in sorted(statuses.items())
    }


def _example(verdict: Verdict) -> dict[str, Any]:
    return {"value": json.loads(to_json(verdict))}


POST_PROBLEMS = (
    *(
        "malformed_request",
        "incomplete_body",
        "body_too_slow",
        "body_too_large",
        "image_too_large",
        "unsupported_media",
        "invalid_request",
    ),
    *("unreadable_image", "incomplete_image", "image_too_small", "frame_size_mismatch", "conflict"),
    *("in_progress", "queue_full", "not_ready", "deadline_exceeded", "inference_failed", "record_failed"),
)
POST_BODY = {
    "requestBody": {
        "required": True,
        "description": "One grey frame: a PNG, BMP, TIFF, JPEG or binary PGM file, or its bare 8-bit pixels.",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES},
    }
}
VERDICT_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The verdict, recorded before it is answered.",
        "headers": {
            "X-Frame-Digest": {"description": "Of the pixels that it was given for.", "schema": {"type": "string"}},
            "X-Recorded-At": {
                "description": "When, in UTC.",
                "schema": {"type": "string", "format": "date-time"},
            },
            "X-Replayed": {
                "description": "Whether it was recorded before.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
        },
        "content": {"application/json": {"examples": {name: _example(v) for name, v in examples.VERDICTS.items()}}},
    }
}

router = APIRouter()


@router.post(
    "/v1/screens",
    response_model=Verdict,
    responses={**VERDICT_RESPONSE, **problem_responses(*POST_PROBLEMS)},
    openapi_extra=POST_BODY,
    summary="Inspect one screen",
)
async def inspect_screen(
    request: Request,
    running: CurrentRunning,
    screen_id: ScreenId,
    width: Annotated[int | None, Query(ge=1, description="Of raw pixels; not with a file.")] = None,
    height: Annotated[int | None, Query(ge=1, description="Of raw pixels; not with a file.")] = None,
    deadline_s: Annotated[
        float | None, Query(gt=0, le=300, description="After this the answer is no longer of use.")
    ] = None,
) -> Response:
    """Send one frame and get its verdict.

    The same id with the same pixels gets the same answer again; with other pixels it is refused.
    An error is never a verdict: read `verdict` only from a 200.
    """
    received_at = time.monotonic()
    settings = running.settings
    deadline_at = received_at + (settings.deadline_s if deadline_s is None else deadline_s)
    structlog.contextvars.bind_contextvars(screen_id=screen_id)  # in every line of this request
    media_type = _media_type(request)
    _refuse_other_parameters(request, "screen_id", "width", "height", "deadline_s")
    if (width is None) != (height is None):
        raise InvalidRequest("width and height go together")
    if width is not None and media_type != RAW:
        raise InvalidRequest(SIZE_OF_A_FILE)
    size = None if width is None or height is None else (height, width)
    inspect = functools.partial(_inspect, running, screen_id, deadline_at=deadline_at)
    with running.admission.admit(screen_id) as place:
        if media_type == RAW:
            arrival = await _arrival(size, place, running, deadline_at)
            inspect = functools.partial(inspect, receive_s=time.monotonic() - received_at)
            inspection = await _inspect_lines(request, arrival, inspect, running, deadline_at)
            whole_at = arrival.ended_at
        else:
            needed = needed_bytes(request.headers.get("content-length"), settings=settings)
            await place.hold(needed, timeout_s=deadline_at - time.monotonic())
            source = Source(  # which alone holds the body: it is dropped once it is decoded
                data=await receive(
                    request, limit_bytes=settings.max_body_bytes, timeout_s=deadline_at - time.monotonic()
                ),
                media_type=media_type,
            )
            whole_at = time.monotonic()
            inspect = functools.partial(inspect, receive_s=whole_at - received_at)
            # a client that goes away does not stop it: the answer is recorded, and asked for again
            inspection = await anyio.to_thread.run_sync(inspect, source, limiter=running.threads)
    _measure(running.metrics, inspection, received_at=received_at, whole_at=whole_at)
    return _respond(inspection.answered, replayed=inspection.verdict is None)


@router.get(
    "/v1/screens/{screen_id}",
    response_model=Verdict,
    responses={**VERDICT_RESPONSE, **problem_responses("not_found", "invalid_request", "record_failed")},
    summary="What was answered for a screen",
)
def read_screen(
    request: Request,
    running: CurrentRunning,
    screen_id: Annotated[str, Path(pattern=SCREEN_ID, max_length=LONGEST_SCREEN_ID)],
) -> Response:
    """The same bytes that were answered when it was inspected; the headers tell for which frame, and when."""
    _refuse_other_parameters(request)
    answered = running.store.find(screen_id)
    if answered is None:
        raise NotFound(f"no screen {screen_id} was answered")
    return _respond(answered, replayed=True)


@router.get(
    "/v1/screens",
    response_model=Page,
    responses=problem_responses("invalid_request", "record_failed"),
    summary="What was answered, newest first",
)
def list_screens(
    request: Request,
    running: CurrentRunning,
    limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50,
    cursor: Annotated[
        Annotated[int, Field(ge=0, le=2**63 - 1)] | None,
        BeforeValidator(lambda value: value or None),  # an empty one is the first page's
        Query(description="`next` of the page before."),
    ] = None,
) -> Response:
    """Pages are stable while screens arrive: new ones come before the first page."""
    _refuse_other_parameters(request, "limit", "cursor")
    page = running.store.page(limit=limit, cursor=cursor)
    items = ",".join(answered.answer for answered in page.items)
    return Response(f'{{"items":[{items}],"next":{json.dumps(page.next)}}}', media_type="application/json")


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the process serves")
async def healthz() -> JSONResponse:
    """Always 200 while the process can answer; whether it can inspect, `/readyz` says."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problem_responses("not_ready"), summary="Whether a screen could pass now")
async def readyz(running: CurrentRunning) -> JSONResponse:
    """200 while every device gave its known answers within the last two minutes, and the record can be written."""
    serving = running.models.current
    report = serving.scheduler.report()
    if not (report.ok and report.fresh):
        raise NotReady(f"self-test: {report.detail or 'the last success is too old'}")
    if running.store.failure:
        raise NotReady("the record cannot be written; see the service's log")
    manifest = serving.manifest
    return JSONResponse(
        {
            "status": "ready",
            "model": {"bundle": serving.bundle, "name": manifest.name, "version": manifest.version},
            "self_test": {"age_s": report.age_s, "difference": report.difference},
        }
    )


@router.get(
    "/metrics",
    summary="Every series, for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(running: CurrentRunning) -> Response:
    """The Prometheus text format."""
    return Response(running.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _refuse_other_parameters(request: Request, *names: str) -> None:
    """Refuse a misspelt parameter, such as a deadline, and one that is there twice: others may read the first of both.

    Raises:
        InvalidRequest: there is one.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    if unknown := sorted(set(given).difference(names)):
        there = f"there are {', '.join(sorted(names))}" if names else "there are none"
        raise InvalidRequest(f"unknown parameter {unknown[0][:40]!r}: {there}")
    if again := [name for name in names if given.count(name) > 1]:
        raise InvalidRequest(f"{again[0]} is there {given.count(again[0])} times")


async def _arrival(size: tuple[int, int] | None, place: Place, running: Running, deadline_at: float) -> Arrival:
    """Memory for a raw frame (height, width), once there is room."""
    if size is None:
        raise InvalidRequest(NO_SIZE)
    settings, (height, width) = running.settings, size
    patch_px = running.models.current.manifest.patch_px
    refuse_size(height, width, agreed=settings.frame_size, max_pixels=settings.max_pixels, patch_px=patch_px)
    if height * width > settings.max_body_bytes:
        raise BodyTooLarge(f"{width} x {height} pixels are over the limit of {settings.max_body_bytes} bytes")
    await place.hold(height * width, timeout_s=deadline_at - time.monotonic())
    return Arrival(height, width)


async def _inspect_lines(
    request: Request, arrival: Arrival, inspect: Callable[[Source], Inspection], running: Running, deadline_at: float
) -> Inspection:
    """Inspect a raw frame while its lines arrive."""
    left_s, limit_bytes = deadline_at - time.monotonic(), running.settings.max_body_bytes
    receiving = asyncio.create_task(receive_lines(request, arrival, limit_bytes=limit_bytes, timeout_s=left_s))
    source = Source(data=arrival, media_type=RAW, size=arrival.pixels.shape)
    try:
        return await anyio.to_thread.run_sync(inspect, source, limiter=running.threads)
    finally:
        await receiving  # a sender reads its answer once it has sent its frame, and not before


def _inspect(
    running: Running, screen_id: str, source: Source, *, deadline_at: float, receive_s: float = 0.0
) -> Inspection:
    """Steps 2 to 8, in the screen's own thread, by the one bundle that is in service as they begin."""
    with running.models.take() as serving:
        return serving.inspector.inspect(screen_id, source, deadline_at=deadline_at, receive_s=receive_s)


def _media_type(request: Request) -> str:
    if len(request.headers.getlist("content-type")) > 1:
        raise UnsupportedMedia("content-type is there several times")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise UnsupportedMedia(f"content-type {media_type!r}: send one of {', '.join(MEDIA_TYPES)}")
    return media_type


def _respond(answered: Answered, *, replayed: bool) -> Response:
    headers = {
        "X-Frame-Digest": answered.digest,
        "X-Recorded-At": f"{answered.recorded_at.isoformat(timespec='milliseconds')}Z",
        "X-Replayed": "true" if replayed else "false",
    }
    return Response(answered.answer, headers=headers, media_type="application/json")


def _measure(metrics: Metrics, inspection: Inspection, *, received_at: float, whole_at: float) -> None:
    """Count a verdict that is new; one that was answered again is no second screen."""
    verdict, now = inspection.verdict, time.monotonic()
    if verdict is None:
        return
    metrics.screens.labels(verdict.verdict).inc()
    for reason in verdict.reasons:
        metrics.reasons.labels(reason).inc()
    metrics.patches.inc(verdict.proof.patches)
    metrics.cleared.inc(verdict.proof.windows_cleared)
    metrics.screen_duration.observe(now - received_at)
    metrics.answer_delay.observe(now - whole_at)
    for label, found in verdict.labels.items():
        metrics.defects.labels(label).inc(found.count)
        metrics.label_score.labels(label).observe(found.score)
    for stage, seconds in {**verdict.timing.by_stage, "record": inspection.record_s}.items():
        metrics.stage_duration.labels(stage).observe(seconds)
