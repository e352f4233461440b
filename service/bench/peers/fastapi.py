"""A plain loop over the windows behind FastAPI, by its documentation: a raw body, the thread pool, worker processes.

Run as `python -m service.bench.peers.fastapi` with the environment of `service.settings` and `Setting`.
"""

import signal
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from service.bench.peers.model import Answer, Model
from service.bench.peers.setting import Setting
from service.settings import read_settings

HEALTHY_WITHIN_S = 60  # by default uvicorn kills a worker that takes more than five seconds to load


def application(inspect: Callable[[bytes], Answer]) -> FastAPI:
    """An application that answers a raw body by `inspect`, in a thread of its own."""
    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/v1/screens")
    async def screens(request: Request) -> Answer:
        return await run_in_threadpool(inspect, await request.body())

    return app


def serve(factory: str) -> None:
    """Serve what `module:function` makes, in as many processes as `Setting` says, until SIGTERM."""
    settings = read_settings()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as the service itself ends
    uvicorn.run(
        factory,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=Setting().workers,
        timeout_worker_healthcheck=HEALTHY_WITHIN_S,
        log_level="warning",
        access_log=False,
    )


def create_app() -> FastAPI:
    """The loop."""
    return application(Model.configured().inspect)


if __name__ == "__main__":
    serve("service.bench.peers.fastapi:create_app")
