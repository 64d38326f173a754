"""`python -m bench report FILE...` makes a page of what was measured: tables in Markdown, charts as SVG.

Files are what `python -m bench --json` writes. Of a case that is in several the last one counts, so that a run may be
made in pieces, and a piece again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import chart
from .loops import OURS
from .question import DEFAULT_ROUNDS, DEFAULT_SECONDS, discover
from .report import figure

MOST = 4.0
"""In a chart, times the cost of ours. What is longer is cut off."""

INTRODUCTION = """\
# Performance

This page is made by the benchmarks in this repository, which run on your machine too:

```sh
pip install -e '.[bench]'
{command}
python -m bench report results.json --page {page}
```

**What is measured is CPU time, user and system, of the serving process, for each operation.** It is pinned to one core,
and the load comes from another. The loops take turns, and each figure is the median of {rounds} rounds of {seconds} s.
A ratio is *their cost in ours*, formed within each round: above 1, {ours} is the cheaper. Below, "asked" is what the
project asks of itself, against the loop that is named: the better of those that it wants to be measured by, mostly
uvloop and rloop. Of {asked} such lines {met} are reached.
{nearness}"""

NEARNESS = """
It was measured while a cache line went to and fro between the two cores in {near} ns or less. On a virtual machine
that changes as it runs; farther apart a request costs more, on all loops
([why]({readme}#how-far-apart-the-cores-are)).
"""

METHOD = """\
## Method and caveats

[The benchmarks' page]({readme}) tells how each figure comes about. What to have in mind:

- The sender pays for delivery on loopback, on all loops. That brings ratios closer to 1.
- Load and server wait for each other, so latencies are those of a system at its limit.
- Two cores of one virtual machine are not a quiet place, and not always equally far apart ("cores apart ns"). A ratio
  whose range includes 1 says nothing.
- An echo server does nothing. An application adds its own time to both sides of a ratio.
- System calls are counted while strace slows them down, so turns of the loop are longer there than elsewhere.
- A loop that fails in a case is shown with the reason; nothing is left out.
"""


@dataclass(frozen=True)
class Results:
    machine: Mapping[str, Any]
    rounds: str
    seconds: str
    near: str
    """So many nanoseconds, or None."""
    cases: Sequence[Mapping[str, Any]]

    def by_question(self) -> dict[str, list[Mapping[str, Any]]]:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for case in self.cases:
            found.setdefault(case["question"], []).append(case)
        return found


def read(paths: Sequence[Path]) -> Results:
    runs = [json.loads(path.read_text()) for path in paths]
    cases = {(case["question"], case["case"]): case for run in runs for case in run["results"]}
    rounds, seconds, near = (_setting(runs, name) for name in ("rounds", "seconds", "near"))
    return Results(runs[-1]["machine"], rounds, seconds, near, list(cases.values()))


def _setting(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    return " or ".join(sorted({str(run["settings"].get(name)) for run in runs}))


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The first columns are aligned to the left, all others to the right."""
    lines = [heads, ["---" if index < left else "--:" for index in range(len(heads))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine_table(machine: Mapping[str, Any]) -> str:
    wanted = ("date", "kernel", "cpu", "cpus", "python", "loops", "packages", "absent")
    rows = []
    for name in wanted:
        value = machine.get(name)
        told = ", ".join(f"{key} {value[key]}" for key in value) if isinstance(value, dict) else str(value)
        if told and value:
            rows.append((name, told))
    return table(("", ""), rows, left=2)


def target_table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        target = case["target"]
        if target:
            cost = f"{figure(case['loops'][OURS]['cost']['median'])} {short_unit(case['unit'])}"
            found = f"{target['found']:.2f}" + (f" ({target['against']})" if target["against"] else "")
            met = "yes" if target["met"] else "**no**"
            rows.append((case["question"], case["case"], cost, found, target["asked"], met))
    return table(("question", "case", OURS, "ratio", "asked", "reached"), rows, left=2)


def short_unit(unit: str) -> str:
    """Without what the headline says anyway, and without what follows a comma."""
    return unit.removeprefix("CPU ").partition(",")[0]


def question_table(cases: Sequence[Mapping[str, Any]]) -> str:
    samples = [loop["samples"] for case in cases for loop in case["loops"].values() if loop["samples"]]
    details = [name for name in (samples[0][0] if samples else {}) if name != "cost"]
    rows = []
    for case in cases:
        for position, (name, loop) in enumerate(case["loops"].items()):
            start = [case["case"] if position == 0 else "", name]
            rows.append([*start, *loop_cells(loop, details)])
    return table(("case", "loop", cases[0]["unit"], "min..max", "ratio", "min..max", *details), rows, left=2)


def loop_cells(loop: Mapping[str, Any], details: Sequence[str]) -> list[str]:
    if loop["failure"]:
        return [f"failed: {loop['failure']}", *[""] * (3 + len(details))]
    ratio = loop["ratio"]
    cells = [figure(loop["cost"]["median"]), _range(loop["cost"])]
    cells += [f"{ratio['median']:.2f}", _range(ratio)] if ratio else ["", ""]
    return cells + [figure(_median(loop["samples"], name)) for name in details]


def _range(spread: Mapping[str, float]) -> str:
    return f"{figure(spread['low'])}..{figure(spread['high'])}"


def _median(samples: Sequence[Mapping[str, float]], name: str) -> float:
    ordered = sorted(sample[name] for sample in samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Charts
# ---------------------------------------------------------------------------------------------------------------------


def question_chart(name: str, cases: Sequence[Mapping[str, Any]]) -> str | None:
    """The loops' costs in that of ours; a cost that is a ratio by itself as it is."""
    by_itself = all(case["target"] and case["target"]["against"] is None for case in cases)
    groups = []
    for case in cases:
        bars = []
        for loop, measured in case["loops"].items():
            if measured["failure"]:
                continue
            value = measured["cost"]["median"] if by_itself else measured["ratio"] and measured["ratio"]["median"]
            if value:
                bars.append(chart.Bar(loop, value))
        if bars:
            groups.append(chart.Group(case["case"], bars))
    if not groups:
        return None
    unit = cases[0]["unit"]
    subtitle = unit if by_itself else f"{unit}, in that of {OURS}; shorter is better"
    return chart.draw(f"{name}: {cases[0]['title']}", subtitle, groups, mark=1.0, most=MOST)


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def command(results: Results) -> str:
    """What makes such results."""
    parts = ["python -m bench"]
    usual = {name for name, question in discover().items() if any(case.default for case in question.cases)}
    if not usual <= results.by_question().keys():
        parts += results.by_question()
    settings = (
        ("--rounds", results.rounds, DEFAULT_ROUNDS),
        ("--seconds", results.seconds, DEFAULT_SECONDS),
        ("--near", results.near, None),
    )
    for option, value, default in settings:
        if value != str(default) and " or " not in value:
            parts.append(f"{option} {value}")
    return " ".join([*parts, "--json results.json"])


def write_page(results: Results, page: Path, readme: str) -> None:
    """The page, and the charts in a folder of its name beside it."""
    charts = page.with_suffix("")
    charts.mkdir(parents=True, exist_ok=True)
    targets = [case["target"] for case in results.cases if case["target"]]
    met = sum(target["met"] for target in targets)
    about = {"rounds": results.rounds, "seconds": results.seconds, "asked": len(targets), "met": met}
    about["nearness"] = "" if results.near == "None" else NEARNESS.format(near=results.near, readme=readme)
    parts = [INTRODUCTION.format(page=page, ours=OURS, command=command(results), **about)]
    parts += ["## In short\n", machine_table(results.machine) + "\n", target_table(results.cases) + "\n"]
    for name, cases in results.by_question().items():
        parts.append(f"## {name}\n\n{cases[0]['title'][:1].upper()}{cases[0]['title'][1:]}.\n")
        if drawn := question_chart(name, cases):
            (charts / f"{name}.svg").write_text(drawn)
            parts.append(f"![{name}]({charts.name}/{name}.svg)\n")
        parts.append(question_table(cases) + "\n")
    parts.append(METHOD.format(readme=readme))
    page.write_text("\n".join(parts))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what --json has written")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="default: %(default)s")
    given = parser.parse_args(arguments)
    write_page(read(given.files), given.page, "../bench/README.md")
    print(given.page)
    return 0
