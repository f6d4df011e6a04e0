"""docs/tutorial.md, word for word, against a Hub on loopback."""

import json
import subprocess
import sys

from optional_packages import needs
from parts import SUPPORT


def test_every_block_of_the_tutorial_runs(hub, tmp_path):
    needs("datasets", "ot")
    command = [sys.executable, str(SUPPORT / "tutorial_job.py"), str(tmp_path)]
    environment = {**hub[0], "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["blocks"] == 10
    assert found["equal"], "what is on the Hub is what was trained"
    assert 0 <= found["tug_of_war"] <= 1
    assert found["animals-by-command"]["eval_forget_samples"] == 3
    assert found["without-dogs"]["eval_forget_samples"] == found["dogs"]
    assert found["without-dogs"]["eval_forget_accuracy"] < found["without-dogs"]["eval_retain_accuracy"] - 0.3
    assert found["cleaned"]["eval_forget_samples"] == 9 and found["cleaned-by-score"]["eval_forget_samples"] == 6
