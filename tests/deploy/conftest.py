import sys
from collections.abc import Iterator

import pytest

from service.client import free_port
from tests.bundles import tiny_bundle
from tests.deploy.processes import server


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real service process on a tiny bundle."""
    folder = tmp_path_factory.mktemp("service")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(tiny_bundle(folder / "bundle")),
        "INSPECT_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-m", "service"]
    with server(command, ready_url=f"{address}/readyz", log=folder / "log", environment=environment):
        yield address
