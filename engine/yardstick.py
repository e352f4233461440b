"""What a device does at best, as work that takes turns with what is compared with it: the form of it, and a CPU's."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.cpus import available_cpus

MATRIX_SIDE, PRODUCTS = 64, 200
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
    """In float32. Each CPU has products too small for BLAS to share out: threads that wait are no ceiling."""
    cpus = available_cpus()
    pool = ThreadPoolExecutor(cpus)
    left = np.random.default_rng(0).random((PRODUCTS, MATRIX_SIDE, MATRIX_SIDE), np.float32)
    outs = [np.empty_like(left) for _ in range(cpus)]
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return Yardstick(
        product=lambda: _timed(lambda: list(pool.map(lambda out: np.matmul(left, left[0], out=out), outs))),
        gflop=2 * MATRIX_SIDE**3 * PRODUCTS * cpus / 1e9,
        copy=lambda: _timed(lambda: np.copyto(target, source)),
        gigabytes=2 * COPY_BYTES / 1e9,
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
