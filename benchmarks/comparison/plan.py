"""Which runs there are, in three stages, and which grid point wins.

train     originals and references, of the tuning seed and of the reported ones
tune      every grid point of every configuration, on the tuning seed of the hard set
report    what won there, on the reported seeds of both sets
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS, Point
from hf_sharp_unlearn.benchmarks.comparison.setups import SELECTIONS, TUNING_SEED

STAGES = ("train", "tune", "report")
TRAINED = ("original", "retrained")
Key = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A run. name: of a configuration, "original", "retrained" or "do nothing". selection: which samples are forgotten;
    "": an original forgets none. point: learning rate and strength of a configuration."""

    name: str
    seed: int
    selection: str
    point: Point | None = None

    @property
    def key(self) -> Key:
        return _key(self.name, self.selection, self.seed, *(self.point or ("", "")))


def key_of(row: dict) -> Key:
    """Of the job that the row is of."""
    return _key(row["name"], row["selection"], row["seed"], row["rate"], row["strength"])


def _key(name, selection, seed, rate, strength) -> Key:
    numbers = ["" if value in ("", None) else f"{float(value):g}" for value in (rate, strength)]
    return (name, selection, str(seed), *numbers)


def jobs_of(stage: str, names: Sequence[str], seeds: int, winners: dict[str, Point] | None = None) -> list[Job]:
    """The runs of a stage. seeds: how many are reported. winners: for the stage "report"."""
    reported = range(seeds)
    if stage == "train":
        references = [(TUNING_SEED, "hard"), *((seed, selection) for seed in reported for selection in SELECTIONS)]
        return [
            *(Job("original", seed, "") for seed in (TUNING_SEED, *reported)),
            *(Job("retrained", seed, selection) for seed, selection in references),
        ]
    if stage == "tune":
        return [Job(name, TUNING_SEED, "hard", point) for name in names for point in CONFIGS[name].grid]
    return [
        *(Job("do nothing", seed, selection) for seed in reported for selection in SELECTIONS),
        *(
            Job(name, seed, selection, winners[name])
            for name in names
            for selection in SELECTIONS
            for seed in reported
            if selection == "hard" or not CONFIGS[name].ablation
        ),
    ]


def winners_of(rows: list[dict], names: Sequence[str]) -> dict[str, Point]:
    """name -> the grid point with the highest absolute Tug-of-War on the tuning seed; the first one of equals.

    Raises KeyError where a grid point has no row yet.
    """
    tug_of_war = {key_of(row): row["tow"] for row in rows}
    best = {}
    for name in names:
        tuned = {job.point: float(tug_of_war[job.key]) for job in jobs_of("tune", [name], 0)}
        best[name] = max(tuned, key=tuned.get)
    return best
