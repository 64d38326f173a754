"""The results, as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .question import Question
from .rounds import Outcome, Spread, ratio, reference


@dataclass(frozen=True)
class Measured:
    """One case of one question, on all loops. Never empty: a plan has one loop at the least."""

    question: str
    case: str
    outcomes: Mapping[str, Outcome]

    @property
    def reference(self) -> str:
        return reference(list(self.outcomes))

    def ratio(self, loop: str) -> Spread | None:
        return ratio(self.outcomes[loop], self.outcomes[self.reference])


def as_text(name: str, question: Question, results: Sequence[Measured]) -> str:
    """The table of one question. Costs and details are medians; the range is over the rounds."""
    heads = _heads(question, results)
    rows = [row for result in results for row in _rows(result)]
    widths = [_width(column, [heads, *rows]) for column in range(len(heads))]
    lines = [f"{name}: {question.title} ({question.unit}; lower is better)", ""]
    lines += [_line(row, widths) for row in [heads, ["-" * width for width in widths], *rows]]
    return "\n".join(lines)


def as_json(machine: Mapping[str, object], settings: Mapping[str, object], results: Sequence[Measured]) -> object:
    """All there is, every sample included, so that a reader may judge by other means than the median."""
    return {"machine": machine, "settings": settings, "results": [_json_of(result) for result in results]}


FIXED_HEADS = ("case", "loop")
RANGE = "min..max"


def _heads(question: Question, results: Sequence[Measured]) -> list[str]:
    versus = f"vs {results[0].reference}"
    details = next((list(o.details()) for r in results for o in r.outcomes.values() if o.samples), [])
    return [*FIXED_HEADS, question.unit, RANGE, versus, RANGE, *details]


def _rows(result: Measured) -> list[list[str]]:
    """A row a loop. That of a failed one is short: the reason takes the place of all figures."""
    rows = []
    for position, (loop, outcome) in enumerate(result.outcomes.items()):
        start = [result.case if position == 0 else "", loop]
        if outcome.failure:
            rows.append([*start, f"failed: {outcome.failure}"])
            continue
        cells = [_figure(outcome.cost.median), _range(outcome.cost), *_ratio_cells(result, loop)]
        rows.append([*start, *cells, *map(_figure, outcome.details().values())])
    return rows


def _ratio_cells(result: Measured, loop: str) -> list[str]:
    if loop == result.reference:
        return ["1", ""]
    compared = result.ratio(loop)
    return ["-", ""] if compared is None else [f"{compared.median:.2f}", _range(compared)]


def _width(column: int, rows: Sequence[Sequence[str]]) -> int:
    """Short rows count in the fixed columns only: the reason of a failure may run over the figures' columns."""
    full = max(map(len, rows))
    return max(len(row[column]) for row in rows if column < len(FIXED_HEADS) or len(row) == full)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    fixed = len(FIXED_HEADS)
    sized = zip(row, widths, strict=False)  # a short row has fewer cells than there are columns
    cells = [cell.ljust(width) if i < fixed else cell.rjust(width) for i, (cell, width) in enumerate(sized)]
    return "  ".join(cells).rstrip()


def _figure(value: float) -> str:
    """Three digits or more, and no decimals that say nothing."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _range(spread: Spread) -> str:
    return f"{spread.low:.2f}..{spread.high:.2f}"


def _json_of(result: Measured) -> dict[str, object]:
    loops = {name: _json_of_loop(result, name, outcome) for name, outcome in result.outcomes.items()}
    return {"question": result.question, "case": result.case, "reference": result.reference, "loops": loops}


def _json_of_loop(result: Measured, name: str, outcome: Outcome) -> dict[str, object]:
    compared = result.ratio(name)
    return {
        "failure": outcome.failure,
        "cost": asdict(outcome.cost) if outcome.samples else None,
        "ratio": asdict(compared) if compared else None,
        "samples": [{"cost": sample.cost, **sample.details} for sample in outcome.samples],
    }
