"""Pages of the documentation, run as a reader would: block by block, in order, in one folder.

```python      shares names with the page's other python blocks
```sh          runs in bash
```text        what the block before it prints, within `LIMITS`
```            neither is run nor compared

python docs.py FOLDER      runs the pages in full size (`make test-docs`), minutes
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/evaluation.md", "docs/methods.md", "docs/semantics.md")
# Numbers with a point may differ by one of these: a share or a rate by 0.06, percentages by 6, others by their half.
LIMITS = {"share": 0.06, "percent": 6.0, "relative": 0.5}


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks_of(page):
    text = (ROOT / page).read_text("utf-8")
    found = re.finditer(r"^```(python|sh|text)\n(.*?)^```$", text, re.S | re.M)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def run_page(page, change=lambda block: block.text, skip=lambda block: False):
    """Run a page's blocks in the current folder. change(block): other text to run. skip(block): not run.

    Returns [(block that shows output, what was printed)]. Raises for a block that fails.
    """
    names, printed, shown = {}, None, []
    around = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    for block in blocks_of(page):
        if block.language == "text":
            shown += [(block, printed)] if printed is not None else []
            continue
        printed = None
        if skip(block):
            continue
        start = time.monotonic()
        if block.language == "python":
            with contextlib.redirect_stdout(out := io.StringIO()):
                exec(compile(change(block), f"{page}, line {block.line}", "exec"), names)
            printed = out.getvalue()
        else:
            done = subprocess.run(["bash", "-e", "-c", change(block)], env=around, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}, line {block.line}:\n{done.stderr[-3000:]}"
            printed = done.stdout
        print(f"{page}, line {block.line}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return shown


NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def difference(shown, printed, limits=LIMITS):
    """What of a shown text was not printed: None, or a line of it with what stands there instead.

    The shown lines must stand in what was printed, word for word but for numbers with a point.
    """
    expected = [line.split() for line in shown.splitlines() if line.strip()]
    found = [line.split() for line in printed.splitlines() if line.strip()]
    starts = [i for i, words in enumerate(found) if _same(expected[0], words, limits)]
    if not starts:
        return f"{' '.join(expected[0])!r} was not printed: {printed[-500:]!r}"
    for mine, theirs in zip(expected, found[starts[-1] :], strict=False):
        if not _same(mine, theirs, limits):
            return f"{' '.join(mine)!r} is {' '.join(theirs)!r}"
    return None if len(found) - starts[-1] >= len(expected) else f"{len(expected)} lines are shown, fewer were printed"


def _same(mine, theirs, limits):
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        if NUMBER.sub("#", a) != NUMBER.sub("#", b):
            return False
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True):
            if "." not in x and "." not in y:
                if x != y:
                    return False
                continue
            x, y = (float(value.replace(",", "")) for value in (x, y))
            near = limits["share"] if max(abs(x), abs(y)) <= 1 else limits["percent"] if max(x, y) <= 100 else 0.0
            if abs(x - y) > max(near, limits["relative"] * min(abs(x), abs(y)) if max(x, y) > 1 else 0.0):
                return False
    return True


def main(folder):
    """The pages as they stand, from an empty folder; `demo` as README shows it."""
    os.makedirs(folder)
    os.chdir(folder)
    wrong = []
    for page in PAGES:
        for block, printed in run_page(page, skip=lambda block: "me/" in block.text):
            if found := difference(block.text, printed):
                wrong.append(f"{page}, line {block.line}: {found}")
    print("\n".join(wrong) or "what the pages show is what they print")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
