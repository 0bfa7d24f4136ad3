"""A bench as a picture: SVG without a library, readable on light and dark ground."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from builder.deploy.bench import Point, Result, Series

_COLOURS = ("#0072b2", "#d55e00")  # told apart by the colour-blind too (Okabe and Ito)
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 300, 240, 64, 82, 84
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.axis { stroke: #57606a; fill: none; }
.grid { stroke: #57606a; stroke-opacity: 0.25; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .axis, .grid { stroke: #9198a1; } }
"""


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    lines: tuple[tuple[str, Callable[[Point], float]], ...]  # dash pattern, value


def svg(result: Result) -> str:
    """The picture: rate and waiting times by the number of clients at once, both series in each panel."""
    panels = _panels(result)
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 62
    load = result.load
    sub = f"{load.input_tokens} tokens in, {load.output_tokens} out; solid: median, dashed: 99th percentile"
    if result.series[0].kind == "embedding":
        sub = f"{load.input_tokens} tokens in; solid: median, dashed: 99th percentile"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(_title(result))}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="22">{escape(_title(result))}</text>',
        f'<text x="{_LEFT}" y="42">{escape(sub)}</text>',
        *_legend(result.series, height - 10),
    ]
    for number, panel in enumerate(panels):
        parts += _draw(panel, result.series, _LEFT + number * (_WIDTH + _GAP))
    return "\n".join((*parts, "</svg>\n"))


def _title(result: Result) -> str:
    names = [f"{series.profile or series.name} ({series.label})" for series in result.series]
    return f"{' and '.join(names)} on {result.host}, {result.date[:10]}"


def _panels(result: Result) -> tuple[_Panel, ...]:
    points = [point for series in result.series for point in series.points]
    rate = "generated tokens" if result.series[0].kind == "completion" else "tokens read"
    panels = [_Panel(f"{rate}, all clients together", "tokens/s", (("", lambda point: point.tokens_per_second),))]
    if all(point.ttft_ms for point in points):
        panels.append(_times("time to the first token", lambda point: point.ttft_ms))
    if all(point.tpot_ms for point in points):
        panels.append(_times("time for each further token", lambda point: point.tpot_ms))
    if len(panels) == 1 and all(point.latency_ms for point in points):
        panels.append(_times("time of a request", lambda point: point.latency_ms))
    return tuple(panels)


def _times(title: str, values: Callable[[Point], Sequence[float]]) -> _Panel:
    return _Panel(title, "ms", (("", lambda point: values(point)[0]), ("5 4", lambda point: values(point)[-1])))


def _draw(panel: _Panel, series: Sequence[Series], left: float) -> Iterator[str]:
    clients = sorted({point.concurrency for each in series for point in each.points})
    most = max(value(point) for _, value in panel.lines for each in series for point in each.points)
    marks = ticks(most)
    low, high = math.log2(clients[0]), math.log2(clients[-1])
    bottom = _TOP + _HEIGHT

    def x(count: int) -> float:
        return left + _WIDTH * ((math.log2(count) - low) / (high - low) if high > low else 0.5)

    def y(value: float) -> float:
        return bottom - _HEIGHT * value / marks[-1]

    yield f'<text x="{left}" y="{_TOP - 10}">{escape(panel.title)}, {panel.unit}</text>'
    for mark in marks:
        yield f'<line class="grid" x1="{left}" y1="{y(mark):.1f}" x2="{left + _WIDTH}" y2="{y(mark):.1f}"/>'
        yield f'<text x="{left - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:,.12g}</text>'
    yield f'<path class="axis" d="M{left} {_TOP}V{bottom}H{left + _WIDTH}"/>'
    for count in clients:
        yield f'<text x="{x(count):.1f}" y="{bottom + 16}" text-anchor="middle">{count}</text>'
    yield f'<text x="{left + _WIDTH / 2}" y="{bottom + 32}" text-anchor="middle">clients at once</text>'
    for each, colour in zip(series, _COLOURS, strict=False):
        for dashes, value in panel.lines:
            places = [(x(point.concurrency), y(value(point))) for point in each.points]
            line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
            dash = f' stroke-dasharray="{dashes}"' if dashes else ""
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
            yield from (f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in places)


def ticks(most: float) -> tuple[float, ...]:
    """Four to eight round numbers from 0 up to at least `most`."""
    if not 1e-9 < most < math.inf:
        return (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(step for factor in (1, 2, 5, 10) if math.ceil(most / (step := factor * power)) <= 7)
    return tuple(round(number * step, 12) for number in range(math.ceil(round(most / step, 9)) + 1))


def _legend(series: Sequence[Series], down: float) -> Iterator[str]:
    across = float(_LEFT)
    for each, colour in zip(series, _COLOURS, strict=False):
        name = f"{each.profile or each.name} ({each.label}): {each.model}{''.join(f', {card}' for card in each.cards)}"
        yield f'<rect x="{across}" y="{down - 10}" width="12" height="12" rx="2" fill="{colour}"/>'
        yield f'<text x="{across + 18}" y="{down}">{escape(name)}</text>'
        across += 40 + 7 * len(name)
