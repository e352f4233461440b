import json
import subprocess
import sys
from pathlib import Path

MUTANTS = 5000


def test_5000_mutated_bundles_never_crash_the_process(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.mutate_bundles", str(bundle), str(tmp_path), str(MUTANTS)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert answer.returncode == 0, answer.stderr[-2000:]
    outcomes = json.loads(answer.stdout)
    assert sum(outcomes.values()) == MUTANTS
    # most are refused by name; the model card, and a spare byte here and there, decide nothing
    assert {"files", "features", "reasoning", "golden", "manifest"} <= outcomes.keys()
    assert outcomes["served"] < MUTANTS / 5
