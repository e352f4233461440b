"""The image: linted, small, not root, without torch, and healthy only when the service is ready."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import read_settings
from tests.deploy.dockerfile import (
    DOCKERFILE,
    ROOT,
    arguments_of,
    copied,
    environment,
    health_command,
    in_context,
)
from tests.deploy.processes import free_port

TRAINING_ALONE = {"torch", "torchvision", "lightning-fabric", "onnx", "onnxscript", "tensorboard", "triton"}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    answer = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_base_images_are_pinned_to_a_release() -> None:
    images = {arguments.split()[0] for arguments in arguments_of("FROM")}
    assert len(images) == 1  # an environment moves only to the very Python that made it
    for image in images:
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", image)


def test_copied_sources_exist_and_are_in_the_build_context() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert in_context(source), source


@pytest.mark.parametrize("path", [".git", ".venv", "data", "runs", "tests", "state"])
def test_what_the_image_does_not_need_stays_out_of_the_build_context(path: str) -> None:
    assert not in_context(path)


def test_the_user_is_not_root() -> None:
    (user,) = arguments_of("USER")
    assert int(user) > 0


def test_the_record_is_kept_in_a_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        if name.startswith("INSPECT_"):
            monkeypatch.setenv(name, value)
    settings = read_settings()
    assert arguments_of("VOLUME") == [f'["{settings.state_dir}"]']
    assert arguments_of("EXPOSE") == [str(settings.port)]
    assert settings.host == "0.0.0.0"  # noqa: S104 - a container's own address


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
    assert arguments_of("RUN")[0].endswith("pip install --no-cache-dir .")
    names = base_install()
    assert {"onnxruntime", "fastapi", "starlette"} <= names  # with what its dependencies need
    assert not names & TRAINING_ALONE
    assert not {name for name in names if name.startswith("nvidia-")}


def healthy(port: str) -> bool:
    program, *arguments = health_command()
    assert program == "python"
    return (
        subprocess.run(
            [sys.executable, *arguments], env={**os.environ, "INSPECT_PORT": port}, capture_output=True
        ).returncode
        == 0
    )


def test_the_container_is_healthy_when_the_service_is_ready(service: str) -> None:
    assert healthy(service.rpartition(":")[2])
    assert not healthy(str(free_port()))
