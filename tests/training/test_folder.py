"""What a run's folder remembers of what was learnt from, and whose it is."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.training.data_form import write_screens, write_toy
from training.bundling import export_run
from training.config import read_config
from training.cut_folder import CutFolder
from training.cutting import cut
from training.fit import fit
from training.folder import BeingTrainedError, RunFolder, content_id, data_id, learnt_by_run, load_run, refuse_changed
from training.whole import replace


def test_a_run_remembers_what_the_runs_before_it_learnt_from(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=3)
    other = tmp_path / "other"
    cut(write_screens(tmp_path / "more", screens=3, seed=1), other, patch_px=128)
    ids = [data_id([folder]) for folder in (tmp_path / "cut", other)]

    first = read_config(toml, ["run=first"])
    RunFolder(first.run).begin(first, ("dot", "line"))
    (first.run / "phase2.safetensors").write_bytes(b"weights")
    assert RunFolder(first.run).learnt == ids[:1]

    second = read_config(toml, ["run=second", f'data.folders=["{other}"]', "start=first/phase2.safetensors"])
    for _ in range(2):  # as it is when the run goes on
        RunFolder(second.run).begin(second, ("dot", "line"))
        assert RunFolder(second.run).learnt == [ids[1], ids[0]]

    (tmp_path / "weights.safetensors").write_bytes(b"weights")  # of no run
    third = read_config(toml, ["run=third", "start=weights.safetensors"])
    RunFolder(third.run).begin(third, ("dot", "line"))
    assert RunFolder(third.run).learnt == ids[:1]


def test_limits_are_not_chosen_on_what_a_run_before_it_learnt_from(tmp_path: Path) -> None:
    toml, other = write_toy(tmp_path, screens=10), tmp_path / "other"
    cut(write_screens(tmp_path / "more", screens=3, seed=1), other, patch_px=128)
    config = read_config(toml, ["phase1.epochs=1", "phase2.epochs=1"])
    fit(config)
    data = config.run / "data.json"
    told = json.loads(data.read_text())
    data.write_text(json.dumps({**told, "learnt": [*told["learnt"], data_id([other])]}))
    with pytest.raises(ValueError, match=r"begins with has learnt from .*other"):
        export_run(config.run, tmp_path / "bundle", version="1", calibration=[other])


def test_a_run_knows_its_data_by_pixels_and_places_as_well(tmp_path: Path) -> None:
    """Tables alone do not tell that an image was painted over, or where a defect lies."""
    config = read_config(write_toy(tmp_path, screens=3))
    folder, cut_folder = RunFolder(config.run), tmp_path / "cut"
    folder.begin(config, ("dot", "line"))
    image, maps = next((cut_folder / "images").iterdir()), cut_folder / "maps.npz"
    for file, other in ((image, b"painted"), (maps, b"moved")):
        kept = file.read_bytes()
        file.write_bytes(other)
        told = rf"\(images or maps.npz of {cut_folder}\)"
        with pytest.raises(ValueError, match=f"begun with other data or weights there {told}: choose another"):
            folder.begin(config, ("dot", "line"))
        with pytest.raises(ValueError, match=f"has changed since it was trained {told}: what it was judged by is gone"):
            refuse_changed(config.run, config)
        file.write_bytes(kept)
    folder.begin(config, ("dot", "line"))
    refuse_changed(config.run, config)

    data = config.run / "data.json"  # of an earlier version, which did not look
    data.write_text(json.dumps({key: value for key, value in json.loads(data.read_text()).items() if key != "content"}))
    image.write_bytes(b"painted")
    folder.begin(config, ("dot", "line"))
    refuse_changed(config.run, config)


def test_a_run_goes_on_beside_a_stray_file_and_where_decoded_pixels_stand_in_for_images(tmp_path: Path) -> None:
    config = read_config(write_toy(tmp_path, screens=3))
    folder, images = RunFolder(config.run), tmp_path / "cut" / "images"
    sizes = sorted((image.name, image.stat().st_size) for image in images.iterdir())
    whole = hashlib.sha256((tmp_path / "cut" / "maps.npz").read_bytes() + json.dumps(sizes).encode()).hexdigest()
    assert content_id(tmp_path / "cut") == whole[:16]  # as in every version: cells of studies are named by it
    folder.begin(config, ("dot", "line"))

    (images / ".DS_Store").write_bytes(b"stray")
    (images / ".ipynb_checkpoints").mkdir()
    CutFolder(tmp_path / "cut").pixels()
    for _ in range(2):  # the second time without images
        folder.begin(config, ("dot", "line"))
        refuse_changed(config.run, config)
        shutil.rmtree(images, ignore_errors=True)
    (tmp_path / "cut" / "pixels.json").unlink()  # as of an earlier version
    with pytest.raises(FileNotFoundError, match=r"images/t000_00_00.png is missing, and no pixels.json tells of it"):
        refuse_changed(config.run, config)


def test_a_run_whose_data_is_gone_still_gives_its_network(tmp_path: Path) -> None:
    """For a glance, or to seal screens by it; a bundle's limits are chosen on that data, so none is made of it."""
    config = read_config(write_toy(tmp_path, screens=10), ["phase1.epochs=1", "phase2.epochs=1"])
    fit(config)
    _, _, labels = load_run(config.run)
    learnt = [data_id([folder]) for folder in config.all_folders]
    splits = tmp_path / "cut" / "splits.csv"
    splits.write_text(splits.read_text() + "\n")
    told = r"has changed since it was trained \(one of labels.csv, windows.csv, splits.csv\)"
    with pytest.raises(ValueError, match=told):
        export_run(config.run, tmp_path / "bundle", version="1")
    assert learnt_by_run(config.run, config) == [*learnt, data_id(config.all_folders)]  # it is still its own
    shutil.rmtree(tmp_path / "cut")
    assert load_run(config.run)[2] == labels == ("dot", "line")
    assert learnt_by_run(config.run, config) == learnt
    data = config.run / "data.json"
    data.write_text(json.dumps({**json.loads(data.read_text()), "learnt": []}))  # of an earlier version
    with pytest.raises(FileNotFoundError):
        learnt_by_run(config.run, config)
    with pytest.raises(FileNotFoundError):
        export_run(config.run, tmp_path / "bundle", version="1")


def test_a_network_that_cannot_be_built_begins_no_run(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=10)
    few = ["run=one", "phase1.epochs=1", "phase2.epochs=1"]
    with pytest.raises(ValueError, match="unknown trunk 'resnet51'"):
        fit(read_config(toml, [*few, "network.trunk=resnet51"]))
    fit(read_config(toml, few))


def test_a_folder_is_trained_in_by_one_process_and_to_its_end_once(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=10)
    few = ["phase1.epochs=1", "phase2.epochs=1"]
    fit(read_config(toml, ["run=start", *few]))
    config = read_config(toml, ["run=mixed", *few, "start=start/phase2.safetensors", "start_share=0.5"])
    told = f"^{config.run} is being trained by another process$"
    with RunFolder(config.run).alone(), pytest.raises(BeingTrainedError, match=told):
        fit(config)
    assert not (config.run / "config.json").exists()
    found = fit(config)

    (config.run / "last.ckpt").unlink()  # as a study does
    kept = {file: file.read_bytes() for file in config.run.iterdir() if file.is_file()}
    assert fit(config).f_measure == found.f_measure
    assert {file: file.read_bytes() for file in config.run.iterdir() if file.is_file()} == kept


def test_weights_of_other_labels_or_of_another_order_begin_no_run(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=3)
    first = read_config(toml, ["run=first"])
    RunFolder(first.run).begin(first, ("dot", "line"))
    for folder in (first.run, tmp_path):  # in no run's folder nothing is known of them
        (folder / "weights.safetensors").write_bytes(b"weights")
    for labels in (("line", "dot"), ("dot", "scratch")):
        config = read_config(toml, ["run=second", "start=first/weights.safetensors"])
        told = rf"first/weights\.safetensors knows the labels dot, line, the data has {', '.join(labels)}$"
        with pytest.raises(ValueError, match=told):
            RunFolder(config.run).refuse_start(config, labels)
        assert not config.run.exists()
    for number, start in enumerate(["first/weights.safetensors", "weights.safetensors"]):
        config = read_config(toml, [f"run=other-{number}", f"start={start}"])
        RunFolder(config.run).refuse_start(config, ("dot", "line"))


def test_another_configuration_is_told_by_the_keys_that_differ(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=3)
    config = read_config(toml, ["seed=3"])
    RunFolder(config.run).begin(config, ("dot", "line"))
    few = read_config(toml, ["seed=4", "phase1.epochs=2", "threads=2"])
    told = r"another configuration \(seed 3 -> 4, phase1\.epochs 5 -> 2\): choose another run folder$"
    with pytest.raises(ValueError, match=told):
        RunFolder(few.run).begin(few, ("dot", "line"))
    many = [f"{phase}.{key}" for phase in ("phase1", "phase2") for key in ("epochs=9", "batch=9", "warmup_steps=9")]
    with pytest.raises(ValueError, match=r"another configuration \(seed .* and 2 more\)"):
        RunFolder(config.run).begin(read_config(toml, many), ("dot", "line"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos\nframe #0"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    file = tmp_path / "last.ckpt"
    file.write_text("before")

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(OSError, match=r"^.*/last\.ckpt cannot be written; is the disk full\? \(.*\)$"):
        replace(file, write)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"last.ckpt": "before"}
