"""The commands of deploy/gpu-acceptance.md, typed on a machine that has Docker alone; Docker is the test's."""

import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.__main__ import app
from tests.deploy.expressions import DEPLOY

PAGE = DEPLOY / "gpu-acceptance.md"
DOCKER = """#!/bin/sh
for word in "$@"; do printf '%s\\t' "$word" >> calls; done; echo >> calls
"""


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    """What Docker is asked for by the block for a container; nothing but a shell's own tools is there besides."""
    block = re.findall(r"container, which.*?```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in (("docker", DOCKER), ("python3", "#!/bin/sh\nexit 127\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    answer = subprocess.run(
        ["bash", "-e", "-c", *block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return [line.split("\t")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]


def test_whatever_the_container_writes_goes_to_a_folder_of_the_users(calls: list[list[str]], tmp_path: Path) -> None:
    assert calls[0][:1] == ["build"]
    (words,) = (call for call in calls if call[0] == "run")
    options = dict(pairwise(words))
    assert options["--user"] == f"{os.getuid()}:{os.getgid()}"
    assert f"{tmp_path}/acceptance:/out" in words
    assert options["-e"].startswith("XDG_CACHE_HOME=/out/")
    assert options["--out"].startswith("/out/")
    assert (tmp_path / "acceptance").stat().st_uid == os.getuid()  # made before Docker would make it root's


def test_the_command_in_the_container_is_one_that_there_is(calls: list[list[str]]) -> None:
    (words,) = (call for call in calls if call[0] == "run")
    module, command, *arguments = words[words.index("-m") + 1 :]
    assert module == "service"
    help_text = CliRunner().invoke(app, [command, "--help"]).output
    for option in (word for word in arguments if word.startswith("--")):
        assert option in help_text
