"""The composition root: settings in, FastAPI app out. Every part is made here and handed to whoever needs it."""

import math
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import anyio
import anyio.to_thread
import structlog
from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from engine import Backend, Golden, read_golden
from service import model_routes, problems, routes
from service.admission import Admission
from service.catalogue import Catalogue
from service.metrics import Metrics
from service.middleware import RequestScope
from service.models import Models
from service.restart import activation, load_first, refuse_second_of_a_version
from service.room import Decoding, Room
from service.routes import Running
from service.serving import Loaded, Serving
from service.settings import Settings
from service.store import Store

DISTRIBUTION = "screen-inspection"
WATCH_S = 1.0  # between two looks at the devices, and at a record that could not be written

log: structlog.stdlib.BoundLogger = structlog.get_logger("service.app")


class State(TypedDict):
    """What the lifespan leaves in the state of each request."""

    running: Running


def create_app(
    settings: Settings,
    *,
    backends: Sequence[Backend] = (),
    golden: Golden | None = None,
    configured: bool = False,
    on_gone: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The service, ready to be served once its lifespan has begun.

    Args:
        settings: every knob.
        backends: one a device, of the bundle to begin with; by default the bundle that was in service last, or that of
            `settings`, loaded into its runtime. The app closes them.
        golden: patches of the self-test of these backends; by default those of the settings' bundle.
        configured: whether to begin with the settings' bundle, whatever was in service last.
        on_gone: called once a device of the bundle in service is lost for good: only a new process has it again.

    Raises:
        EngineError: the bundle must not be served, or not here.
        VersionTaken: another was in service under its name and version.
        StoreError: the record cannot be opened.
    """
    catalogue = Catalogue(configured=settings.bundle, folder=settings.bundles)
    with ExitStack() as opened:
        store = opened.enter_context(closing(Store(settings.state_dir)))
        last = store.last_activation()
        if backends:
            bundle = catalogue.configured
            loaded = Loaded(backends=backends, golden=golden or read_golden(settings.bundle))
        else:
            bundle, loaded = load_first(catalogue, last, settings, configured=configured)
        with ExitStack() as unused:
            unused.callback(loaded.close)
            manifest = loaded.backends[0].manifest
            first = activation(bundle, loaded.digest, manifest, settings)
            refuse_second_of_a_version(first, store)
            if first != last:
                store.activate(first)
            unused.pop_all()
        closing_store = opened.pop_all()
    handed = [loaded]  # taken out once: the app lives as long as the process, and the bundle until a swap

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        with closing_store:
            metrics = Metrics(labels=manifest.label_names, codes=tuple(problems.KINDS))
            decoding = Decoding(room=Room(settings.max_memory_bytes // 2))
            models = Models(
                Serving(handed.pop(), bundle=bundle, record=store, settings=settings, decoding=decoding),
                catalogue=catalogue,
                store=store,
                settings=settings,
                decoding=decoding,
                metrics=metrics,
            )
            with closing(models):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_watch, models, on_gone)
                    tasks.start_soon(_watch_record, store)
                    yield {"running": _run(settings, models, store, metrics, decoding.room)}
                    tasks.cancel_scope.cancel()

    # a FastAPI whose /docs takes its scripts from this process: a line has no way out to the Internet
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,  # a redirection has no problem document, and a frame would be sent twice for it
        title="Screen inspection",
        summary="A line-scan frame in, a proven verdict out.",
        version=version(DISTRIBUTION),
        lifespan=lifespan,
    )
    app.include_router(routes.router)
    app.include_router(model_routes.router)
    problems.install(app, [*routes.router.routes, *model_routes.router.routes])
    app.add_middleware(RequestScope)
    return app


def _run(settings: Settings, models: Models, store: Store, metrics: Metrics, decoding: Room) -> Running:
    bodies = Room(settings.max_memory_bytes // 2)
    rooms = (bodies, decoding)
    metrics.watch("memory_held_bytes", "Held by screens in flight.", lambda: sum(room.held_bytes for room in rooms))
    metrics.watch("memory_waiting", "Screens that wait for memory.", lambda: sum(room.waiting for room in rooms))
    metrics.watch("queue_patches", "Patches waiting or running.", lambda: models.waiting_patches)
    metrics.watch("record_ok", "1 while the last write of the record succeeded.", lambda: not store.failure)
    metrics.watch("record_free_bytes", "Free on the disk of the record.", lambda: _free_bytes(settings.state_dir))
    metrics.watch("record_reusable_bytes", "Free inside the record, of pruned screens.", lambda: store.reusable_bytes)
    metrics.watch("self_test_ok", "1 while the last self-test succeeded.", lambda: models.report().ok)
    metrics.watch("self_test_age_seconds", "Time since the last success.", lambda: _age_s(models.report().age_s))
    return Running(
        settings=settings,
        models=models,
        store=store,
        metrics=metrics,
        admission=Admission(settings.max_screens_in_flight, metrics.screens_in_flight, bodies),
        threads=CapacityLimiter(settings.max_screens_in_flight),
    )


async def _watch(models: Models, on_gone: Callable[[], None]) -> None:
    while not (report := models.report()).gone:  # noqa: ASYNC110 - a device's thread knows nothing of this loop
        await anyio.sleep(WATCH_S)
    log.error("a device is gone: the service ends, for a new one to have it", detail=report.detail)
    on_gone()


async def _watch_record(store: Store) -> None:
    while True:
        await anyio.sleep(WATCH_S)
        await anyio.to_thread.run_sync(store.look)


def _free_bytes(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # the folder is gone, which `record_ok` tells
        return math.nan


def _age_s(age_s: float | None) -> float:
    return math.inf if age_s is None else age_s
