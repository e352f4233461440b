"""What several tests need and an export takes seconds to make."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one stage, four labels and patches of 64 px; not to be written to."""
    from tests.engine.precisions import write_graphs  # only here: most tests beside it need no torch
    from tests.training.heads import OneStage, Sigmoid

    return write_graphs(tmp_path_factory.mktemp("one_stage") / "bundle", OneStage(), Sigmoid())
