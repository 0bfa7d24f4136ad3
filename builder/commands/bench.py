"""`builder bench`: how fast a deployment serves, alone or against another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from builder import console
from builder.commands.common import json_option
from builder.commands.deploy import host_option
from builder.deploy import plot
from builder.deploy.bench import Point, Result, load_of, measure
from builder.deploy.deployments import find
from builder.deploy.host import open_host
from builder.deploy.model import jsonable
from builder.errors import UsageError


@click.command()
@click.argument("which", metavar="CTID|NAME")
@host_option
@click.option("--against", metavar="CTID|NAME", help="Another deployment under the same load; shows the ratio.")
@click.option("--concurrency", metavar="N,N...", help="Clients at once; the profile's when left out.")
@click.option("--input-tokens", type=click.IntRange(1), help="Of each request; the profile's when left out.")
@click.option("--output-tokens", type=click.IntRange(1), help="Of each answer; the profile's when left out.")
@click.option(
    "--prompts", type=click.IntRange(1), help="Requests of each measurement; enough for 5 seconds when left out."
)
@click.option("--alone", is_flag=True, help="Stop the other's service while one is measured, though both fit.")
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench"),
    show_default=True,
    help="Where the JSON file and the plot go.",
)
@json_option
def bench(
    which: str,
    where: str,
    against: str | None,
    concurrency: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    prompts: int | None,
    alone: bool,
    folder: Path,
    as_json: bool,
) -> int:
    """Measure a deployment with vLLM's own `vllm bench serve` in its container, after a warm-up.

    Two that share a card and do not fit it together are measured one after the other, the other's service stopped in
    between. Exit status 1 when a request failed.

    \b
    Examples:
      builder bench 921
      builder bench 921 --against 950 --concurrency 1,8,32,128 --output docs/measured
    """
    host = open_host(where)
    found = find(host, which)
    other = find(host, against) if against else None
    if other is not None and other.guest.ctid == found.guest.ctid:
        raise UsageError("--against names the same container", hint="name another")
    if not found.guest.running:
        raise UsageError("is stopped", where=f"container {found.guest.ctid}", hint="start it first")
    load = load_of(
        host,
        found,
        concurrency=_numbers(concurrency),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prompts=prompts,
    )
    folder.mkdir(parents=True, exist_ok=True)
    result = measure(host, found, other, load, console.progress(as_json), alone=alone)
    made = jsonable(result)
    names = "-".join(str(series.ctid) for series in result.series)
    base = folder / f"bench-{names}-{re.sub('[-:]|[+].*', '', result.date)}"
    base.with_suffix(".json").write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    base.with_suffix(".svg").write_text(plot.svg(result), encoding="utf-8")
    if as_json:
        console.print_json({**made, "files": [str(base.with_suffix(suffix)) for suffix in (".json", ".svg")]})
    else:
        _show(result)
        click.echo(f"\n{base}.json, {base.name}.svg")
    return 1 if any(point.failed for series in result.series for point in series.points) else 0


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise UsageError(f"--concurrency is {text!a}", hint="give numbers such as 1,8,32")
    return tuple(sorted({int(part) for part in parts}))


def _show(result: Result) -> None:
    for series in result.series:
        click.echo(f"{series.name} ({series.ctid}), profile {series.profile}: {series.model}, {series.kind}")
        click.echo(f"  on {', '.join(series.cards) or 'the CPU'}; {series.recipe} {series.digest[:12]}")
        click.echo(f"  path: {', '.join(f'{name} {value}' for name, value in series.path) or 'not checked: no log'}")
    ratios = {ratio.concurrency: f"{ratio.tokens:.2f}" for ratio in result.ratios}
    columns = ["clients", "ctid", "tokens/s", "requests/s", "TTFT ms", "TPOT ms", "ITL ms", "request ms", "failed"]
    rows = []
    for index in range(len(result.series[0].points)):
        for number, series in enumerate(result.series):
            point = series.points[index]
            cells = [point.concurrency, series.ctid, *_cells(point)]
            rows.append([*cells, *([ratios.get(point.concurrency, "") if number == 0 else ""] if ratios else [])])
    if ratios:
        first, second = result.series
        columns.append(f"{first.ctid}/{second.ctid}")
    click.echo()
    console.print_table(columns, rows, right=columns)
    click.echo("\ntimes: 50th / 90th / 99th percentile")
    if result.alone:
        click.echo("one was stopped while the other was measured")
    for series in result.series:
        for point in series.points:
            for error in point.errors:
                click.echo(f"{series.ctid}, {point.concurrency} at once: {error}")


def _cells(point: Point) -> tuple[str, ...]:
    times = (point.ttft_ms, point.tpot_ms, point.itl_ms, point.latency_ms)
    return (
        f"{point.tokens_per_second:,.1f}",
        f"{point.requests_per_second:,.2f}",
        *(" / ".join(f"{value:,.1f}" for value in time) or "-" for time in times),
        str(point.failed),
    )
