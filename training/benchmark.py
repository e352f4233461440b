"""A run's features graph in PyTorch, eager and compiled, as contestants of `engine.bench`."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.bench import Contestant
from training.folder import load_run
from training.network import FeaturesGraph
from training.patches import cut_facts

BATCH = 5


def patch_of(run: Path) -> int:
    """Side of the patches in pixels that a finished run was judged by.

    Raises:
        ValueError: the run is not finished, or its data is gone, which alone tells.
    """
    _, config, _ = load_run(run)
    return int(cut_facts(config.data.folders[0])["patch_px"])


def contestants(run: Path, *, batch_size: int | None, patch_px: int) -> tuple[list[Contestant], dict[str, str]]:
    """PyTorch eager and compiled.

    Args:
        run: folder of a finished run.
        batch_size: patches of a batch; None: 5, as a bundle's by default.
        patch_px: side of a patch.

    Returns:
        Those that run, each having run once, and by name why another does not: torch.compile needs a C++ compiler.

    Raises:
        ValueError: the run is not finished.
    """
    network, _, _ = load_run(run)
    module = FeaturesGraph(network).eval()
    size = batch_size or BATCH
    shape = (size, 1, patch_px, patch_px)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    ready = [_contestant("torch eager", module, pixels)]
    compiled = _contestant("torch.compile", torch.compile(module), pixels)
    try:
        compiled.run()
    except (RuntimeError, OSError) as error:  # the compiler's errors are RuntimeErrors, a missing one may be an OSError
        first, *_ = (str(error).strip() or type(error).__name__).splitlines()
        return ready, {"torch.compile fp32": first}
    return [*ready, compiled], {}


def _contestant(name: str, module: Callable[[Tensor], object], pixels: Tensor) -> Contestant:
    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            module(pixels)
        return time.perf_counter() - start

    return Contestant(
        name=name, precision="fp32", threads=f"1 x {torch.get_num_threads()}", batch_size=len(pixels), run=run
    )
