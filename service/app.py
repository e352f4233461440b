"""The composition root: settings in, FastAPI app out. Every part is made here and handed to whoever needs it."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from importlib.metadata import version
from typing import TypedDict

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from engine import Backend, Golden, load, read_golden
from service import problems
from service.admission import Admission
from service.inspector import Inspector
from service.metrics import Metrics
from service.middleware import RequestScope
from service.routes import router
from service.scheduler import Scheduler
from service.settings import Settings
from service.state import Running
from service.store import Store

DISTRIBUTION = "screen-inspection"


class State(TypedDict):
    """What the lifespan leaves in the state of each request."""

    running: Running


def create_app(settings: Settings, *, backends: Sequence[Backend] = (), golden: Golden | None = None) -> FastAPI:
    """The service, ready to be served once its lifespan has begun.

    Args:
        settings: every knob.
        backends: one a device; by default the bundle of `settings`, loaded into its runtime. The app closes them.
        golden: patches of the self-test; by default the bundle's.

    Raises:
        EngineError: the bundle must not be served, or not here.
        StoreError: the record cannot be opened.
    """
    backends = backends or [load(settings.bundle, settings.runtime, threads=settings.threads)]
    golden = golden or read_golden(settings.bundle, backends[0].precision)
    store = Store(settings.state_dir)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        with (
            closing(store),
            Scheduler(
                backends,
                golden,
                max_patches=settings.max_queue_patches,
                self_test_interval_s=settings.self_test_interval_s,
            ) as scheduler,
        ):
            yield {"running": _run(settings, backends[0], scheduler, store)}

    # a FastAPI whose /docs takes its scripts from this process: a line has no way out to the Internet
    app = FastAPIOffline(
        redoc_url=None,
        title="Screen inspection",
        summary="A line-scan frame in, a proven verdict out.",
        version=version(DISTRIBUTION),
        lifespan=lifespan,
    )
    app.include_router(router)
    problems.install(app)
    app.add_middleware(RequestScope)
    return app


def _run(settings: Settings, backend: Backend, scheduler: Scheduler, store: Store) -> Running:
    manifest = backend.manifest
    metrics = Metrics(labels=manifest.label_names, codes=tuple(problems.codes()))
    metrics.model_info.labels(manifest.name, manifest.version, backend.runtime).set(1)
    metrics.watch("queue_patches", "Patches waiting or running.", lambda: scheduler.waiting_patches)
    metrics.watch("self_test_ok", "1 while the last self-test succeeded.", lambda: scheduler.report().ok)
    metrics.watch("self_test_age_seconds", "Time since the last success.", lambda: _age_s(scheduler.report().age_s))
    return Running(
        settings=settings,
        manifest=manifest,
        inspector=Inspector(
            backend,
            scheduler,
            store,
            frame_size=settings.frame_size,
            max_pixels=settings.max_pixels,
        ),
        scheduler=scheduler,
        store=store,
        metrics=metrics,
        admission=Admission(settings.max_screens_in_flight, metrics.screens_in_flight),
        threads=CapacityLimiter(settings.max_screens_in_flight),
    )


def _age_s(age_s: float | None) -> float:
    return math.inf if age_s is None else age_s
