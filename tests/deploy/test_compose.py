"""docker-compose.yml: valid by the Compose specification, and true to the files that it mounts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.catalogue import Catalogue
from service.scheduler import ENDS_WITHIN_S
from service.server import GRACE_S
from service.settings import read_settings
from tests.bundles import tiny_bundle
from tests.deploy.dockerfile import DOCKERFILE, GPU_DOCKERFILE, arguments_of, environment
from tests.deploy.expressions import DEPLOY, ROOT

COMPOSE = ROOT / "docker-compose.yml"
WITH_DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")  # ${NAME:-default}


def services() -> dict[str, dict[str, Any]]:
    """Services by name, every variable at its default."""
    text = WITH_DEFAULT.sub(r"\1", COMPOSE.read_text())
    assert "$" not in text
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """Validate against the schema of the Compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_is_valid_by_the_compose_specification() -> None:
    answer = check(COMPOSE)
    assert answer.returncode == 0, answer.stdout


def test_the_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text(COMPOSE.read_text().replace("depends_on", "depend_on"))
    answer = check(misspelt)
    assert answer.returncode == 1
    assert "depend_on" in answer.stdout


def test_images_are_pinned_or_built_here() -> None:
    for name, service in services().items():
        if "build" in service:
            build = service["build"]
            expected = GPU_DOCKERFILE if name == "inspect-gpu" else DOCKERFILE
            assert (ROOT / build["context"] / build["dockerfile"]).resolve() == expected.resolve()
        else:
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_what_is_mounted_exists_and_is_read_only() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for name, service in services().items():
        for mount in service["volumes"]:
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).is_dir(), (name, source)
                assert rest.endswith(":ro"), (name, mount)
            else:
                assert source in volumes, (name, source)


def test_no_log_grows_for_ever() -> None:
    for name, service in services().items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_a_setting_reaches_the_service_on_a_cpu_and_on_gpus() -> None:
    for name in ("inspect", "inspect-gpu"):
        assert services()[name]["env_file"] == [{"path": "inspect.env", "required": False}]
    assert {"/inspect.env", "/.env"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_no_setting_takes_the_service_away_from_its_port_its_volume_or_its_health_check() -> None:
    image = environment()
    for name in ("INSPECT_HOST", "INSPECT_PORT", "INSPECT_STATE_DIR"):
        assert services()["inspect"]["environment"][name] == image[name]  # which goes before inspect.env


def test_prometheus_takes_new_rules_without_a_new_container() -> None:
    assert "--enable-feature=auto-reload-config" in services()["prometheus"]["command"]


def test_where_memory_is_short_the_inspection_goes_last() -> None:
    scores = {name: service.get("oom_score_adj", 0) for name, service in services().items()}
    assert scores.pop("inspect") == scores.pop("inspect-gpu") == 0
    assert min(scores.values()) > 0


def test_every_service_says_whether_it_is_healthy() -> None:
    for name, service in services().items():
        assert "build" in service or service["healthcheck"]["test"][0] == "CMD", name
    for path in (DOCKERFILE, GPU_DOCKERFILE):  # of the images built here
        assert arguments_of("HEALTHCHECK", path)


def test_nothing_listens_beyond_this_machine_by_default() -> None:
    for name, service in services().items():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), (name, port)


def test_the_service_takes_its_settings_and_refuses_frames_of_another_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**environment(), **services()["inspect"]["environment"]}.items():
        if name.startswith("INSPECT_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("INSPECT_BUNDLES", str(ROOT / bundles_of("inspect")))  # as the container sees it
    assert read_settings().frame_size == (10240, 5120)


def bundles_of(name: str) -> str:
    """What is mounted where a service looks for bundles; it may not write there."""
    service = services()[name]
    end = f":{service['environment']['INSPECT_BUNDLES']}:ro"
    (source,) = (mount.removesuffix(end) for mount in service["volumes"] if mount.endswith(end))
    assert isinstance(source, str)
    return source


@pytest.mark.parametrize("name", ["inspect", "inspect-gpu"])
def test_a_bundle_gets_in_service_by_the_way_that_the_readme_tells(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme = (ROOT / "service" / "README.md").read_text()
    source = bundles_of(name).removeprefix("./")
    (copied,) = re.findall(rf"^cp -r bundle {source}/(\S+)$", readme, re.MULTILINE)
    assert f"docker compose exec inspect python -m service activate {copied}\n" in readme
    assert f"--active {services()[name]['environment']['INSPECT_BUNDLES']}/" in readme
    # a clone has the folder, which else the root user would come to own, and git keeps no bundle in it
    assert (ROOT / source / ".gitignore").read_text().splitlines()[1:] == ["*", "!.gitignore"]
    monkeypatch.setenv("INSPECT_BUNDLES", str(shutil.copytree(ROOT / source, tmp_path / "bundles")))
    tiny_bundle(tmp_path / "bundles" / copied)
    settings = read_settings()
    catalogue = Catalogue(configured=settings.bundle, folder=settings.bundles)
    assert copied in catalogue.names()
    assert catalogue.look(copied).reason == ""


def test_the_record_survives_the_container() -> None:
    state_dir = environment()["INSPECT_STATE_DIR"]
    assert f"state:{state_dir}" in services()["inspect"]["volumes"]


def test_a_container_gets_time_for_the_screens_it_holds_and_then_for_a_device_that_hangs() -> None:
    grace_s = float(services()["inspect"]["stop_grace_period"].removesuffix("s"))
    assert read_settings().deadline_s < GRACE_S
    assert grace_s > GRACE_S + ENDS_WITHIN_S


def test_prometheus_scrapes_the_service_by_its_name_and_port() -> None:
    ((target,),) = [entry["targets"] for entry in json.loads((DEPLOY / "prometheus" / "targets.json").read_text())]
    name, _, port = target.partition(":")
    assert name in services()
    assert [port] == arguments_of("EXPOSE")


def test_grafana_asks_prometheus_by_its_name() -> None:
    path = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (datasource,) = yaml.safe_load(path.read_text())["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    assert services()["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    assert "127.0.0.1:9090:9090" in services()["prometheus"]["ports"]


def test_grafana_is_to_look_at_and_has_no_account() -> None:
    settings = services()["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not [name for name in settings if "PASSWORD" in name]


def test_the_gpus_service_starts_only_when_it_is_named_and_takes_the_place_of_the_cpus() -> None:
    gpu, cpu = services()["inspect-gpu"], services()["inspect"]
    assert gpu["profiles"] == ["gpu"]
    assert [name for name, service in services().items() if "profiles" in service] == ["inspect-gpu"]
    assert gpu["networks"]["default"]["aliases"] == ["inspect"]  # Prometheus finds either
    for key in ("environment", "ports", "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period"):
        assert gpu[key] == cpu[key], key
    (devices,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_record_and_plans_of_the_gpus_service_survive_its_container() -> None:
    (volumes,) = arguments_of("VOLUME", GPU_DOCKERFILE)
    mounted = [mount.partition(":")[2] for mount in services()["inspect-gpu"]["volumes"] if not mount.startswith(".")]
    assert mounted == json.loads(volumes)


def test_the_command_for_the_gpu_names_services_that_exist() -> None:
    (command,) = re.findall(r"^#   docker compose up --build (.*)$", COMPOSE.read_text(), re.MULTILINE)
    assert set(command.split()) == set(services()) - {"inspect"}
