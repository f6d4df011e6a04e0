"""transformers' own Trainer tests, with its Trainer and with ours: `python compare.py CHECKOUT`.

Every test that passes with transformers' Trainer must pass with the adapter, or stand in differences.toml and fail with
the error that is named there. Exits with 1 and says which do not.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
OTHER_CLASSES = ("test_trainer_seq2seq.py",)  # Seq2SeqTrainer, and example scripts
NEEDED = ("conftest.py", "tests/__init__.py", "tests/trainer/trainer_test_utils.py")


@dataclass(frozen=True)
class Difference:
    """reason: why it is meant so. error: a regular expression of how its tests fail. tests: their names."""

    reason: str
    error: str
    tests: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """same, differ: tests that pass with transformers' Trainer, and pass or fail as listed with the adapter. problems:
    what is not as listed. unusable: tests that fail with transformers' Trainer too, and listed ones that did not run.
    """

    same: list[str]
    differ: list[str]
    problems: list[str]
    unusable: list[str]


def read_differences(file: Path = HERE / "differences.toml") -> list[Difference]:
    return [Difference(**entry) for entry in tomllib.loads(file.read_text())["difference"]]


def outcomes(report: Path) -> dict[str, str | None]:
    """Test -> the message of its failure, None where it passed; skipped ones are left out. report: JUnit XML."""
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix("tests.trainer.")
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            found[name] = bad[0].get("message") or ""
        elif case.find("skipped") is None:
            found.setdefault(name, None)
    return found


def compare(
    plain: Mapping[str, str | None], adapted: Mapping[str, str | None], differences: Sequence[Difference]
) -> Comparison:
    listed = {test: difference for difference in differences for test in difference.tests}
    same, differ, problems = [], [], []
    for test in (test for test, message in plain.items() if message is None):
        failure, difference = adapted.get(test, "did not run"), listed.get(test)
        if failure is None and difference is None:
            same.append(test)
        elif failure is None:
            problems.append(f"{test} passes now: take it off the list.")
        elif difference is None:
            problems.append(f"{test} fails, and is not listed: {failure}")
        elif not re.search(difference.error, failure):
            problems.append(f"{test} fails otherwise than with {difference.error!r}: {failure}")
        else:
            differ.append(test)
    if not same:
        problems.append("No test passes with both: nothing has been compared.")
    unusable = [test for test, message in plain.items() if message is not None]
    unusable += [test for test in listed if test not in plain]
    return Comparison(same, differ, problems, unusable)


def run(checkout: Path, home: Path, plugins: Sequence[str]) -> dict[str, str | None]:
    """The outcomes of the checkout's tests with these plugins. home: its stand-in for the Hub; logs are put beside."""
    name = "-".join(plugins)
    report, log, folder = (home.parent / f"{name}{suffix}" for suffix in (".xml", ".log", ""))
    folder.mkdir()  # some tests write where they are started
    files = [file for file in (checkout / "tests" / "trainer").glob("test_train*.py") if file.name not in OTHER_CLASSES]
    command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", "--timeout=600"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [word for plugin in plugins for word in ("-p", plugin)] + sorted(map(str, files))
    settings = {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
    with log.open("w") as output:
        subprocess.run(command, cwd=folder, env={**os.environ, **settings}, stdout=output, stderr=output)
    if not report.exists():
        sys.exit(f"pytest has not run: see {log}")
    return outcomes(report)


def main(checkout: Path) -> int:
    missing = [name for name in NEEDED if not (checkout / name).exists()]
    if missing:
        sys.exit(f"{checkout} is no checkout of transformers: {', '.join(missing)} missing. See {HERE / 'README.md'}")
    folder = Path(tempfile.mkdtemp(prefix="upstream-"))
    home = folder / "home"
    subprocess.run([sys.executable, HERE / "hub.py", home], check=True, capture_output=True)
    plain = run(checkout, home, ["hub"])
    found = compare(plain, run(checkout, home, ["hub", "adapter"]), read_differences())
    passing = sum(message is None for message in plain.values())
    print(
        f"{len(plain)} tests ran, {passing} pass with transformers' Trainer, {len(found.same)} of them with "
        f"UnlearningTrainer too; {len(found.differ)} differ as listed."
    )
    if found.unusable:
        print("Fail with transformers' Trainer, or did not run:", *found.unusable, sep="\n  ")
    if found.problems:
        print("Not as listed:", *found.problems, f"Logs: {folder}", sep="\n  ")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
