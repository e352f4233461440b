"""Mutates a bundle again and again and loads it: run as a process of its own, so that a crash of a runtime is seen.

    python -m tests.engine.mutate_bundles BUNDLE FOLDER COUNT SEED

Four of five are loaded by ONNX Runtime in float32, which is the fastest; the others in turns by all the runtimes that
are installed, each in all the precisions that it can run the bundle in. Prints one JSON object by runtime and
precision: how many mutants were served, and how many were refused, by the key that was named.
"""

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from engine import BundleError, EngineError, Manifest, RuntimeUnavailable, load, read_golden, self_test
from engine.manifest import FEATURES_FILES, MANIFEST_FILE, file_sha256

RUNTIMES = ("onnxruntime", "openvino")
Way = tuple[str, str]  # runtime and precision


def ways(bundle: Path) -> list[Way]:
    """All the ways in which a whole bundle runs on this CPU."""
    found = []
    for runtime in RUNTIMES:
        for precision in Manifest.read(bundle).precisions:
            try:
                load(bundle, runtime, precision=precision, threads=1).close()
            except RuntimeUnavailable:
                continue
            found.append((runtime, precision))
    return found


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One of: bytes changed, a stretch cut out, doubled or zeroed, the end cut off."""
    at = chance.randrange(len(data))
    length = min(len(data) - at, 1 + int(chance.expovariate(1 / 16)))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at] + chance.randbytes(length) + data[at + length :]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[: at + length] + data[at:]
    if kind == 3:
        return data[:at] + bytes(length) + data[at + length :]
    return data[:at]


def outcome(bundle: Path, way: Way) -> str:
    """`served`, or what the refusal named: the key, or the kind of failure on the golden patches."""
    try:
        runtime, precision = way
        golden = read_golden(bundle, precision)
        backend = load(bundle, runtime, precision=precision, threads=1)
    except BundleError as error:
        return error.key.split(".")[0]
    try:
        self_test(backend, golden)
    except EngineError as error:
        return type(error).__name__
    finally:
        backend.close()
    return "served"


def main(bundle: Path, folder: Path, count: int, seed: int) -> None:
    """Every mutant is one changed file; half of the time the manifest knows of it, so that the file itself is read."""
    chance = random.Random(seed)
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    tried = ways(bundle)
    outcomes: dict[Way, Counter[str]] = {way: Counter() for way in tried}
    mutant = folder / "mutant"
    for number in range(count):
        shutil.rmtree(mutant, ignore_errors=True)
        shutil.copytree(bundle, mutant)
        way = tried[0 if number % 5 else number // 5 % len(tried)]
        read = {MANIFEST_FILE, *manifest["files"]} - {*FEATURES_FILES.values()} | {FEATURES_FILES[way[1]]}
        name = chance.choice(sorted(read))
        (mutant / name).write_bytes(mutate((mutant / name).read_bytes(), chance))
        if name != MANIFEST_FILE and chance.random() < 0.5:
            known = {**manifest, "files": {**manifest["files"], name: file_sha256(mutant / name)}}
            (mutant / MANIFEST_FILE).write_text(json.dumps(known))
        outcomes[way][outcome(mutant, way)] += 1
    sys.stdout.write(json.dumps({" ".join(way): found for way, found in outcomes.items()}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
