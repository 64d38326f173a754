"""Bar charts as SVG: groups of horizontal bars on one scale, which may have a mark."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = {
    "uringloop": "#1b6ca8",
    "uvloop": "#e08e2b",
    "rloop": "#a23b52",
    "asyncio": "#8a8a8a",
    "C": "#3c8d4f",
    "zuvloop": "#7d5ba6",
    "rsloop": "#c2a83e",
    "blazio": "#4f9d9d",
    "zloop": "#b5651d",
}
OTHER = "#555555"

WIDTH, NAMES, FIGURES = 760, 190, 70
BAR, GAP, GROUP_GAP, TOP, BOTTOM = 13, 2, 10, 56, 12
BARS = WIDTH - NAMES - FIGURES


@dataclass(frozen=True)
class Bar:
    name: str
    value: float


@dataclass(frozen=True)
class Group:
    name: str
    bars: Sequence[Bar]


def draw(title: str, subtitle: str, groups: Sequence[Group], *, mark: float | None, most: float) -> str:
    """A bar that is longer than `most` is cut off there; its figure tells."""
    height = TOP + sum(_height(group) + GROUP_GAP for group in groups) + BOTTOM
    scale = BARS / max(min(most, bar.value) for group in groups for bar in group.bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="12" y="38" fill="#555555">{escape(subtitle)}</text>',
    ]
    y = TOP
    for group in groups:
        parts += _group(group, y, scale, most)
        y += _height(group) + GROUP_GAP
    if mark is not None:
        x = NAMES + mark * scale
        parts.append(f'<path d="M{x:.1f} {TOP - 8}V{height - BOTTOM}" stroke="#222222" stroke-dasharray="3 3"/>')
    return "\n".join([*parts, "</svg>", ""])


def _height(group: Group) -> int:
    return len(group.bars) * (BAR + GAP)


def _group(group: Group, y: int, scale: float, most: float) -> list[str]:
    parts = [f'<text x="12" y="{y + BAR - 2}">{escape(group.name)}</text>']
    for bar in group.bars:
        length = min(bar.value, most) * scale
        colour = COLOURS.get(bar.name, OTHER)
        parts.append(f'<rect x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        told = escape(f"{bar.value:.2f} {bar.name}")
        parts.append(_figure(told, NAMES + length, y + BAR - 2))
        y += BAR + GAP
    return parts


def _figure(text: str, end: float, y: int) -> str:
    """Behind the bar, or within it where it is long."""
    if end < NAMES + BARS * 0.8:
        return f'<text x="{end + 5:.1f}" y="{y}" font-size="11">{text}</text>'
    return f'<text x="{end - 5:.1f}" y="{y}" font-size="11" fill="#ffffff" text-anchor="end">{text}</text>'
