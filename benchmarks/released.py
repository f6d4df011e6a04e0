"""What does the released code do differently, and what becomes of the result?

    python -m hf_sharp_unlearn.benchmarks.released --data cifar100-mini --scores cifar100_cscores_train.npy

The loop in `comparison/released_loop.py` lists five deviations from the paper's description and makes them. Here it
stands beside Sharp MinMax with the parts of the paper, and beside the form that is the library's default, tuned alike.
The rows are those of vision.py, in its file, and are not run again where they are there; the table is written to
released_CONFIG_DATA.md.
"""

import argparse
import contextlib
import os

from hf_sharp_unlearn.benchmarks.comparison import stages, tables
from hf_sharp_unlearn.benchmarks.comparison.plan import TRAINED
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, results_folder
from hf_sharp_unlearn.runtime import write_text

NAMES = ("released code's semantics", "Sharp MinMax, ASAM 1.0", "Sharp MinMax, overlap")


def run(options: argparse.Namespace) -> bool:
    """Run what is missing. Returns True when every row is there and the table is written."""
    folder = results_folder(options.output_dir)
    rows = stages.complete(os.path.join(folder, f"vision_{options.config}.csv"), NAMES, options)
    if rows is None:
        return False
    rows = [row for row in rows if row["name"] in (*NAMES, *TRAINED, "do nothing")]
    lines = tables.summaries(rows, NAMES)["hard"]
    text = f"## {rows[0]['data']}, {tables.TITLES['hard']}\n\n{tables.table(lines)}\n\n{tables.facts(rows, lines)}\n"
    write_text(os.path.join(folder, f"released_{options.config}_{rows[0]['data']}.md"), text)
    print(text)
    return True


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    stages.add_options(parser)
    with contextlib.suppress(KeyboardInterrupt):
        run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
