"""The shape of the whole: which package may know which, what a process loads, how large a file may grow."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import tiny_bundle

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "service", "training")
# training -> engine <- service
MAY_KNOW = {"engine": {"engine"}, "service": {"service", "engine"}, "training": {"training", "engine"}}
# outside of their own package: everything from the root, but for what needs torch, serves the export, takes graphs
# apart, or times
ENGINE_DOORS = {
    "engine",
    "engine.bench",
    "engine.bfloat",
    "engine.cpus",
    "engine.doubt",
    "engine.export",
    "engine.graphs",
    "engine.half",
    "engine.quantise",
    "engine.speed",
}
TRAINING_LIBRARIES = {
    "lightning_fabric",
    "onnx",
    "onnxscript",
    "ptflops",
    "safetensors",
    "tensorboard",
    "torch",
    "torchvision",
}
RUNTIMES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "cuda"}
# files of a runtime of another name: one builds plans, one runs them, one holds a bundle's graphs for every CPU
RUNTIMES_OF = {
    "compiler": {"tensorrt", "tensorrt_rtx"},
    "gpu": {"pycuda", "cuda"},
    "gpu_yardstick": {"pycuda"},
    "graphs": {"onnxruntime"},
    "onnxruntime": set[str](),
    "tensorrt": set[str](),
    "quantise": {"onnxruntime"},  # the runtime's own tool, for the export
}
# those of the bench's peers, each in the file of the peer, which is a program of its own that the bench starts
PEERS = ROOT / "service" / "bench" / "peers"
PEER_LIBRARIES_OF = {
    "litserve": {"litserve"},
    "model": {"onnxruntime"},  # as its users run it, which no backend of ours does
    "monai": {"monai", "torch"},
    "ray": {"ray"},
}
PEER_LIBRARIES = {"litserve", "monai", "ray"}
MAX_LINES = 400


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function, by its absolute name."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield ".".join([*parents, *([node.module] if node.module else [])])


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_to_the_engine_and_nowhere_else(package: str) -> None:
    assert sources(package)
    for path in sources(package):
        assert roots(path) & set(PACKAGES) <= MAY_KNOW[package], name_of(path)
        assert not roots(path) & {"tests"}, name_of(path)


@pytest.mark.parametrize("package", ["service", "training"])
def test_the_engine_is_entered_by_its_doors(package: str) -> None:
    for path in sources(package):
        used = {name for name in imports(path) if name.partition(".")[0] == "engine"}
        assert used <= ENGINE_DOORS, name_of(path)


def test_torch_is_for_training_and_for_the_export() -> None:
    users = {
        name_of(path)
        for package in ("engine", "service")
        for path in sources(package)
        if roots(path) & TRAINING_LIBRARIES
    }
    of_peers = {"service/bench/peers/monai.py"}
    assert users == {f"engine/{name}.py" for name in ("bfloat", "doubt", "export", "half", "quantise")} | of_peers


def test_a_peer_of_the_bench_is_a_program_of_its_own() -> None:
    for package in PACKAGES:
        for path in sources(package):
            own = PEER_LIBRARIES_OF.get(path.stem, set()) if path.parent == PEERS else set()
            assert roots(path) & {*PEER_LIBRARIES, *TRAINING_LIBRARIES, *RUNTIMES} >= own, name_of(path)
            assert roots(path) & PEER_LIBRARIES <= own, name_of(path)
            if path.parent != PEERS or path.name == "__init__.py":
                programs = {f"service.bench.peers.{name}" for name in (*PEER_LIBRARIES_OF, "fastapi")}
                assert not set(imports(path)) & programs, name_of(path)


def test_a_runtime_is_imported_in_its_own_file_alone() -> None:
    for package in PACKAGES:
        for path in sources(package):
            own = RUNTIMES_OF.get(path.stem, {path.stem} & RUNTIMES) if path.parent == ROOT / "engine" else set()
            if path.parent == PEERS:
                own = PEER_LIBRARIES_OF.get(path.stem, set()) & RUNTIMES
            assert roots(path) & RUNTIMES == own, name_of(path)


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_stay_small(package: str) -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in sources(package)}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Names of the packages, Python's own aside, that a fresh process has loaded after `program`."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    answer = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)


def test_importing_the_engine_loads_numpy_alone() -> None:
    assert loaded_by("import engine") - loaded_by("") == {"engine", "numpy"}


SERVE = """
import sys
from pathlib import Path
import cv2, numpy
from starlette.testclient import TestClient
from service.app import create_app
from service.settings import Settings

frame = numpy.random.default_rng(0).integers(100, 140, (128, 192), numpy.uint8)
settings = Settings(bundle=Path(sys.argv[1]), state_dir=Path(sys.argv[2]))
with TestClient(create_app(settings)) as client:
    answer = client.post(
        "/v1/screens?screen_id=one",
        content=cv2.imencode(".png", frame)[1].tobytes(),
        headers={"content-type": "image/png"},
    )
assert answer.status_code == 200, answer.text
assert answer.json()["verdict"] == "pass", answer.text
"""


def test_serving_a_screen_never_loads_torch(tmp_path: Path) -> None:
    loaded = loaded_by(SERVE, str(tiny_bundle(tmp_path / "bundle")), str(tmp_path / "state"))
    assert {"service", "engine", "onnxruntime"} <= loaded  # it was served by the real runtime
    assert not loaded & {"training", *TRAINING_LIBRARIES, *PEER_LIBRARIES}


def test_the_command_line_loads_neither_torch_nor_a_peer() -> None:
    assert not loaded_by("import service.__main__") & {"training", *TRAINING_LIBRARIES, *PEER_LIBRARIES}


def test_runs_are_compared_without_torch() -> None:
    assert not loaded_by("from training import comparison, curves, tables") & TRAINING_LIBRARIES
