"""The results, as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from .question import Question
from .rounds import Measured, Outcome, Spread
from .targets import judge


def as_text(name: str, question: Question, results: Sequence[Measured]) -> str:
    """The table of one question. Costs and details are medians; the range is over the rounds."""
    heads = _heads(question, results)
    rows = [row for result in results for row in _rows(result)]
    widths = [_width(column, [heads, *rows]) for column in range(len(heads))]
    lines = [f"{name}: {question.title} ({question.unit}; lower is better)", ""]
    lines += [_line(row, widths) for row in [heads, ["-" * width for width in widths], *rows]]
    lines += _verdicts(results)
    return "\n".join(lines)


def as_json(
    machine: Mapping[str, object],
    settings: Mapping[str, object],
    questions: Mapping[str, Question],
    results: Sequence[Measured],
) -> object:
    """All there is, every sample included, so that a reader may judge by other means than the median."""
    told = [_json_of(questions[result.question], result) for result in results]
    return {"machine": machine, "settings": settings, "results": told}


def _verdicts(results: Sequence[Measured]) -> list[str]:
    lines = [""]
    for result in results:
        if verdict := judge(result):
            against = f" against {verdict.against}" if verdict.against else ""
            says = "reached" if verdict.met else "NOT reached"
            lines.append(f"{result.case.name}: {verdict.found:.2f}{against}, asked is {verdict.asked}: {says}")
    return lines if len(lines) > 1 else []


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
        start = [result.case.name if position == 0 else "", loop]
        if outcome.failure:
            rows.append([*start, f"failed: {outcome.failure}"])
            continue
        cells = [figure(outcome.cost.median), _range(outcome.cost), *_ratio_cells(result, loop)]
        rows.append([*start, *cells, *map(figure, outcome.details().values())])
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


def figure(value: float) -> str:
    """Three digits or more, and no decimals that say nothing."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0 < value < 0.1 else f"{value:.2f}"


def _range(spread: Spread) -> str:
    return f"{figure(spread.low)}..{figure(spread.high)}"


def _json_of(question: Question, result: Measured) -> dict[str, object]:
    verdict = judge(result)
    return {
        "question": result.question,
        "title": question.title,
        "unit": question.unit,
        "case": result.case.name,
        "reference": result.reference,
        "target": asdict(verdict) if verdict else None,
        "loops": {name: _json_of_loop(result, name, outcome) for name, outcome in result.outcomes.items()},
    }


def _json_of_loop(result: Measured, name: str, outcome: Outcome) -> dict[str, object]:
    compared = result.ratio(name)
    return {
        "failure": outcome.failure,
        "cost": asdict(outcome.cost) if outcome.samples else None,
        "ratio": asdict(compared) if compared else None,
        "samples": [{"cost": sample.cost, **sample.details} for sample in outcome.samples],
    }
