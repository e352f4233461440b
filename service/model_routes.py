"""The HTTP interface of swaps: which bundles there are, and which is in service.

Everything that changes something is a PUT: a page in somebody's browser can send a POST to this machine unasked, but
no PUT, so that no page of another origin rolls a line back. (One whose own name comes to mean this machine is of no
other origin: where browsers reach both a line and the Internet, keep the service behind a proxy that knows its names.)
"""

import functools
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.bodies import receive
from service.catalogue import CONFIGURED, NAME
from service.errors import InvalidRequest
from service.models import ModelList, Swap
from service.problems import faults_of
from service.routes import CurrentRunning, problem_responses

MAX_BODY_BYTES = 4096
BODY_WITHIN_S = 10.0

BundleName = Annotated[str, Field(pattern=rf"^({CONFIGURED}|{NAME})$", examples=["screens-2"])]


class Wanted(BaseModel):
    """What to put in service: a bundle by its name, or the one that was before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bundle: BundleName | None = Field(None, description="As GET /v1/models lists it: never a path.")
    rollback: bool = Field(False, description="Put the bundle in service that was before; without a bundle.")
    without_release: bool = Field(False, description="Take the bundle even without a record of release.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "Wanted":
        if (self.bundle is None) != self.rollback:
            raise ValueError("name a bundle, or ask for a rollback")
        return self


EXAMPLES: dict[str, dict[str, Any]] = {
    "swap": {"value": {"bundle": "screens-2"}},
    "rollback": {"value": {"rollback": True}},
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Wanted.model_json_schema(), "examples": EXAMPLES}},
    }
}
MODELS_EXAMPLE = {
    "folder": "/srv/bundles",
    "models": [
        {
            "bundle": "screens-1",
            "name": "screens",
            "version": "1",
            "limits": 1,
            "state": "previous",
            "released": False,
            "reason": "",
        },
        {
            "bundle": "screens-2",
            "name": "screens",
            "version": "2",
            "limits": 2,
            "state": "active",
            "released": True,
            "reason": "",
        },
        {
            "bundle": "screens-3",
            "name": "",
            "version": "",
            "limits": 0,
            "state": "broken",
            "released": False,
            "reason": "files.features.onnx: was altered: its SHA-256 is another",
        },
    ],
}
SWAP_EXAMPLE = {
    "outcome": "activated",
    "active": {"bundle": "screens-2", "name": "screens", "version": "2"},
    "previous": {"bundle": "screens-1", "name": "screens", "version": "1"},
    "duration_s": 1.25,
}
PUT_PROBLEMS = (
    *("malformed_request", "incomplete_body", "body_too_slow", "body_too_large", "unsupported_media"),
    "invalid_request",
    *(
        "bundle_unknown",
        "bundle_refused",
        "swap_in_progress",
        "release_missing",
        "version_taken",
        "not_ready",
        "record_failed",
    ),
)

router = APIRouter()


def _example(value: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": value}}}}


@router.get(
    "/v1/models",
    response_model=ModelList,
    responses={**_example(MODELS_EXAMPLE), **problem_responses("record_failed")},
    summary="Which bundles there are, and which is in service",
)
def list_models(running: CurrentRunning) -> ModelList:
    """Each bundle that is or was in service or can be put there, verified as it lies on the disk now.

    `released` says of the bundle in service whether it has passed the release gate as it runs here: in this runtime,
    precision and batch, by these versions of the libraries, and on a GPU on this one and by this plan. Of any other, it
    says whether PUT would take it without `without_release`: it has passed as it would run here, and against the bundle
    in service now. The plan alone is not compared then: it is known once the bundle is loaded, and PUT compares it. A
    rollback asks for no release, so the previous bundle goes back whatever is said of it. What has a `reason` is never
    released.
    """
    return running.models.list()


@router.put(
    "/v1/models/active",
    response_model=Swap,
    responses={**_example(SWAP_EXAMPLE), **problem_responses(*PUT_PROBLEMS)},
    openapi_extra=BODY,
    summary="Put a bundle in service, or roll back",
)
async def activate_model(request: Request, running: CurrentRunning) -> Swap:
    """Load, verify, warm and self-test a bundle beside the one in service, then let it take over.

    No screen is refused for it, and each is judged by one of the two alone; while the new bundle loads it shares the
    machine with the screens, which may take longer. The answer comes when the bundle before has given its last verdict
    and is closed. A problem means that nothing has changed, but for a service that stops before it has answered: what
    was decided then, `GET /v1/models` says after the next start.
    """
    body = await receive(request, limit_bytes=MAX_BODY_BYTES, timeout_s=BODY_WITHIN_S)
    try:
        wanted = Wanted.model_validate_json(bytes(body))
    except ValidationError as error:
        raise InvalidRequest(faults_of(error.errors())) from error
    models = running.models
    if wanted.bundle is None:
        return await anyio.to_thread.run_sync(models.roll_back)
    activate = functools.partial(models.activate, wanted.bundle, without_release=wanted.without_release)
    return await anyio.to_thread.run_sync(activate)
