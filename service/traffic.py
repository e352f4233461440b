"""Frames posted as fast as they are answered: the load of acceptance and the bench."""

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client import ClientError, Served, Unreachable, post_frame

SENDERS = 3  # that post at the same time


class Traffic:
    """Three senders, and what became of their screens: `durations` in seconds of those answered, and what went wrong.

    `timings` are those of their verdicts, by stage; `patches` counts the windows that cover their frames, `versions`
    their verdicts by the version of the model.

    `failures` are requests without an answer, answers without a fresh self-test, and answers whose labels or scores are
    not those that the same frame had before.

    Args:
        served: whom they post to.
        frames: (H, W) each, posted in turn under ever new names.
    """

    def __init__(self, served: Served, frames: Sequence[NDArray[np.uint8]]) -> None:
        self.served = served
        self.failures: list[str] = []
        self.durations: list[float] = []
        self.timings: list[dict[str, float]] = []
        self.patches = 0
        self.versions: Counter[str] = Counter()
        self.elapsed_s = 0.0
        self._frames = frames
        self._numbers = iter(range(2**62))
        self._labels: dict[int, Any] = {}  # of the first answer, by the frame's index
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def load_for(self, seconds: float) -> None:
        """Post for so long, or until the service is gone."""
        with self.under_load():
            self._stop.wait(seconds)

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """Post while the block runs, which may be again; on leaving, the last answers are there."""
        self._stop.clear()
        threads = [threading.Thread(target=self._post, name=f"sender-{n}", daemon=True) for n in range(SENDERS)]
        started_at = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self.elapsed_s += time.monotonic() - started_at

    @property
    def screens_per_s(self) -> float:
        """Answered, by the time that it took."""
        return len(self.durations) / self.elapsed_s

    def describe(self) -> str:
        """Screens, failures and latency in a line."""
        if not self.durations:
            return f"no screen answered, {len(self.failures)} failed: {self.failures[:1]}"
        first = f" ({self.failures[0]})" if self.failures else ""
        return (
            f"{len(self.durations)} screens, {self.screens_per_s:.2f}/s, "
            f"median {statistics.median(self.durations):.2f} s, p99 {np.quantile(self.durations, 0.99):.2f} s, "
            f"{len(self.failures)} failed{first}"
        )

    def figures(self) -> dict[str, Any]:
        """The same for machines."""
        return {"screens": len(self.durations), "failures": self.failures[:20], "elapsed_s": round(self.elapsed_s, 2)}

    def _post(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
            index = number % len(self._frames)
            started_at = time.monotonic()
            try:
                verdict = json.loads(post_frame(self.served.client, f"load-{number}", self._frames[index]))
            except Unreachable as error:  # for good: all senders would only fail as fast as they can ask
                self.failures.append(str(error))
                self._stop.set()
                return
            except ClientError as error:
                self.failures.append(str(error))
                continue
            self.durations.append(time.monotonic() - started_at)
            if "timing" in verdict:  # a peer of the bench tells none, nor the rest
                self.timings.append(verdict["timing"])
                with self._lock:
                    self.patches += verdict["proof"]["windows_inferred"]
                    self.versions[verdict["model"]["version"]] += 1
            if "self_test_stale" in verdict["reasons"]:
                self.failures.append(f"load-{number}: no fresh self-test")
            with self._lock:
                first = self._labels.setdefault(index, verdict["labels"])
            if verdict["labels"] != first:
                self.failures.append(f"load-{number}: {verdict['labels']}, and {first} for the same frame before")
