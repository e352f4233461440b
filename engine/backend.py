"""The seam between what is inspected and what executes it.

A backend runs the bundle's two graphs: `features` in batches of patches of one screen, `reason` once over
all the patches of that screen. The service, the evaluation and the parity check know only this.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engine.errors import DeviceLost, NotExported, RuntimeUnavailable
from engine.manifest import Manifest

if TYPE_CHECKING:
    from engine.tuning import Tuning

NO_GUARD: Mapping[str, float] = MappingProxyType({})
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
BEST_FIRST = ("tensorrt", "openvino", "onnxruntime")
# what loads a bundle, and the options that it knows, by the runtime, which is also the name of its file
LOADERS = {
    "tensorrt": ("TensorRTBackend", {"precision", "batch_size", "prebuilt"}),
    "openvino": ("OpenVinoBackend", {"precision", "threads", "batch_size", "beside"}),
    "onnxruntime": ("OnnxRuntimeBackend", {"precision", "threads", "batch_size", "beside"}),
    "fake": ("load_fake", {"precision", "threads", "batch_size"}),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What the features graph says of n patches, rows in the order of the patches.

    Attributes:
        label_features: (n, C, d) features by label.
        stage1: (n, C) scores of the first stage, cosines in the two-stage network.
        activation: (n, C, h, w) where each label was seen, without an absolute level; (n, C, 1, 1) zeros
            where a network has no such map.
        doubt: (n,) of a glance, from 0 to 1; 1 where there was none. `Glance.clears` tells of which patches the whole
            network has seen nothing.
    """

    label_features: NDArray[np.float32]
    stage1: NDArray[np.float32]
    activation: NDArray[np.float32]
    doubt: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        """Those of all the patches of some batches, in their order.

        Raises:
            ValueError: there is no batch.
        """
        return cls(
            label_features=np.concatenate([part.label_features for part in parts]),
            stage1=np.concatenate([part.stage1 for part in parts]),
            activation=np.concatenate([part.activation for part in parts]),
            doubt=np.concatenate([part.doubt for part in parts]),
        )


class Batch(NamedTuple):
    """Patches (n, 1, P, P) of one screen, and whether a glance may clear them; see `Backend.features`."""

    pixels: NDArray[np.uint8]
    glance: bool = True


class Backend(Protocol):
    """A bundle, loaded into a runtime.

    `features` is called by one thread at a time, `reason` by any, and `close` by the thread that calls `features`, or
    once none does any more: a screen whose features are there may still be reasoned over in another thread.
    """

    @property
    def manifest(self) -> Manifest:
        """The bundle's facts."""

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as `onnxruntime`."""

    @property
    def precision(self) -> str:
        """Of the features graph: fp32, fp16, bf16, int8 (int8-trt where a CPU measures it). The reasoning is fp32."""

    @property
    def versions(self) -> str:
        """The libraries that compute, with their versions, that of the features graph first; empty where none does."""

    @property
    def batch_size(self) -> int:
        """Patches that the features graph takes at a time, N: the manifest's, or the plan's where there is one."""

    @property
    def guard(self) -> Mapping[str, float]:
        """Guard band g by label, how far a score may move with the patch's slot in the batch; empty where it cannot."""

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        """Features of one batch of patches of one screen.

        The graph always runs one number of patches, the batch or each patch alone, so that one shape is compiled and
        a score cannot depend on how full a batch was; what is missing is filled up and dropped again inside.

        Args:
            pixels: (n, 1, P, P) grey, 1 <= n <= batch_size.
            glance: whether a glance may clear them, where the bundle has one. What is looked at again is for the whole
                network alone, which was in doubt of it.

        Raises:
            ValueError: `pixels` has another shape or type, no patch, or more than batch_size.
            InferenceError: the runtime failed; no patch of the batch has a result.
        """

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of the patches of exactly one screen, which are seen together.

        A screen is judged by all of its patches; where to look again may be asked of those that are there.

        Args:
            label_features: (K, C, d) of all the screen's patches.
            stage1: (K, C) of the same patches.

        Returns:
            (K, C), each in [0, 1].

        Raises:
            ValueError: the shapes do not fit each other or the bundle, or K is 0.
            InferenceError: the runtime failed.
        """

    def close(self) -> None:
        """Give back the runtime's memory; closing twice is harmless, other calls then fail with `InferenceError`.

        No call of `features` may be under way. One of `reason` may: it ends with its answer, or as one that came later.
        """


@runtime_checkable
class Streaming(Protocol):
    """A backend that keeps two batches under way, so that copies and the caller's work hide behind computing."""

    def features_many(self, batches: Iterable[Batch]) -> Generator[Features]:
        """Features of the batches of one screen, in their order; see `stream`."""


@runtime_checkable
class Recoverable(Protocol):
    """A backend whose device can be lost, and perhaps found again."""

    def recover(self) -> None:
        """Make a lost device usable again; see `recover`."""


def stream(backend: Backend, batches: Iterable[Batch]) -> Generator[Features]:
    """Features of the batches of one screen, in their order.

    A backend that can takes the next batch from `batches` while the one before computes; another computes each before
    it takes the next. Either way `backend.features` may be called while a batch is taken. What `batches` raises goes
    through. After the end, or after `close` where it is not run to its end, nothing is under way any more.

    Raises:
        ValueError: as `Backend.features`.
        InferenceError: as `Backend.features`; the answers that came before hold.
    """
    if isinstance(backend, Streaming):
        yield from backend.features_many(batches)
    else:
        for batch in batches:
            yield backend.features(batch.pixels, glance=batch.glance)


def recover(backend: Backend) -> None:
    """Make a lost device usable again.

    Raises:
        DeviceLost: it stays lost, at least to this process.
    """
    if not isinstance(backend, Recoverable):
        raise DeviceLost(f"{backend.runtime} cannot recover a device")
    backend.recover()


class Options(TypedDict, total=False):
    """How a bundle is loaded; what is left out is as if it were None or False.

    Attributes:
        precision: fp32, fp16, bf16 or int8 of the features graph; by default the runtime's choice: fp16 on a GPU and
            bf16 on a CPU that has it, where the bundle was made for them, else fp32.
        threads: CPU threads of the features graph; by default all, shared out as was measured to serve best.
        batch_size: patches of a batch; by default the manifest's.
        prebuilt: on a GPU, take only a plan that is there, in int8 one that was found to be faster, and no smaller
            batch where memory is short: anything else is an error, as it must be beside a bundle in service.
        beside: how the bundle in service shares out its threads, see `engine.tuning`.
    """

    precision: str | None
    threads: int | None
    batch_size: int | None
    prebuilt: bool
    beside: "Tuning | None"


def load(bundle: Path, runtime: str = "auto", **options: Unpack[Options]) -> Backend:
    """Read a bundle, verify it and load it into a runtime.

    Args:
        bundle: folder of the bundle.
        runtime: `tensorrt`, `openvino` or `onnxruntime`; `auto` for the first of them that is usable here; or `fake`,
            which answers without a network and is never taken unasked.
        options: see `Options`; each is of effect where the runtime knows it.

    Raises:
        BundleError: the bundle must not be served, or has no such precision.
        RuntimeUnavailable: no such runtime, or not here.
        PlanError: there is no plan, and none can or may be built.
        InferenceError: the device fails, or lacks the memory.
        ValueError: fewer than one thread, or than one patch in a batch.
    """
    if runtime != "auto":
        return _load(bundle, runtime, options)
    reasons = []
    for name in BEST_FIRST:
        try:
            return _load(bundle, name, options)
        except (RuntimeUnavailable, NotExported) as error:  # int8 is made for CPUs or for GPUs
            reasons.append(f"{name}: {error}")
    raise RuntimeUnavailable("; ".join(reasons))


def _load(bundle: Path, runtime: str, options: Options) -> Backend:
    """One runtime, whose file is imported only now."""
    if runtime not in LOADERS:
        raise RuntimeUnavailable(f"runtime {runtime!r} is not known; there are {', '.join(['auto', *LOADERS])}")
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    loader, known = LOADERS[runtime]
    try:
        make = getattr(import_module(f"engine.{runtime}"), loader)
    except ImportError as error:
        raise RuntimeUnavailable(f"{runtime} cannot be imported: {error}") from error
    backend: Backend = make(bundle, **{name: value for name, value in options.items() if name in known})
    return backend


def load_all(bundle: Path, runtime: str = "auto", **options: Unpack[Options]) -> list[Backend]:
    """Load a bundle once for every device of a runtime: each GPU for `tensorrt`, else the CPUs as one.

    GPUs all take the batch of the one with the least memory: another batch size is another plan, and the same screen
    must not be scored by the plan of whichever GPU is free.

    Args and errors are those of `load`, but that int8 is always `prebuilt`; where one device fails, those loaded before
    it are closed.
    """
    options["prebuilt"] = options.get("prebuilt", False) or options.get("precision") == "int8"
    first = load(bundle, runtime, **options)
    if first.runtime != "tensorrt":
        return [first]
    from engine.gpu import devices
    from engine.tensorrt import TensorRTBackend

    loaded, size = [first], first.batch_size
    try:
        while True:
            for device in devices()[len(loaded) :]:
                gpu = TensorRTBackend(
                    bundle,
                    device=device,
                    precision=options.get("precision"),
                    batch_size=size,
                    prebuilt=options["prebuilt"],
                )
                loaded.append(gpu)
                size = gpu.batch_size  # never more than that of the one before
            if loaded[0].batch_size == size:
                return loaded
            while loaded:
                loaded.pop().close()
    except BaseException:
        for backend in loaded:
            backend.close()
        raise


def infer(backend: Backend, patches: NDArray[np.uint8], *, glance: bool = True) -> tuple[Features, NDArray[np.float32]]:
    """Features and probabilities of one screen, without a queue: batches in order, then the reasoning.

    Args:
        backend: what runs it.
        patches: (K, 1, P, P) all the patches of one screen, K >= 1.
        glance: whether a glance may clear them.

    Returns:
        The features over K and the (K, C) probabilities.

    Raises:
        ValueError: there is no patch, or the patches do not fit the bundle.
        InferenceError: the runtime failed.
    """
    size = backend.batch_size
    starts = range(0, len(patches), size)
    batches = [backend.features(patches[start : start + size], glance=glance) for start in starts]
    if not batches:
        raise ValueError("a screen has at least one patch")
    features = Features.joined(batches)
    return features, backend.reason(features.label_features, features.stage1)


def batch_of(manifest: Manifest, asked: int | None) -> int:
    """Patches of a batch: as asked for, or the manifest's.

    Raises:
        ValueError: fewer than one is asked for.
    """
    if asked is None:
        return manifest.batch_size
    if asked < 1:
        raise ValueError(f"a batch has at least 1 patch, got {asked}")
    return asked


def check_pixels(pixels: NDArray[np.uint8], manifest: Manifest, batch_size: int) -> None:
    """Hold the caller of `Backend.features` to its contract.

    Raises:
        ValueError: not (n, 1, P, P) uint8 with 1 <= n <= batch_size.
    """
    side = manifest.patch_px
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (1, side, side):
        raise ValueError(f"patches are (n, 1, {side}, {side}) uint8, got {pixels.shape} {pixels.dtype}")
    if not 1 <= len(pixels) <= batch_size:
        raise ValueError(f"a batch has 1 to {batch_size} patches, got {len(pixels)}")


def check_screen(label_features: NDArray[np.float32], stage1: NDArray[np.float32], manifest: Manifest) -> None:
    """Hold the caller of `Backend.reason` to its contract.

    Raises:
        ValueError: not (K, C, d) and (K, C) float32 with K >= 1.
    """
    if label_features.dtype != np.float32 or stage1.dtype != np.float32:
        raise ValueError(f"features are float32, got {label_features.dtype} and {stage1.dtype}")
    if label_features.ndim != 3 or label_features.shape[:2] != stage1.shape:
        raise ValueError(f"label features {label_features.shape} do not fit scores {stage1.shape}")
    if len(stage1) == 0 or stage1.shape[1] != len(manifest.labels):
        raise ValueError(f"scores are (K, {len(manifest.labels)}) with K >= 1, got {stage1.shape}")
