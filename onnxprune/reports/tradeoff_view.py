"""A trade-off curve as people look at it: a table in a terminal, and a chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnxprune.reports.report import Count
from onnxprune.reports.svg import Axis, Line, line_chart
from onnxprune.tradeoff import Point, Sweep

__all__ = ["chart", "columns", "lines", "rows"]


def columns(sweep: Sweep) -> tuple[str, ...]:
    """Returns the headings of the table, without what was not measured."""
    latency = ("ms", "speed-up") if sweep.latency is not None else ()
    top1 = ("top-1 %",) if sweep.top1 is not None else ()
    return ("target", "MACs", "left", "parameters", "left", "bytes", "left", *latency, "divergence", *top1, "plan")


def rows(sweep: Sweep) -> Iterator[tuple[str, ...]]:
    """Yields the rows of the table: the original, then every point that could be had."""
    yield _row(sweep, Point("original", sweep.macs, sweep.params, sweep.size, 0.0, sweep.top1, sweep.latency))
    for point in sweep.points:
        if not point.error:
            yield _row(sweep, point)


def lines(sweep: Sweep) -> Iterable[str]:
    """Returns what is to be said below the table."""
    return [f"{point.target}: {point.error}" for point in sweep.points if point.error]


def _row(sweep: Sweep, point: Point) -> tuple[str, ...]:
    counts = (Count(sweep.macs, point.macs), Count(sweep.params, point.params), Count(sweep.size, point.size))
    cells = [text for count in counts for text in (f"{count.after:,}", f"{100 * count.ratio:.1f} %")]
    if sweep.latency is not None and point.latency is not None:
        cells += [f"{point.latency:.3g}", f"{sweep.latency / max(point.latency, 1e-9):.2f}x"]
    cells.append(f"{point.divergence:.3g}")
    if point.top1 is not None:
        cells.append(f"{point.top1:.2f}")
    return (point.target, *cells, point.plan)


def chart(sweep: Sweep, *, width: int = 640, height: int = 300) -> str:
    """Returns the curve as an SVG document: top-1, or else the divergence, over what is left."""
    had = sorted((p for p in sweep.points if not p.error), key=lambda p: p.macs)
    of_top1 = sweep.top1 is not None
    told = [f"{p.target}: {p.top1:.2f} %" if p.top1 is not None else f"{p.target}: {p.divergence:.3g}" for p in had]
    shares = [("MACs", [p.macs / max(sweep.macs, 1) for p in had])]
    shares += [("bytes", [p.size / max(sweep.size, 1) for p in had])]
    if sweep.latency is not None:
        shares.append(("latency", [(p.latency or 0.0) / sweep.latency for p in had]))
    values = [p.top1 if p.top1 is not None else p.divergence for p in had]
    return (
        line_chart(
            [Line(name, list(zip(x, values, strict=True)), notes=told) for name, x in shares],
            title=f"{'top-1' if of_top1 else 'divergence'} over what is left of the model",
            x=Axis("left of the original", percent=True, low=0.0, high=1.0),
            y=Axis("top-1 in %") if of_top1 else Axis("divergence of the outputs", log=True),
            width=width,
            height=height,
        )
        + "\n"
    )
