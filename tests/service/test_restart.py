"""With which bundle a service starts: whichever was decided on last, and no other in its place."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import BundleError
from service.app import create_app
from service.errors import VersionTaken
from service.restart import in_service
from service.serving import Loaded, load_bundle
from service.settings import Settings
from service.store import RECORD_FILE, Store, StoreError
from tests.bundles import tiny_bundle
from tests.service.apps import GOLDEN, Device, is_problem, serve
from tests.service.devices import until
from tests.service.shelves import BREAKERS, shelf, wrong_golden


class Line:
    """A service that is started and stopped, on one record and one folder of bundles."""

    def __init__(self, home: Path) -> None:
        self.folder = shelf(home / "bundles")
        self.state_dir = home / "state"

    def settings(self, bundle: Path | None) -> Settings:
        """`bundle` as INSPECT_BUNDLE; None leaves it unset."""
        if bundle is None:
            return Settings(bundles=self.folder, state_dir=self.state_dir)
        return Settings(bundle=bundle, bundles=self.folder, state_dir=self.state_dir)

    def run(
        self, bundle: Path | None, *wanted: dict[str, str | bool], configured: bool = False
    ) -> tuple[str, str | None]:
        """Start, put in service what is wanted, stop: with what it began, and what a rollback would have led to."""
        with serve(create_app(self.settings(bundle), configured=configured)) as client:
            states = {model["state"]: model["bundle"] for model in client.get("/v1/models").json()["models"]}
            for body in wanted:
                assert client.put("/v1/models/active", json=body).status_code == 200
        return states["active"], states.get("previous")


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


TWO: dict[str, str | bool] = {"bundle": "two", "without_release": True}


@pytest.mark.parametrize("setting", ["one", None, "elsewhere"])
def test_a_swap_holds_after_a_restart_and_so_does_the_way_back(line: Line, bundle: Path, setting: str | None) -> None:
    bundles = {"one": line.folder / "one", "elsewhere": bundle, None: None}
    first = "one" if setting == "one" else "@configured"
    assert line.run(bundles[setting], TWO) == (first, None)
    assert line.run(bundles[setting]) == ("two", first)
    assert line.run(bundles[setting], {"rollback": True}) == ("two", first)
    assert line.run(bundles[setting]) == (first, "two")


def test_another_setting_is_a_later_decision_and_rollback_leads_to_what_was_swapped(line: Line, bundle: Path) -> None:
    line.run(bundle, TWO)
    assert line.run(line.folder / "one") == ("one", "two")
    assert line.run(line.folder / "one", {"rollback": True}) == ("one", "two")
    assert line.run(line.folder / "one") == ("two", "one")


def test_a_setting_that_is_taken_away_decides_nothing(line: Line) -> None:
    line.run(line.folder / "one", TWO)
    assert line.run(None)[0] == "two"


def test_the_setting_can_be_asked_for_and_is_decided_then(line: Line) -> None:
    line.run(line.folder / "one", TWO)
    assert line.run(line.folder / "one", configured=True) == ("one", "two")
    assert line.run(line.folder / "one") == ("one", "two")


def test_a_setting_that_is_lost_does_not_put_the_embedded_bundle_in_service(line: Line, bundle: Path) -> None:
    line.run(bundle)
    with pytest.raises(BundleError) as refused:
        create_app(line.settings(None))
    assert str(refused.value) == (
        f"@configured, which was in service last: INSPECT_BUNDLE was {bundle} and is not set any more; put it back, or "
        "start once with --configured to serve INSPECT_BUNDLE instead"
    )
    assert line.run(bundle)[0] == "@configured"
    # nor does a setting that is lost after a swap away from it, and back
    line.run(bundle, TWO, {"rollback": True})
    with pytest.raises(BundleError, match="is not set any more"):
        create_app(line.settings(None))
    assert line.run(None, configured=True)[0] == "@configured"  # which somebody wants


def test_what_lies_where_the_setting_points_is_not_exchanged_without_anybodys_doing(line: Line, tmp_path: Path) -> None:
    exported = tiny_bundle(tmp_path / "exported", version="5")
    line.run(exported)
    shutil.rmtree(exported)
    tiny_bundle(exported, version="6", gain=15.0)
    with pytest.raises(BundleError, match=r"@configured, which was in service last: manifest\.json: is another by now"):
        create_app(line.settings(exported))
    assert line.run(exported, configured=True)[0] == "@configured"
    assert line.run(exported)[0] == "@configured"
    store = Store(line.state_dir)
    last = store.last_activation()
    store.close()
    assert last is not None
    assert last.version == "6"  # and the record says so


def gone(bundle: Path) -> str:
    shutil.rmtree(bundle)
    return "no folder of this name lies in the folder of bundles"


def another(bundle: Path) -> str:
    shutil.rmtree(bundle)
    tiny_bundle(bundle, version="2", gain=15.0)
    return "manifest.json: is another by now than when the bundle was put in service"


# a manifest that is changed at all is another: `BREAKERS` that seal it are found out by that
UNSEALED = [breaker for breaker in BREAKERS if breaker.__name__ in ("altered", "without_manifest", "without_a_graph")]


@pytest.mark.parametrize("spoil", [gone, another, *UNSEALED])
def test_a_line_never_runs_another_model_in_place_of_the_one_put_in_service(
    line: Line, spoil: Callable[[Path], str]
) -> None:
    line.run(line.folder / "one", TWO)
    kept = shutil.copytree(line.folder / "two", line.folder.parent / "kept")
    reason = spoil(line.folder / "two")
    with pytest.raises(BundleError) as refused:
        create_app(line.settings(line.folder / "one"))
    assert str(refused.value).startswith(f"two, which was in service last: {reason}")
    assert str(refused.value).endswith("put it back, or start once with --configured to serve INSPECT_BUNDLE instead")
    # each of the ways out that it names
    shutil.rmtree(line.folder / "two", ignore_errors=True)
    shutil.copytree(kept, line.folder / "two")
    assert line.run(line.folder / "one") == ("two", "one")
    spoil(line.folder / "two")
    assert line.run(line.folder / "one", configured=True) == ("one", "two")


def test_a_bundle_that_fails_its_self_test_from_the_start_is_left_by_a_swap(line: Line) -> None:
    wrong_golden(line.folder / "one")
    with serve(create_app(line.settings(line.folder / "one"))) as client:
        assert client.get("/readyz").status_code == 503
        assert client.put("/v1/models/active", json=TWO).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_without_the_folder_of_bundles_what_was_swapped_does_not_start(line: Line, bundle: Path) -> None:
    line.run(bundle, TWO)
    with pytest.raises(BundleError, match="two, which was in service last: INSPECT_BUNDLES is not set"):
        create_app(Settings(bundle=bundle, state_dir=line.state_dir))


def test_a_start_that_is_refused_leaves_the_record_open_to_the_next(line: Line) -> None:
    line.run(line.folder / "one", TWO)
    gone(line.folder / "two")
    with pytest.raises(BundleError):
        create_app(line.settings(line.folder / "one"))
    assert {path.name for path in line.state_dir.iterdir()} == {"screens.sqlite"}


def test_a_start_with_another_bundle_of_a_version_that_was_in_service_is_refused(line: Line, tmp_path: Path) -> None:
    line.run(line.folder / "one")
    other = tiny_bundle(tmp_path / "other", version="1", gain=15.0)
    for configured in (False, True):
        with pytest.raises(VersionTaken, match="was in service as tiny 1"):
            create_app(line.settings(other), configured=configured)
    assert line.run(line.folder / "one") == ("one", None)  # and the record says nothing else


def test_a_name_that_the_configured_bundle_gets_leaves_the_way_back(line: Line) -> None:
    """INSPECT_BUNDLES is set after the first start: what was `@configured` has a name now."""
    with serve(create_app(Settings(bundle=line.folder / "one", state_dir=line.state_dir))):
        pass
    with serve(create_app(line.settings(line.folder / "one"))) as client:
        # not to `@configured`, which is itself
        assert is_problem(client.put("/v1/models/active", json={"rollback": True}), 404, "bundle_unknown")
    assert line.run(line.folder / "one", TWO, {"rollback": True}) == ("one", None)
    assert line.run(line.folder / "one") == ("one", "two")


def test_what_is_in_service_can_be_told_without_the_service(line: Line, bundle: Path) -> None:
    settings = line.settings(line.folder / "one")
    assert in_service(settings) == line.folder / "one"
    assert not line.state_dir.exists()
    line.run(line.folder / "one", TWO)
    assert in_service(settings) == line.folder / "two"
    assert in_service(line.settings(None)) == line.folder / "two"
    assert in_service(line.settings(bundle)) == bundle  # with which the next start would begin
    another(line.folder / "two")
    with pytest.raises(BundleError, match="another by now"):
        in_service(settings)


def test_to_look_at_the_record_does_not_migrate_it(line: Line) -> None:
    line.state_dir.mkdir()
    path = line.state_dir / RECORD_FILE
    path.touch()  # of a version that knows no activations
    with pytest.raises(StoreError, match="cannot read"):
        in_service(line.settings(line.folder / "one"))
    with sqlite3.connect(path) as record:
        assert record.execute("SELECT name FROM sqlite_master").fetchall() == []
    record.close()


def test_what_is_exchanged_while_it_is_loaded_does_not_start(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.run(line.folder / "one")

    def exchanged(_: Path, settings: Settings) -> Loaded:
        return load_bundle(line.folder / "two", settings)

    monkeypatch.setattr("service.restart.load_bundle", exchanged)
    with pytest.raises(BundleError, match="was replaced while"):
        create_app(line.settings(line.folder / "one"))


def test_starting_again_and_again_is_recorded_once(line: Line, bundle: Path) -> None:
    for _ in range(3):
        line.run(bundle)
    store = Store(line.state_dir)
    last = store.last_activation()
    assert last is not None
    assert store.activated_before(last.bundle, last.digest) is None
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM activations").scalar() == 1
    store.close()


def test_backends_that_are_given_are_what_is_served(line: Line) -> None:
    line.run(line.folder / "one", TWO)
    app = create_app(line.settings(line.folder / "one"), backends=[Device().backend()], golden=GOLDEN)
    with serve(app) as client:
        until(lambda: client.get("/readyz").is_success)
        assert client.get("/readyz").json()["model"]["name"] == "fake"
