"""The engineer's side of a swap: asks a running service over HTTP to put a bundle in service."""

from pathlib import Path
from typing import Any

import httpx

from service.problems import Problem

CONNECT_WITHIN_S = 10.0
LOOK_WITHIN_S = 30.0
ANSWER_WITHIN_S = 900.0  # a large bundle is loaded, and the last screen of the one before may take minutes


class ControlError(Exception):
    """The service refused, could not be asked, or did not answer: only then something may have changed, and it says so.

    Attributes:
        problem: the problem document that it answered with, where it did.
    """

    def __init__(self, detail: str, problem: Problem | None = None) -> None:
        super().__init__(detail)
        self.problem = problem


def activate(url: str, bundle: str | None, *, without_release: bool) -> dict[str, Any]:
    """Put a bundle in service.

    Args:
        url: of the service.
        bundle: its name, or the path of its folder where that lies in the service's folder of bundles; None rolls back.
        without_release: whether to take it without a record of release.

    Returns:
        What the service answered, see `service.models.Swap`.

    Raises:
        ControlError: it was not put in service, or not as far as is known.
    """
    timeout = httpx.Timeout(CONNECT_WITHIN_S, read=ANSWER_WITHIN_S)
    try:
        # a proxy of the environment leads away from the line
        with httpx.Client(base_url=url, timeout=timeout, trust_env=False) as service:
            if bundle is None:
                wanted: dict[str, Any] = {"rollback": True}
            else:
                wanted = {"bundle": _name(service, bundle), "without_release": without_release}
            try:
                return _answer(service.put("/v1/models/active", json=wanted))
            except (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError) as error:
                # it was asked: what came of it, nobody knows but itself
                raise ControlError(f"no answer from {url}: {error}; {_in_service(service)}") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ControlError(f"no answer from {url}: {error}") from error


def describe(answer: dict[str, Any]) -> str:
    """The answer in a line for people."""
    active, previous = (_described(answer[key]) for key in ("active", "previous"))
    if answer["outcome"] == "unchanged":
        return f"{active} was in service already"
    return f"{active} was put in service within {answer['duration_s']:.1f} s; a rollback leads to {previous}"


def _name(service: httpx.Client, bundle: str) -> str:
    """The name by which the service knows what the user named."""
    if "/" not in bundle:
        return bundle
    folder = _answer(service.get("/v1/models"))["folder"]
    path = Path(bundle).resolve()
    if folder is None:
        raise ControlError("the service has no folder of bundles: set INSPECT_BUNDLES and start it again")
    if path.parent != Path(folder):
        raise ControlError(f"{bundle} is not in the service's folder of bundles: copy it to {folder} first")
    return path.name


def _in_service(service: httpx.Client) -> str:
    """What the service says is active, after a swap of which it said nothing."""
    try:
        models = _answer(service.get("/v1/models", timeout=LOOK_WITHIN_S))["models"]
    except (httpx.TransportError, ControlError):
        return "nor does it say what is in service: ask GET /v1/models before you try again"
    (active,) = (model for model in models if model["state"] == "active")
    return f"{_described(active)} is in service now, and the swap may be under way: ask GET /v1/models"


def _answer(response: httpx.Response) -> dict[str, Any]:
    try:
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        problem = Problem.model_validate_json(response.content)
    except ValueError as error:
        raise ControlError(f"{response.url} is no inspection service: {response.status_code}") from error
    raise ControlError(f"{problem.code}: {problem.detail}", problem)


def _described(model: dict[str, Any] | None) -> str:
    return "nothing" if model is None else f"{model['bundle']} ({model['name']} {model['version']})"
