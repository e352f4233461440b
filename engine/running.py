"""As what a bundle runs: what a record of its release must name, as its scores may depend on it besides its files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from engine.backend import Backend, batch_of
from engine.manifest import Manifest
from engine.plans import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsAs:
    """As what a bundle runs.

    Attributes:
        runtime: what executes the features graph.
        precision: of that graph.
        batch_size: patches in a batch, N.
        gpu: name and compute capability of the GPU, of several all the different ones; empty on a CPU.
        tensorrt: package and version; empty on a CPU.
    """

    runtime: str
    precision: str
    batch_size: int
    gpu: str
    tensorrt: str

    def __str__(self) -> str:
        device = f" on {self.gpu} by {self.tensorrt}" if self.gpu else ""
        return f"{self.runtime} {self.precision} in batches of {self.batch_size}{device}"


@runtime_checkable
class Planned(Protocol):
    """A backend whose features graph was compiled for its device."""

    @property
    def plan(self) -> Plan:
        """What was compiled."""


def runs_as(backends: Sequence[Backend]) -> RunsAs:
    """As what a bundle runs on its devices, on all of which it has one precision and one batch."""
    keys = [backend.plan.record.key for backend in backends if isinstance(backend, Planned)]
    return RunsAs(
        runtime=backends[0].runtime,
        precision=backends[0].precision,
        batch_size=backends[0].batch_size,
        gpu=", ".join(sorted({key.gpu for key in keys})),
        tensorrt=", ".join(sorted({key.tensorrt for key in keys})),
    )


def would_run_as(manifest: Manifest, beside: RunsAs, *, precision: str | None, batch_size: int | None) -> RunsAs:
    """As what a bundle would run on the devices of another, loaded as `load_all` with `prebuilt` does.

    Args:
        manifest: the bundle's.
        beside: as what the other runs.
        precision: that is asked for.
        batch_size: that is asked for.
    """
    return replace(
        beside,
        precision=precision or default_precision(manifest, beside.runtime),
        batch_size=batch_of(manifest, batch_size),
    )


def default_precision(manifest: Manifest, runtime: str) -> str:
    """The precision in which a bundle runs where none is asked for: the one it was made in for that runtime, else fp32.

    On a GPU that is fp16, in OpenVINO bf16 where the CPU computes in it: for a CPU only what is faster is ever made.
    """
    if runtime == "tensorrt" and "fp16" in manifest.precisions:
        return "fp16"
    if runtime == "openvino" and "bf16" in manifest.precisions:
        from engine.openvino import OpenVinoBackend  # loads a runtime, which `engine` does not

        return "bf16" if OpenVinoBackend.rounds() else "fp32"
    return "fp32"
