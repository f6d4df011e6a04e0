"""`sharp-unlearn demo`: see `demo`."""

from collections.abc import Sequence
from dataclasses import dataclass

from .folders import claim, letting_go
from .options import option, refuse_finished
from .parsing import UsageError, parse


@dataclass
class Demo:
    _argument_group_name = "demo"

    seeds: int = option("number of runs, seeds 0, 1, ...; more print a spread", 1)
    output_dir: str = option("where table, plots, report and models are written", "demo_output")
    overwrite: bool = option("replace results that are there already", False)


@letting_go()
def main(argv: Sequence[str]) -> None:
    (options,) = parse(
        "demo",
        "Train a timm ResNet on scikit-learn's digits, 5 %% of them with a wrong label, retrain it without them, "
        "unlearn them with three methods, print one table and write a report on Sharp MinMax.",
        (Demo,),
        argv,
    )
    if options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: must be a whole number >= 1.")
    claim(options.output_dir)
    refuse_finished(options.output_dir, "results.json", options.overwrite)
    from .. import demo

    demo.run_demo(seeds=options.seeds, output_dir=options.output_dir)
