"""Batches one after the other, some under way at a time: what is through with one begins with the next."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass

from engine.backend import Batch, Features
from engine.errors import InferenceError

UNDER_WAY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Starts batches.

    Attributes:
        begin: starts one and gives what waits for its answer; either raises InferenceError where the runtime failed.
        under_way: at a time.
    """

    begin: Callable[[Batch], Callable[[], Features]]
    under_way: int = UNDER_WAY

    def run(self, batch: Batch) -> Features:
        """One batch, waited for.

        Raises:
            InferenceError: the runtime failed.
        """
        return self.begin(batch)()

    def stream(self, batches: Iterable[Batch]) -> Generator[Features]:
        """The answers in their order; left before the end, nothing is under way afterwards.

        Raises:
            InferenceError: the runtime failed. What `batches` raises goes through.
        """
        running: deque[Callable[[], Features]] = deque()
        try:
            for batch in batches:
                running.append(self.begin(batch))
                if len(running) == self.under_way:
                    yield running.popleft()()
            while running:
                yield running.popleft()()
        finally:
            for answer in running:
                with suppress(InferenceError):
                    answer()
