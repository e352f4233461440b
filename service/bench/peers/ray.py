"""Ray Serve with `@serve.batch`: a proxy takes the requests, replicas compute, screens that wait are put together.

Run as `python -m service.bench.peers.ray` with the environment of `service.settings` and `Setting`.
"""

import asyncio
import os
import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from service.bench.peers.model import Answer, Model
from service.bench.peers.setting import Setting
from service.settings import read_settings

# where HAProxy, which Ray advises before the replicas, keeps its files
HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "state",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "state/server-state",
}
STORE_BYTES = 2**30  # a body goes from the proxy to a replica through Ray's store
BATCH_TIMEOUT_S = 0.01
ONGOING = 16  # requests of a replica


class Screens:
    """Raw bodies to answers."""

    def __init__(self) -> None:
        self._model = Model.configured()
        self._inspect.set_max_batch_size(Setting().screens)

    async def __call__(self, request: Request) -> Answer | str:
        """Whatever is asked."""
        if request.url.path == "/readyz":
            return "ready"
        answer: Answer = await self._inspect(await request.body())
        return answer

    @serve.batch(batch_wait_timeout_s=BATCH_TIMEOUT_S)
    async def _inspect(self, bodies: list[bytes]) -> list[Answer]:
        return await asyncio.to_thread(lambda: [self._model.inspect(body) for body in bodies])


def main() -> None:
    """Serve until SIGTERM."""
    settings, setting = read_settings(), Setting()
    # read by the processes that Ray starts
    os.environ.update({name: str(settings.state_dir / path) for name, path in HAPROXY_FILES.items()})
    ray.init(
        num_cpus=setting.workers * setting.threads,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        _temp_dir=str(settings.state_dir / "ray"),
    )
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        deployment: Any = serve.deployment(
            num_replicas=setting.workers,
            ray_actor_options={"num_cpus": setting.threads},
            max_ongoing_requests=ONGOING,
        )(Screens)
        serve.run(deployment.bind(), route_prefix="/")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # now, as Ray has put its own in their place
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        ray.shutdown()  # all of the cluster with it; to shut down Serve first would wait for connections that stay


if __name__ == "__main__":
    main()
