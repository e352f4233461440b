"""TensorRT plans: a cache beside the bundles, never shipped, of which nothing is believed.

A plan is good for one GPU, one version of TensorRT, one configuration of its builder, one precision, one batch size and
one ONNX file; these are its key.
Beside it lies a record with the key, the plan's SHA-256 and what was found out about it. A plan whose record is
missing, unreadable, of another key, of other bytes or of another precision than its layers have is built again, never
loaded: it is a program for the GPU.

The folder is `screen-inspection/plans` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), outside of the
bundle, which may be read-only and whose files its manifest counts. Bundles share it: a key names the ONNX file by its
hash. It may be removed at any time; the next start then builds again. A build removes what was not used for
`UNUSED_KEPT_S`, so that retraining does not fill the disk, and the drafts of processes that were killed.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from engine.errors import BundleError
from engine.fields import parse_object
from engine.layers import Layer, heavy_counts, real_precision
from engine.locks import alone
from engine.manifest import FEATURES_FILES, REASONING_FILE, SHA256, Manifest

log = logging.getLogger(__name__)

MAX_RECORD_BYTES = 2**20
UNUSED_KEPT_S = 90 * 86400.0  # since it was last loaded
DRAFT_KEPT_S = 86400.0  # which a living process renames within seconds
CACHED = ("*.plan", "*.json", "*-n*.lock", "timing-*.cache")
LOCK_FILE = "plans.lock"  # held by whoever writes
PRECISION = re.compile("|".join({name.removesuffix("-trt") for name in FEATURES_FILES}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What a plan is good for.

    Attributes:
        gpu: name and compute capability.
        tensorrt: package and version.
        configuration: of the builder, see `compiler.CONFIGURATION`.
        precision: fp32, fp16 or int8.
        batch_size: patches in a batch, N.
        graph_sha256: of the ONNX file.
    """

    gpu: str
    tensorrt: str
    configuration: int
    precision: str
    batch_size: int
    graph_sha256: str

    @property
    def stem(self) -> str:
        """Name of the plan's files, without what follows the dot."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.precision}-n{self.batch_size}-{digest[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What is known of a plan.

    Attributes:
        key: what it is good for.
        plan_sha256: of its bytes.
        real_precision: the narrowest of its convolutions and matrix products.
        layers: how many of these have each precision.
        guards: guard band by label, how far a score moves with the patch's slot, of each model that was measured on
            this plan, by `model_sha256`.
        speed: of a plan in int8 that was found to be faster than one in another precision, patches/s of both by
            precision; empty where nothing was found.
    """

    key: PlanKey
    plan_sha256: str
    real_precision: str
    layers: dict[str, int] = field(default_factory=dict)
    guards: dict[str, dict[str, float]] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)

    def with_guard(self, manifest: Manifest, guard: Mapping[str, float]) -> "PlanRecord":
        """This record with the guard band by label that was measured with a bundle's reasoning."""
        return replace(self, guards={**self.guards, model_sha256(manifest): dict(guard)})

    def guard_of(self, manifest: Manifest) -> dict[str, float] | None:
        """The guard band by label that was measured for a bundle; None before."""
        return self.guards.get(model_sha256(manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that may be loaded.

    Attributes:
        data: the serialized engine.
        record: what is known of it.
        path: where it lies.
        built: it was built just now, not found.
        unkept: why it could not be written, so that it serves this process alone; empty where it lies there.
    """

    data: bytes
    record: PlanRecord
    path: Path
    built: bool
    unkept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What TensorRT has built.

    Attributes:
        plan: the serialized engine.
        layers: of the engine, every one.
        timing_cache: what the builder has measured, for the next build on this GPU; empty where it keeps nothing.
    """

    plan: bytes
    layers: list[Layer]
    timing_cache: bytes


def model_sha256(manifest: Manifest) -> str:
    """What a score depends on besides the plan, which bundles of the same features graph share: reasoning and labels.

    Noise in the features moves scores by as much as the reasoning makes of it. `spread` says how that is measured.
    """
    facts = {"reasoning": manifest.files[REASONING_FILE], "labels": manifest.label_names, "spread": "logit"}
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def default_folder() -> Path:
    """The cache folder of this user's plans, after the XDG base directory specification."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "screen-inspection" / "plans"


class PlanCache:
    """Plans in a folder.

    Args:
        folder: made when the first plan is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: PlanKey) -> Plan | None:
        """The plan of this key, or None where there is none that may be loaded."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            record = _parse(path.with_suffix(".json").read_bytes())
        except (OSError, BundleError):
            return None
        if record.key != key or record.plan_sha256 != hashlib.sha256(data).hexdigest():
            return None
        if record.real_precision != key.precision:  # as a build that did not compare them has left it
            return None
        return Plan(data=data, record=record, path=path, built=False)

    def obtain(self, key: PlanKey, compile_with: Callable[[bytes], Compiled], *, anew: bool = False) -> Plan:
        """The plan of this key, built where there is none that may be loaded, and marked as used now.

        Of several processes that want it one builds it and the others wait: a plan that is built twice may take other
        kernels, and the one that is kept would not be the one that serves. A plan that cannot be written, as on a full
        disk, took minutes all the same: it serves, and `unkept` says why.

        Args:
            key: what it must be good for.
            compile_with: builds it; takes the timing cache of earlier builds on this GPU, and raises where it fails.
            anew: build it whatever there is.
        """
        found = None if anew else self.used(key)
        if found is not None:
            return found
        with self._building(key):
            return (None if anew else self.used(key)) or self._build(key, compile_with)

    def used(self, key: PlanKey) -> Plan | None:
        """As `find`, and the plan counts as used now."""
        found = self.find(key)
        if found is not None:
            self.mark(found)
        return found

    def mark(self, plan: Plan) -> None:
        """Let a plan count as used now; where it is another user's, only that user's loads count."""
        for file in (plan.path, plan.path.with_suffix(".json")):
            with suppress(OSError):
                os.utime(file)

    def set_guard(self, plan: Plan, manifest: Manifest, guard: Mapping[str, float]) -> PlanRecord:
        """Write down the guard band by label that was measured on a plan with a bundle's reasoning.

        Raises:
            OSError: it cannot be written.
        """
        return self._update(plan, lambda record: record.with_guard(manifest, guard))

    def set_speed(self, plan: Plan, speed: Mapping[str, float]) -> PlanRecord:
        """Write down that a plan is faster than one in another precision: patches/s of both by precision.

        Raises:
            OSError: it cannot be written.
        """
        return self._update(plan, lambda record: replace(record, speed=dict(speed)))

    def forget(self, plan: Plan, *, timing: bool = False) -> None:
        """Remove a plan that must not be served, if it lies there and may be removed.

        Args:
            plan: which.
            timing: what the builder has measured as well, by which it would choose the same kernels again.
        """
        with suppress(OSError), alone(self.folder / LOCK_FILE):
            found = self.find(plan.record.key)
            if found is not None and found.record.plan_sha256 == plan.record.plan_sha256:
                plan.path.with_suffix(".json").unlink(missing_ok=True)
                plan.path.unlink(missing_ok=True)
            if timing:
                self._timing(plan.record.key).unlink(missing_ok=True)

    @contextmanager
    def _building(self, key: PlanKey) -> Iterator[None]:
        """No other process builds this plan meanwhile; where nothing can be written each builds its own."""
        lock = self.folder / f"{key.stem}.lock"
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(lock, wait=False))
            except BlockingIOError:
                log.info("another process builds this plan, waiting for it: %s", self._path(key))
                stack.enter_context(alone(lock))
            except OSError as error:
                log.info("plans cannot be kept in %s: %s", self.folder, error)
            yield

    def _build(self, key: PlanKey, compile_with: Callable[[bytes], Compiled]) -> Plan:
        timing = self._timing(key)
        try:
            timing_cache = timing.read_bytes()
        except OSError:
            timing_cache = b""
        compiled = compile_with(timing_cache)
        counts = heavy_counts(compiled.layers)
        record = PlanRecord(
            key=key,
            plan_sha256=hashlib.sha256(compiled.plan).hexdigest(),
            real_precision=real_precision(counts),
            layers=counts,
        )
        plan = Plan(data=compiled.plan, record=record, path=self._path(key), built=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder / LOCK_FILE):
                _write(plan.path, compiled.plan)
                self._write_record(record)
                with suppress(OSError):  # the plan is kept, and the next build only takes longer
                    if compiled.timing_cache:
                        _write(timing, compiled.timing_cache)
                    self._tidy()
        except OSError as error:
            return replace(plan, unkept=str(error))
        return plan

    def _update(self, plan: Plan, change: Callable[[PlanRecord], PlanRecord]) -> PlanRecord:
        if plan.unkept:
            return change(plan.record)
        with alone(self.folder / LOCK_FILE):
            found = self.find(plan.record.key)  # another process may have written to it since the plan was loaded
            if found is None or found.record.plan_sha256 != plan.record.plan_sha256:
                return change(plan.record)  # another one lies there now, which was not measured
            record = change(found.record)
            self._write_record(record)
            return record

    def _tidy(self) -> None:
        """Remove what nobody has used for long, and drafts that nobody will finish."""
        now = time.time()
        for pattern, kept_s in ((".*-*", DRAFT_KEPT_S), *((name, UNUSED_KEPT_S) for name in CACHED)):
            for file in self.folder.glob(pattern):
                with suppress(OSError):  # another user's, or gone by now
                    if now - file.stat().st_mtime > kept_s:
                        file.unlink()

    def _path(self, key: PlanKey) -> Path:
        return self.folder / f"{key.stem}.plan"

    def _timing(self, key: PlanKey) -> Path:
        digest = hashlib.sha256(f"{key.gpu} {key.tensorrt}".encode()).hexdigest()
        return self.folder / f"timing-{digest[:16]}.cache"

    def _write_record(self, record: PlanRecord) -> None:
        text = json.dumps(asdict(record), indent=2) + "\n"
        _write(self._path(record.key).with_suffix(".json"), text.encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: another process may read it now."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # the release gate runs as the bundle's owner, and takes the service's plan
            file.write(data)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


def _parse(raw: bytes) -> PlanRecord:
    """Read a record's JSON.

    Raises:
        BundleError: it breaks the form.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise BundleError("is too large", key="plan record")
    top = parse_object(raw, path="plan record")
    top.expect(PlanRecord.__slots__)
    key = top.table("key")
    key.expect(PlanKey.__slots__)
    layers = top.table("layers")
    guards = top.table("guards")
    speed = top.table("speed")
    by_model = {name: guards.table(name) for name in guards.names(pattern=SHA256)}
    return PlanRecord(
        key=PlanKey(
            gpu=key.text("gpu"),
            tensorrt=key.text("tensorrt"),
            configuration=key.integer("configuration", low=0, high=2**31),
            precision=key.text("precision", pattern=PRECISION),
            batch_size=key.integer("batch_size", low=1, high=1024),
            graph_sha256=key.text("graph_sha256", pattern=SHA256),
        ),
        plan_sha256=top.text("plan_sha256", pattern=SHA256),
        real_precision=top.text("real_precision"),
        layers={name: layers.integer(name, low=0, high=2**31) for name in layers.values},
        guards={
            model: {label: guard.number(label, low=0.0, high=1.0) for label in guard.values}
            for model, guard in by_model.items()
        },
        speed={name: speed.number(name, low=0.0) for name in speed.values},
    )
