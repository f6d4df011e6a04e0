"""Tables and a plot of the comparison, from the rows of the CSV file."""

import csv
import statistics
from collections.abc import Sequence

from hf_sharp_unlearn.analysis import new_figure
from hf_sharp_unlearn.benchmarks.comparison import runs
from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS
from hf_sharp_unlearn.benchmarks.comparison.plan import Job, key_of, winners_of
from hf_sharp_unlearn.benchmarks.comparison.setups import SELECTIONS, TUNING_SEED
from hf_sharp_unlearn.runtime import write_text

COLUMNS = (*runs.SPLITS, "tow", "tow_signed", "cpu_seconds", "share")
TITLES = {"hard": "6 % hardest", "random": "6 % at random"}
Reported = dict[tuple[str, str], list[dict]]  # (selection, name) -> rows


def reported(rows: list[dict], names: Sequence[str]) -> Reported:
    """The rows of the reported seeds, each with its share of the retraining time."""
    retrain = {(row["selection"], row["seed"]): float(row["cpu_seconds"]) for row in rows if row["name"] == "retrained"}
    points = {"retrained": None, "do nothing": None, **winners_of(rows, names)}
    found: Reported = {}
    for row in rows:
        name, selection, seed = row["name"], row["selection"], int(row["seed"])
        if name in points and seed != TUNING_SEED and key_of(row) == Job(name, seed, selection, points[name]).key:
            share = float(row["cpu_seconds"]) / retrain[selection, row["seed"]]
            found.setdefault((selection, name), []).append({**row, "share": share})
    return found


def summaries(rows: list[dict], names: Sequence[str]) -> dict[str, list[dict]]:
    """selection -> a line a configuration: mean and standard deviation over the seeds, best Tug-of-War first."""
    found, winners = reported(rows, names), winners_of(rows, names)
    lines: dict[str, list[dict]] = {selection: [] for selection in SELECTIONS}
    for selection in SELECTIONS:
        for name in ("do nothing", *(name for name in CONFIGS if name in names), "retrained"):
            if (selection, name) not in found:
                continue
            seeds = found[selection, name]
            rate, strength = winners.get(name, ("", ""))
            line = {"selection": selection, "name": name, "n": len(seeds), "rate": rate, "strength": strength}
            for column in COLUMNS:
                values = [float(row[column]) for row in seeds]
                line[column] = statistics.mean(values)
                line[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else float("nan")
            lines[selection].append(line)
        lines[selection].sort(key=lambda line: -line["tow"])
    return lines


def table(lines: list[dict]) -> str:
    """Markdown: percentages; mean ± standard deviation. What the strength is stands beside its value."""
    accuracies = [f"{split} %" for split in runs.SPLITS]
    head = ("method", "learning rate", "strength", *accuracies, "ToW %", "signed %", "CPU s", "% of retraining")
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        spread = line["n"] > 1

        def cell(column, scale, digits, line=line, spread=spread):
            tail = f" ± {scale * line[column + '_sd']:.{digits}f}" if spread else ""
            return f"{scale * line[column]:.{digits}f}{tail}"

        kind = CONFIGS[line["name"]].strength if line["name"] in CONFIGS else ""
        strength = f"{kind} {line['strength']:g}" if line["strength"] not in ("", None) else ""
        rate = f"{line['rate']:g}" if line["rate"] != "" else ""
        rates = [cell(column, 100, 1) for column in ("retain", "forget", "test", "tow", "tow_signed")]
        cost = [f"{line['cpu_seconds']:.0f}", f"{100 * line['share']:.0f}"]
        cells = [line["name"], rate, strength, *rates, *cost]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def facts(rows: list[dict], lines: list[dict]) -> str:
    """What the numbers are of, and of where."""
    last, commits, seeds = rows[-1], sorted({row["commit"] for row in rows}), lines[0]["n"]
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"{over}; {last['device']} (on a CPU one a run); torch {last['torch']}, transformers "
        f"{last['transformers']}, commits {', '.join(commits)}, {last['date']}"
    )


def write(rows: list[dict], names: Sequence[str], stem: str) -> None:
    """STEM.md and STEM_summary.csv, with tables by forget set, ablations apart; prints the tables."""
    both = summaries(rows, names)
    with open(f"{stem}_summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(both["hard"][0]))
        writer.writeheader()
        writer.writerows(line for lines in both.values() for line in lines)
    sections = []
    for selection, lines in both.items():
        for ablation in (False, True):
            some = [line for line in lines if line["name"] not in CONFIGS or CONFIGS[line["name"]].ablation == ablation]
            if any(line["name"] in CONFIGS for line in some):
                title = f"{TITLES[selection]}{': ablations' if ablation else ''}"
                sections.append(f"## {rows[0]['data']}, {title}\n\n{table(some)}\n")
    text = "\n".join([*sections, f"{facts(rows, both['hard'])}\n"])
    write_text(f"{stem}.md", text)
    print(text)


def draw(rows: list[dict], names: Sequence[str], path: str) -> None:
    """Absolute Tug-of-War: a bar a configuration, mean, and a dot a seed; a panel for each forget set."""
    from matplotlib.patches import Patch

    found = reported(rows, names)
    panels = {selection: [line for line in lines if line["name"] != "retrained"]
              for selection, lines in summaries(rows, names).items()}  # fmt: skip
    figure = new_figure(13, 1.2 + 0.23 * max(len(lines) for lines in panels.values()))
    styles = {"Sharp": ("#b2182b", ""), "NegGrad+": ("#4393c3", "//"), "released": ("#f4a582", "..")}
    for axis, (selection, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, line in enumerate(reversed(lines)):
            color, hatch = next((s for word, s in styles.items() if line["name"].startswith(word)), ("#bdbdbd", ""))
            axis.barh(place, 100 * line["tow"], color=color, hatch=hatch, edgecolor="white", height=0.8)
            dots = [100 * float(row["tow"]) for row in found[selection, line["name"]]]
            axis.plot(dots, [place] * len(dots), "o", color="black", markersize=3)
        axis.set_yticks(range(len(lines)), [line["name"] for line in reversed(lines)], fontsize=8)
        axis.set_ylim(-0.6, len(lines) - 0.4)
        axis.set_xlim(0, 100)
        axis.set_xlabel("Tug-of-War, absolute (%); higher is better")
        axis.set_title(TITLES[selection], fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    labels = {"Sharp": "Sharp MinMax", "NegGrad+": "NegGrad+", "released": "released code's semantics"}
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=labels[word]) for word, (c, h) in styles.items()]
    handles.append(Patch(facecolor="#bdbdbd", label="other methods"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{rows[0]['data']}: bars are means, dots the seeds", fontsize=10)
    figure.savefig(path, dpi=110)
