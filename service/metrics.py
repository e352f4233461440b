"""What Prometheus may ask of a running service, in base units.

Every label set exists from the first scrape, so that `rate()` sees the first defect and an alert can
tell "none yet" from "not measured". Ids (screen, request) are never labels; they are in the record and
the log. One process owns the registry; nothing here is global, so two apps can live in one process.
"""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.aggregation import REASONS
from service.verdict import STAGES

VERDICTS = ("pass", "fail", "review")
SWAPS = ("activated", "rolled_back", "unchanged", "refused")

# Takt of a line is 1/3 s to 10 s: an edge at each end of that range, and room on both sides.
SCREEN_BUCKETS_S = (0.1, 0.2, 0.333, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 300.0)
DELAY_BUCKETS_S = (0.05, *SCREEN_BUCKETS_S)
STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.333, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# Scores lie at the ends, and so do the limits of bundles: a review may begin at 0.02 and a fail at 0.99.
_LOW_SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
SCORE_BUCKETS = (*_LOW_SCORES, *(step / 10 for step in range(1, 10)), 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)


class Metrics:
    """The service's own registry and every series in it."""

    def __init__(self, *, labels: Sequence[str], codes: Sequence[str]) -> None:
        """Declare the series.

        Args:
            labels: names of the defects that the first bundle tells apart.
            codes: codes of the problem documents that the service can answer with.
        """
        self.registry = CollectorRegistry()
        self.screens = self._counter("screens", "Screens answered with a verdict.", "verdict", VERDICTS)
        self.errors = self._counter(
            "errors", "Requests answered with a problem document, but for probes.", "code", codes
        )
        self.reasons = self._counter("reasons", "Screens that were no pass for this reason.", "reason", REASONS)
        self.defects = self._counter("defects", "Defects reported, merged over patches.", "label", labels)
        self.patches = Counter("inspect_patches", "Patches inferred for a verdict.", registry=self.registry)
        self.cleared = Counter("inspect_windows_cleared", "Windows that a glance cleared.", registry=self.registry)
        self.screen_duration = Histogram(
            "inspect_screen_duration_seconds",
            "From the request's headers to its recorded answer.",
            buckets=SCREEN_BUCKETS_S,
            registry=self.registry,
        )
        self.answer_delay = Histogram(
            "inspect_answer_delay_seconds",
            "From the last byte of the frame to its recorded answer.",
            buckets=DELAY_BUCKETS_S,
            registry=self.registry,
        )
        self.stage_duration = self._histogram(
            "stage_duration_seconds", "Time of one screen in a stage.", "stage", (*STAGES, "record"), STAGE_BUCKETS_S
        )
        self.label_score = self._histogram(
            "label_score", "Highest score of a label on a screen, 0 to 1.", "label", labels, SCORE_BUCKETS
        )
        self.screens_in_flight = Gauge(
            "inspect_screens_in_flight", "Screens being received or inspected.", registry=self.registry
        )
        self.model_info = Gauge(
            "inspect_model_info", "The bundle served.", ("name", "version", "runtime"), registry=self.registry
        )
        self.swaps = self._counter("swaps", "Requests to put another bundle in service.", "outcome", SWAPS)
        ProcessCollector(registry=self.registry)
        self._served: tuple[str, str, str] | None = None

    def show_model(self, name: str, version: str, runtime: str, *, labels: Sequence[str]) -> None:
        """Name the bundle that is served from now on; its labels go on where they had come to, or begin at 0."""
        for label in labels:
            self.defects.labels(label)
            self.label_score.labels(label)
        before, self._served = self._served, (name, version, runtime)
        self.model_info.labels(*self._served).set(1)
        if before not in (None, self._served):  # after the new one: two for a moment are better than none
            self.model_info.remove(*before)

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Declare the gauge `inspect_<name>`, whose value `read` gives at each scrape."""
        Gauge(f"inspect_{name}", help_text, registry=self.registry).set_function(read)

    def exposition(self) -> bytes:
        """Every series in the Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, label: str, values: Sequence[str]) -> Counter:
        counter = Counter(f"inspect_{name}", help_text, (label,), registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(
        self, name: str, help_text: str, label: str, values: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        histogram = Histogram(f"inspect_{name}", help_text, (label,), buckets=buckets, registry=self.registry)
        for value in values:
            histogram.labels(value)
        return histogram
