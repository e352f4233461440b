"""As what a bundle runs: what a record of its release must name, as its scores may depend on it besides its files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from engine.backend import Backend, batch_of
from engine.manifest import Manifest
from engine.plans import Plan

SHOWN = 12  # digits of a plan's hash that tell people one from another


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsAs:
    """As what a bundle runs.

    Attributes:
        runtime: what executes the features graph.
        precision: of that graph.
        batch_size: patches in a batch, N.
        versions: of the libraries that compute, see `Backend.versions`.
        gpu: name and compute capability of the GPU, of several all the different ones; empty on a CPU.
        plan: SHA-256 of the plan, of several all the different ones: one that is built anew may take other kernels.
            Empty on a CPU; None where the bundle is not loaded, so that nobody knows it.
    """

    runtime: str
    precision: str
    batch_size: int
    versions: str
    gpu: str
    plan: str | None

    def __str__(self) -> str:
        told = f"{self.runtime} {self.precision} in batches of {self.batch_size}"
        plans = ", ".join(plan[:SHOWN] for plan in (self.plan or "").split(", "))
        for word, fact in (("by", self.versions), ("on", self.gpu), ("with the plan", plans)):
            told += f" {word} {fact}" if fact else ""
        return told

    def without_plan(self) -> "RunsAs":
        """The same as it is known of a bundle that is not loaded."""
        return replace(self, plan=None if self.gpu else "")


@runtime_checkable
class Planned(Protocol):
    """A backend whose features graph was compiled for its device."""

    @property
    def plan(self) -> Plan:
        """What was compiled."""


def runs_as(backends: Sequence[Backend]) -> RunsAs:
    """As what a bundle runs on its devices, on all of which it has one precision and one batch.

    The precision of a plan is what its layers really have, whatever was asked for.
    """
    records = [backend.plan.record for backend in backends if isinstance(backend, Planned)]
    return RunsAs(
        runtime=backends[0].runtime,
        precision=", ".join(sorted({record.real_precision for record in records})) or backends[0].precision,
        batch_size=backends[0].batch_size,
        versions=backends[0].versions,
        gpu=", ".join(sorted({record.key.gpu for record in records})),
        plan=", ".join(sorted({record.plan_sha256 for record in records})),
    )


def would_run_as(manifest: Manifest, beside: RunsAs, *, precision: str | None, batch_size: int | None) -> RunsAs:
    """As what a bundle would run on the devices of another, loaded as `load_all` with `prebuilt` does.

    On a GPU without its plan, which may be built or built anew until then: only loading tells.

    Args:
        manifest: the bundle's.
        beside: as what the other runs.
        precision: that is asked for.
        batch_size: that is asked for.
    """
    return replace(
        beside.without_plan(),
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
