"""What the parts of a GPU check share: their command line, and rows that are on disk as soon as they are known.

A row has a name, a status and values:

    passed, failed     a check that must hold
    measured           a number without a judgement
    reached, missed    a number beside its aim
    skipped            not done, with the reason
    error              a measurement raised; the next one is made all the same
"""

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable

import torch


class Skipped(Exception):
    """A measurement that cannot be made here; the message says why."""


class Part:
    """device, quick: where, and whether at toy size. Rows are written to `name`.json after each."""

    def __init__(self, name: str, device: torch.device, quick: bool, folder: str, limit: float):
        self.name, self.device, self.quick, self.folder = name, device, quick, folder
        self.rows: list[dict] = []
        self._end = time.monotonic() + limit

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the part should be done."""
        return self._end - time.monotonic()

    def add(self, name: str, status: str = "measured", **values) -> None:
        """Add a row, and write all rows: to another file first, so that what lies there is always whole."""
        self.rows.append({"name": name, "status": status, **values})
        path = os.path.join(self.folder, f"{self.name}.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump({"part": self.name, "rows": self.rows}, file, indent=1)
            file.write("\n")
        os.replace(path + ".new", path)
        print(f"{status:<9} {name}  {values}", flush=True)

    def attempt(self, name: str, make: Callable[[], dict | None], needs: float = 0.0) -> dict | None:
        """One measurement: `make` returns the values of its row (or None, if it has added rows itself).

        needs: seconds without which it is not begun. Returns the values, None where there are none. What it raises
        becomes a row; only after an error of the driver, which all that follows would run into, the part ends.
        """
        if self.left() < needs:
            self.add(name, "skipped", reason=f"{max(self.left(), 0):.0f} s were left, it takes about {needs:g}")
            return None
        try:
            values = make()
            if self.gpu:
                torch.cuda.synchronize()  # an error in a kernel shows here, not in the next measurement
        except Skipped as reason:
            self.add(name, "skipped", reason=str(reason))
            return None
        except Exception as error:
            where = traceback.format_exc().splitlines()[-8:]
            self.add(name, "error", reason=f"{type(error).__name__}: {error}"[:1000], where=where)
            if _is_sticky(error):
                raise
            values = None
        if values is not None:
            self.add(name, **values)
        return values

    def check(self, name: str, holds: bool, **values) -> None:
        self.add(name, "passed" if holds else "failed", **values)

    def aim(self, name: str, value: float | None, at_least: float | None = None, at_most: float | None = None) -> None:
        """One of the limits. value: None if it could not be measured."""
        goal = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
        if not self.gpu:
            self.add(name, "skipped", reason=f"the aim {goal} is one for a GPU")
        elif value is None:
            self.add(name, "skipped", reason=f"what the aim {goal} is about was not measured")
        else:
            reached = value >= at_least if at_least is not None else value <= at_most
            self.add(name, "reached" if reached else "missed", found=value, aim=goal)

    def free(self) -> None:
        """Give back what the last measurement held."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()


def _is_sticky(error: Exception) -> bool:
    """True for errors after which a process cannot use the GPU any more: an illegal access, a failed assertion."""
    return not isinstance(error, torch.cuda.OutOfMemoryError) and "CUDA error" in str(error)


def run_part(name: str, doc: str, run: Callable[[Part], None]) -> None:
    """The command line of a part."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output-dir", default=".")
    parser.add_argument("--limit", type=float, default=3600)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")
    if options.device == "cpu":
        torch.set_num_threads(1)
    run(Part(name, torch.device(options.device), options.quick, options.output_dir, options.limit))
