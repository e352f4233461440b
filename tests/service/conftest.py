from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.bundles import tiny_bundle
from tests.service.apps import serve


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of five-patch batches and four labels; tests do not write into it."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of one app for many tests; each has screen ids of its own."""
    with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path_factory.mktemp("state")))) as client:
        yield client
