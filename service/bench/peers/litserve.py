"""LitServe with batching: some processes take requests, others compute, and screens that wait are put together.

Run as `python -m service.bench.peers.litserve` with the environment of `service.settings` and `Setting`.
"""

import signal
from typing import Annotated

import litserve
from fastapi import Body

from service.bench.peers.model import Answer, Model
from service.bench.peers.setting import Setting
from service.settings import read_settings

BATCH_TIMEOUT_S = 0.01


class Screens(litserve.LitAPI):
    """Raw bodies to answers."""

    def setup(self, device: str) -> None:
        """Load the model, in each process that computes."""
        self.model = Model.configured()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """The body as it came."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Bodies of different screens stay apart: reasoning sees one screen alone."""
        return inputs

    def predict(self, x: list[bytes]) -> list[Answer]:
        """One screen after the other."""
        return [self.model.inspect(body) for body in x]

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One answer a screen."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """The answer as it is."""
        return output


def main() -> None:
    """Serve until SIGTERM."""
    settings, setting = read_settings(), Setting()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends its processes on Ctrl-C alone
    server = litserve.LitServer(
        Screens(max_batch_size=setting.screens, batch_timeout=BATCH_TIMEOUT_S, api_path="/v1/screens"),
        accelerator="cpu",
        workers_per_device=setting.workers,
        healthcheck_path="/readyz",
        fast_queue=True,
    )
    server.run(
        host=settings.host,
        port=settings.port,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
