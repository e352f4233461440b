"""What a device does at best, as work that takes turns with what is compared with it: the form of it, and a CPU's."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.cpus import available_cpus
from engine.graphs import Session, open_session, run_session

MATRIX_SIDE, PRODUCTS = 512, 4
PRODUCT_FILE = Path(__file__).parent / "product.onnx"  # left @ right; `tests/engine/test_yardstick.py` makes it anew
COPY_BYTES = 64 * 2**20  # larger than caches


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """A matrix product and a copy of memory.

    Attributes:
        product: multiplies once; the seconds it took.
        gflop: arithmetic of a product.
        copy: copies once; the seconds it took.
        gigabytes: that a copy reads and writes.
    """

    product: Callable[[], float]
    gflop: float
    copy: Callable[[], float]
    gigabytes: float


def cpu_yardstick() -> Yardstick:
    """In float32, by ONNX Runtime, whose product is twice as fast as NumPy's; a session of one thread for each CPU."""
    cpus = available_cpus()
    pool = ThreadPoolExecutor(cpus)
    graph = PRODUCT_FILE.read_bytes()
    sessions = [open_session(graph, key=PRODUCT_FILE.name, threads=1) for _ in range(cpus)]
    matrix = np.random.default_rng(0).random((MATRIX_SIDE, MATRIX_SIDE), np.float32)
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)

    def multiply(session: Session) -> None:
        for _ in range(PRODUCTS):
            run_session(session, ["product"], {"left": matrix, "right": matrix})

    return Yardstick(
        product=lambda: _timed(lambda: list(pool.map(multiply, sessions))),
        gflop=2 * MATRIX_SIDE**3 * PRODUCTS * cpus / 1e9,
        copy=lambda: _timed(lambda: np.copyto(target, source)),
        gigabytes=2 * COPY_BYTES / 1e9,
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
