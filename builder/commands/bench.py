"""`builder bench`: how fast a deployment serves, alone or against another."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from builder import console
from builder.commands.common import json_option
from builder.commands.deploy import host_option
from builder.deploy import adopted, plot
from builder.deploy.bench import Point, Result, load_of, measure
from builder.deploy.deployments import Deployment, find_running, look
from builder.deploy.host import open_host
from builder.deploy.host.base import Host
from builder.deploy.model import Guest, jsonable
from builder.errors import UsageError


@click.command()
@click.argument("which", metavar="CTID|NAME")
@host_option
@click.option(
    "--against",
    metavar="CTID|NAME|URL",
    help="Another under the same load, the builder's, adopted or at http://ADDRESS:PORT; shows the ratio.",
)
@click.option(
    "--against-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the API key of a server that is named by its URL.",
)
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
    against_key_file: Path | None,
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
    between. A server that the builder did not make is never stopped: the client in the first one's container asks it
    over the network, with the same load. Exit status 1 when a request failed.

    \b
    Examples:
      builder bench 921
      builder bench 921 --against 950 --concurrency 1,8,32,128 --output docs/measured
      builder bench 921 --against http://10.0.0.150:8000 --against-key-file awq.key
    """
    host = open_host(where)
    guests = look(host)
    if adopted.find(host, guests, which):
        hint = f"name a deployment, and --against {which}"
        raise UsageError(f"{which} is adopted, and the load is made in a container of the builder", hint=hint)
    found = find_running(host, which)
    other = _other(host, guests, against, against_key_file)
    if isinstance(other, Deployment) and other.guest.ctid == found.guest.ctid:
        raise UsageError("--against names the same container", hint="name another")
    if isinstance(other, adopted.Server) and alone:
        raise UsageError("--alone would have to stop a server that is not the builder's", hint="leave it out")
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
    names = "-".join(re.sub(r"[^\w.]+", "_", series.label) for series in result.series)
    name = f"bench-{names}-{re.sub('[-:]|[+].*', '', result.date)}"
    files = [folder / f"{name}.json", folder / f"{name}.svg"]
    files[0].write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    files[1].write_text(plot.svg(result), encoding="utf-8")
    if as_json:
        console.print_json({**made, "files": list(map(str, files))})
    else:
        _show(result)
        click.echo(f"\n{files[0]}, {files[1].name}")
    return 1 if any(point.failed for series in result.series for point in series.points) else 0


def _other(
    host: Host, guests: Sequence[Guest], against: str | None, key_file: Path | None
) -> Deployment | adopted.Server | None:
    if against is not None and "://" in against:
        return adopted.server_at(against, key_file)
    if key_file is not None:
        raise UsageError("--against-key-file is for --against http://ADDRESS:PORT", hint="`builder adopt` keeps a key")
    if against is None:
        return None
    known = adopted.find(host, guests, against)
    return adopted.server(host, known, host.guest(known.ctid)) if known else find_running(host, against)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise UsageError(f"--concurrency is {text!a}", hint="give numbers such as 1,8,32")
    return tuple(sorted({int(part) for part in parts}))


def _show(result: Result) -> None:
    for series in result.series:
        if series.base:
            click.echo(f"{series.name} ({series.label}), {adopted.NOT_OURS}: {series.model}, {series.kind}")
            click.echo(f"  at {series.base}; path: not checked: {adopted.NOT_OURS}")
            continue
        click.echo(f"{series.name} ({series.label}), profile {series.profile}: {series.model}, {series.kind}")
        click.echo(f"  on {', '.join(series.cards) or 'the CPU'}; {series.recipe} {series.digest[:12]}")
        click.echo(f"  path: {', '.join(f'{name} {value}' for name, value in series.path) or 'not checked: no log'}")
    ratios = {ratio.concurrency: f"{ratio.tokens:.2f}" for ratio in result.ratios}
    columns = ["clients", "server", "tokens/s", "requests/s", "TTFT ms", "TPOT ms", "ITL ms", "request ms", "failed"]
    rows = []
    for index in range(len(result.series[0].points)):
        for number, series in enumerate(result.series):
            point = series.points[index]
            cells = [point.concurrency, series.label, *_cells(point)]
            rows.append([*cells, *([ratios.get(point.concurrency, "") if number == 0 else ""] if ratios else [])])
    if ratios:
        first, second = result.series
        columns.append(f"{first.label}/{second.label}")
    click.echo()
    console.print_table(columns, rows, right=columns)
    click.echo("\ntimes: 50th / 90th / 99th percentile")
    if result.alone:
        click.echo("one was stopped while the other was measured")
    for note in result.notes:
        click.echo(note)
    for series in result.series:
        for point in series.points:
            for error in point.errors:
                click.echo(f"{series.label}, {point.concurrency} at once: {error}")


def _cells(point: Point) -> tuple[str, ...]:
    times = (point.ttft_ms, point.tpot_ms, point.itl_ms, point.latency_ms)
    return (
        f"{point.tokens_per_second:,.1f}",
        f"{point.requests_per_second:,.2f}",
        *(" / ".join(f"{value:,.1f}" for value in time) or "-" for time in times),
        str(point.failed),
    )
