"""Tables and a plot of the comparison, from the rows of the CSV file."""

import csv
import os
import statistics

from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS

COLUMNS = ("retain", "forget", "test", "tow", "tow_signed", "cpu_seconds", "share")
TITLES = {"hard": "6 % hardest", "random": "6 % at random"}


def reported(rows: list[dict], names: list[str], winners: dict) -> dict[tuple[str, str], list[dict]]:
    """(selection, name) -> the rows of the reported seeds, each with its share of the retraining time."""
    tuning = max(int(row["seed"]) for row in rows)
    retrain = {(row["selection"], row["seed"]): float(row["cpu_seconds"]) for row in rows if row["name"] == "retrained"}
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        name = row["name"]
        chosen = name in ("retrained", "do nothing")
        if name in names:
            rate, strength = winners[name]
            same = float(row["rate"]) == rate
            chosen = same and (
                row["strength"] == "" if strength is None else float(row["strength"] or "nan") == strength
            )
        if chosen and int(row["seed"]) != tuning:
            seconds = float(row["cpu_seconds"])
            share = seconds / retrain[row["selection"], row["seed"]]
            found.setdefault((row["selection"], name), []).append({**row, "share": share})
    return found


def summary(found: dict, selection: str, names: list[str], winners: dict) -> list[dict]:
    """A line a configuration: mean and standard deviation over the seeds, best Tug-of-War first."""
    lines = []
    for name in ("do nothing", *names, "retrained"):
        if (selection, name) not in found:
            continue
        runs = found[selection, name]
        line = {"selection": selection, "name": name, "n": len(runs), "rate": "", "strength": ""}
        if name in winners:
            line["rate"], line["strength"] = winners[name]
        for column in COLUMNS:
            values = [float(run[column]) for run in runs]
            line[column] = statistics.mean(values)
            line[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else float("nan")
        lines.append(line)
    return sorted(lines, key=lambda line: -line["tow"])


def markdown(lines: list[dict]) -> str:
    """Percentages; mean ± standard deviation. What the strength is stands beside its value."""
    accuracies = [f"{split} %" for split in ("retain", "forget", "test")]
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


def write(rows: list[dict], winners: dict, folder: str, stem: str) -> None:
    """STEM.md, STEM_summary.csv and STEM.png in `folder`."""
    names = [name for name in CONFIGS if name in winners]
    found = reported(rows, names, winners)
    tables = {selection: summary(found, selection, names, winners) for selection in TITLES}
    with open(os.path.join(folder, f"{stem}_summary.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(tables["hard"][0]))
        writer.writeheader()
        writer.writerows(line for lines in tables.values() for line in lines)
    first, commits = rows[-1], sorted({row["commit"] for row in rows})
    seeds = len(found["hard", "do nothing"])
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    facts = (
        f"{over}; {first['device']} (on a CPU one a run); torch {first['torch']}, transformers "
        f"{first['transformers']}, commits {', '.join(commits)}, {first['date']}"
    )
    parts = []
    for selection, lines in tables.items():
        for ablation in (False, True):
            some = [line for line in lines if line["name"] not in CONFIGS or CONFIGS[line["name"]].ablation == ablation]
            if any(line["name"] in CONFIGS for line in some):
                title = f"{TITLES[selection]}{': ablations' if ablation else ''}"
                parts.append(f"## {first['data']}, {title}\n\n{markdown(some)}\n")
    with open(os.path.join(folder, f"{stem}.md"), "w") as file:
        file.write("\n".join(parts) + f"\n{facts}\n")
    plot(found, tables, os.path.join(folder, f"{stem}.png"), f"{first['data']}: bars are means, dots the seeds")
    print("\n".join(parts) + f"\n{facts}")


def plot(found: dict, tables: dict[str, list[dict]], path: str, title: str) -> None:
    """Absolute Tug-of-War: a bar a configuration, mean, and a dot a seed; a panel for each forget set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = {selection: [line for line in lines if line["name"] != "retrained"] for selection, lines in tables.items()}
    height = 1.2 + 0.23 * max(len(lines) for lines in panels.values())
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    styles = {"Sharp": ("#b2182b", ""), "NegGrad+": ("#4393c3", "//"), "released": ("#f4a582", "..")}
    for axis, (selection, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, line in enumerate(reversed(lines)):
            color, hatch = next((s for word, s in styles.items() if line["name"].startswith(word)), ("#bdbdbd", ""))
            axis.barh(place, 100 * line["tow"], color=color, hatch=hatch, edgecolor="white", height=0.8)
            dots = [100 * float(run["tow"]) for run in found[selection, line["name"]]]
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
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
