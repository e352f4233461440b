"""The images: linted, small, not root, without torch, healthy only when the service is ready. None is built here."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.plans import default_folder
from service.client import free_port
from service.settings import read_settings
from tests.deploy.dockerfile import (
    DOCKERFILE,
    GPU_DOCKERFILE,
    ROOT,
    arguments_of,
    copied,
    environment,
    health_command,
    in_context,
)

CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
TRAINING_ALONE = {"torch", "torchvision", "lightning-fabric", "onnx", "onnxscript", "tensorboard", "triton"}


both = pytest.mark.parametrize("path", [DOCKERFILE, GPU_DOCKERFILE], ids=["cpu", "gpu"])


@both
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    answer = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_base_images_are_pinned_to_a_release() -> None:
    images = {arguments.split()[0] for arguments in arguments_of("FROM")}
    assert len(images) == 1  # an environment moves only to the very Python that made it
    for image in images:
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", image)


def test_the_gpu_images_are_of_one_release_the_smaller_one_runs() -> None:
    made, run = (arguments.split()[0] for arguments in arguments_of("FROM", GPU_DOCKERFILE))
    match = re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-devel-(ubuntu\d+\.\d+)", made)
    assert match is not None
    assert run == f"nvidia/cuda:{match[1]}-base-{match[2]}"


def test_the_gpu_image_that_runs_has_what_pycuda_links() -> None:
    """The driver's libcuda comes with the container toolkit; of CUDA's libraries, curand is linked by default."""
    (image,) = (line.split()[0] for line in arguments_of("FROM", GPU_DOCKERFILE)[1:])
    match = re.search(r"cuda:(\d+)\.(\d+)", image)
    assert match is not None
    installs = [line for line in arguments_of("RUN", GPU_DOCKERFILE) if "apt-get install" in line]
    assert f"libcurand-{match[1]}-{match[2]}" in installs[-1].split()


@both
def test_copied_sources_exist_and_are_in_the_build_context(path: Path) -> None:
    assert copied(path)
    for source in copied(path):
        assert (ROOT / source).exists(), source
        assert in_context(source), source


@pytest.mark.parametrize("path", [".git", ".venv", "data", "runs", "tests", "state"])
def test_what_the_image_does_not_need_stays_out_of_the_build_context(path: str) -> None:
    assert not in_context(path)


@both
def test_the_user_is_not_root(path: Path) -> None:
    (user,) = arguments_of("USER", path)
    assert int(user) > 0


@both
def test_the_record_is_kept_in_a_volume(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    for name, value in environment(path).items():
        if name.startswith("INSPECT_"):
            monkeypatch.setenv(name, value)
    settings = read_settings()
    (volumes,) = arguments_of("VOLUME", path)
    assert str(settings.state_dir) in json.loads(volumes)
    assert arguments_of("EXPOSE", path) == [str(settings.port)]
    assert settings.host == "0.0.0.0"  # noqa: S104 - a container's own address


def test_the_gpu_image_runs_tensorrt_and_keeps_its_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(GPU_DOCKERFILE)
    assert variables["INSPECT_RUNTIME"] == "tensorrt"
    monkeypatch.setenv("XDG_CACHE_HOME", variables["XDG_CACHE_HOME"])
    (volumes,) = arguments_of("VOLUME", GPU_DOCKERFILE)
    assert any(default_folder().is_relative_to(volume) for volume in json.loads(volumes))


def test_tensorrt_is_pinned_and_from_nvidias_index() -> None:
    (install,) = (line for line in arguments_of("RUN", GPU_DOCKERFILE) if "pip install" in line)
    assert "--extra-index-url https://pypi.nvidia.com" in install
    assert "'.[tensorrt]'" in install
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", pins()["tensorrt"])


def pins() -> dict[str, str]:
    """The version of each package of `deploy/constraints.txt`."""
    found: dict[str, str] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) not in found
            found[canonicalize_name(name)] = version
    return found


@both
def test_an_image_installs_what_is_pinned(path: Path) -> None:
    assert str(CONSTRAINTS.relative_to(ROOT)) in copied(path)
    (install,) = (line for line in arguments_of("RUN", path) if "pip install" in line)
    assert f"--constraint {CONSTRAINTS.name}" in install


def test_every_dependency_of_the_images_is_pinned_to_a_version_that_it_may_have() -> None:
    found = pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_the_cpu = project["optional-dependencies"]["openvino"]
    for package in [*map(Requirement, [*project["dependencies"], *of_the_cpu]), *of_the_gpu()]:
        assert package.specifier.contains(found[canonicalize_name(package.name)]), package
    assert not found.keys() & TRAINING_ALONE


def test_the_cuda_bindings_are_of_the_images_cuda() -> None:
    image = arguments_of("FROM", GPU_DOCKERFILE)[0].split()[0]
    release = pins()["cuda-bindings"].rpartition(".")[0]
    assert f"cuda:{release}." in image


def of_the_gpu() -> list[Requirement]:
    """What the GPU image installs besides the base install."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [Requirement(line) for line in extras["tensorrt"]]


def base_install() -> set[str]:
    """Names of all packages that `pip install .` without extras brings, by what is installed here."""
    waiting = [Requirement("screen-inspection")]
    names: set[str] = set()
    while waiting:
        package = waiting.pop()
        for line in requires(package.name) or ():
            needed = Requirement(line)
            wanted = needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in (package.extras or {""})
            )
            if wanted and canonicalize_name(needed.name) not in names:
                names.add(canonicalize_name(needed.name))
                waiting.append(needed)
    return names


def test_the_base_install_has_no_torch() -> None:
    names = base_install()
    assert {"onnxruntime", "fastapi", "starlette"} <= names  # with what its dependencies need
    assert not names & TRAINING_ALONE
    assert not {name for name in names if name.startswith("nvidia-")}


def test_the_cpu_image_serves_by_openvino() -> None:
    """Without it the base install serves by ONNX Runtime, in float32, and misses the figures of the README."""
    (install,) = (line for line in arguments_of("RUN") if "pip install" in line)
    assert "'.[openvino]'" in install


def test_the_gpu_install_asks_for_nothing_of_the_training() -> None:
    names = {canonicalize_name(package.name) for package in of_the_gpu()}
    assert names == {"tensorrt", "pycuda", "cuda-bindings"}
    assert not names & TRAINING_ALONE


def healthy(port: str, path: Path) -> bool:
    program, *arguments = health_command(path)
    assert program.startswith("python")
    return (
        subprocess.run(
            [sys.executable, *arguments],
            # Docker hands a container the proxy of its client
            env={**os.environ, "INSPECT_PORT": port, "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
        ).returncode
        == 0
    )


@both
def test_the_container_is_healthy_when_the_service_is_ready(service: str, path: Path) -> None:
    assert healthy(service.rpartition(":")[2], path)
    assert not healthy(str(free_port()), path)
