"""What several tests need and an export takes seconds to make."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one stage, four labels and patches of 64 px; not to be written to."""
    from tests.engine.precisions import write_graphs  # only here: most tests beside it need no torch
    from tests.training.heads import OneStage, Sigmoid

    return write_graphs(tmp_path_factory.mktemp("one_stage") / "bundle", OneStage(), Sigmoid())


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two stages, with a map of its own for each label; not to be written to."""
    from tests.engine.precisions import write_graphs
    from tests.training.heads import two_stage
    from training.network import FeaturesGraph, ReasoningGraph

    network = two_stage("attention")
    out = tmp_path_factory.mktemp("two_stages") / "bundle"
    return write_graphs(out, FeaturesGraph(network), ReasoningGraph(network))
