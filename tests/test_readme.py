"""What the READMEs say of settings, codes, metrics and reasons is what the code has."""

import re
from pathlib import Path

import pytest

from service.aggregation import REASONS
from service.images import MEDIA_TYPES
from service.metrics import Metrics
from service.problems import KINDS
from service.settings import Settings

ROOT = Path(__file__).parents[1]
HALVES = "engine", "service", "training"
README = (ROOT / "README.md").read_text()
OF_SERVICE = (ROOT / "service" / "README.md").read_text()
ALL = [
    ROOT / "README.md",
    ROOT / "deploy" / "gpu-acceptance.md",
    *sorted(file for half in HALVES for file in (ROOT / half).rglob("README.md")),
]


def table(marker: str, readme: str = README) -> list[list[str]]:
    """Cells of the rows of the table after `<!-- marker -->`, its two header lines left out."""
    (text,) = re.findall(rf"<!-- {marker} -->\n((?:\|.*\n)+)", readme)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return rows[2:]


def shown_default(name: str) -> str:
    """The default as the README writes it."""
    field = Settings.model_fields[name]
    if name == "bundle":
        return "the embedded one"
    if name == "state_dir":
        return "`~/.local/state/screen-inspection`"
    return "unset" if field.default is None else f"`{field.default}`"


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    expected = [
        [f"`INSPECT_{name.upper()}`", shown_default(name), str(field.description)]
        for name, field in Settings.model_fields.items()
    ]
    assert table("settings") == expected


def test_every_code_is_in_the_readme() -> None:
    expected = [[f"`{code}`", str(kind.status), kind.title] for code, kind in KINDS.items()]
    assert table("codes") == expected


def test_every_series_is_in_the_readme() -> None:
    names = {row[0].strip("`") for row in table("metrics", OF_SERVICE)}
    registry = Metrics(labels=("scratch",), codes=("internal_error",)).registry
    made = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    made = {name for name in made if name.startswith("inspect_")}
    watched = {
        *("inspect_memory_held_bytes", "inspect_memory_waiting", "inspect_queue_patches"),
        *("inspect_record_ok", "inspect_record_free_bytes", "inspect_record_reusable_bytes"),
        *("inspect_self_test_ok", "inspect_self_test_age_seconds"),
    }
    assert names == made | watched


def test_every_reason_is_in_the_readme() -> None:
    for reason in REASONS:
        assert f"| `{reason}` |" in README


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_and_heading_that_a_readme_names_exists(file: Path) -> None:
    text = file.read_text()
    links = re.findall(r"!?\[[^\]]*\]\((?!http)([^)]+)\)", text)
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        named = file.parent / path if path else file
        assert named.exists(), link
        if heading:
            assert heading in headings(named), link
    for path in re.findall(r"`((?:tests|training|service|engine|deploy)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def headings(file: Path) -> list[str]:
    """As links name them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_the_media_types_are_those_of_the_documentation() -> None:
    for media_type in ("image/png", "application/octet-stream"):
        assert media_type in MEDIA_TYPES
        assert media_type in README
