"""The service on simulated devices, which compute nothing and take exactly their time: what the service itself costs.

Run by `service.bench` as `python -m service.bench.simulated`, in a process of its own as on a line.
"""

import time
from collections.abc import Callable, Generator, Iterable
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from engine import Batch, Batches, FakeBackend, Features, Golden, Manifest
from service import logs
from service.app import create_app
from service.server import serve
from service.settings import read_settings

SCORE = 0.01  # of every label on every patch: clean


class SimulatedDevice(FakeBackend):
    """A device that works off batches one after the other, without a gap while there is one.

    Args:
        manifest: what to pretend to be.
        batch_s: seconds of a batch.
        patch_s: seconds of each of its patches beside.
    """

    def __init__(self, manifest: Manifest, *, batch_s: float, patch_s: float) -> None:
        super().__init__(manifest, lambda pixels: np.full((len(pixels), len(manifest.labels)), SCORE))
        self._batch_s = batch_s
        self._patch_s = patch_s
        self._free_at = 0.0
        side = manifest.patch_px
        self._input = np.empty((manifest.batch_size, 1, side, side), np.uint8)

    def seconds_of(self, patches: int) -> float:
        """What a batch of so many patches takes."""
        return self._batch_s + patches * self._patch_s

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        """See `Backend.features`."""
        return Batches(begin=self._begin).run(Batch(pixels, glance))

    def features_many(self, batches: Iterable[Batch]) -> Generator[Features]:
        """See `engine.backend.Streaming`: as on a GPU, the next batch is taken while the one before computes."""
        return Batches(begin=self._begin).stream(batches)

    def _begin(self, batch: Batch) -> Callable[[], Features]:
        pixels = batch.pixels
        self._free_at = done_at = max(self._free_at, time.monotonic()) + self.seconds_of(len(pixels))
        features = super().features(pixels)
        np.copyto(self._input[: len(pixels)], pixels)  # as any runtime does, if only to page-locked memory

        def answer() -> Features:
            time.sleep(max(0.0, done_at - time.monotonic()))
            return features

        return answer


def golden_of(manifest: Manifest) -> Golden:
    """A self-test that every simulated device passes."""
    side = manifest.patch_px
    return Golden(
        pixels=np.zeros((1, 1, side, side), np.uint8),
        probability=np.full((1, len(manifest.labels)), SCORE, np.float32),
        activation=np.zeros((1, len(manifest.labels), 1, 1), np.float32),
        tolerance=1e-3,
    )


def main(
    batch_s: Annotated[float, typer.Argument(help="Seconds of a batch.", min=0)],
    patch_s: Annotated[float, typer.Argument(help="Seconds of each patch beside.", min=0)],
) -> None:
    """Serve one simulated device; the rest is the settings'."""
    settings = read_settings()
    logs.configure(level=settings.log_level, form=settings.log_format)
    manifest = Manifest.read(settings.bundle)
    device = SimulatedDevice(manifest, batch_s=batch_s, patch_s=patch_s)
    golden = golden_of(manifest)
    raise typer.Exit(serve(lambda end: create_app(settings, backends=[device], golden=golden, on_gone=end), settings))


if __name__ == "__main__":
    typer.run(main)
