"""`builder deploy`, `rollback`, `destroy`, `templates`: put templates on a host and take them away again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from builder import console, pack
from builder.commands.common import beside, json_option
from builder.deploy import containers, plan, run
from builder.deploy import profile as profiles
from builder.deploy.deployments import TEMPLATE, deployments, find, look
from builder.deploy.host import open_host
from builder.deploy.inside import plain
from builder.deploy.model import jsonable
from builder.errors import UsageError
from builder.recipe import load
from builder.recipe.model import Recipe
from builder.stage import KINDS

host_option = click.option(
    "--host",
    "where",
    default="pct",
    show_default=True,
    metavar="HOST",
    help="pct: this Proxmox machine; ssh:[USER@]HOST[:PORT]: that one; lxc: plain LXC here.",
)
file_option = click.option(
    "--containers",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="containers.toml or phoenix_lxc_configs.json; else the one in this folder, if any.",
)


@click.command()
@click.option("--ctid", type=click.IntRange(100, 999999999), required=True, help="Id of the container.")
@click.option("--profile", help="What it serves; the entry's profile when left out.")
@host_option
@click.option("--recipe", type=click.Path(path_type=Path, exists=True), help="Recipe of profile and template.")
@click.option("--variant", help="Variant of the recipe; its DefaultVariant when left out.")
@click.option(
    "--template",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The template's file; the newest of the recipe in artifacts/ when left out.",
)
@file_option
@click.option("--name", help="Host name, and name of the deployment.")
@click.option("--ip", help="Address with prefix length, or dhcp.")
@click.option("--gateway", help="Gateway of that network.")
@click.option("--bridge", help="Bridge of the host.")
@click.option("--mac", help="MAC address; derived from name and id when left out.")
@click.option("--gpus", help="Numbers of the cards, such as 1 or 0,1; the emptiest when left out.")
@click.option("--memory", type=int, help="Memory in MiB.")
@click.option("--cores", type=int, help="CPU cores.")
@click.option("--storage", help="Storage of the root disk.")
@click.option("--root", type=int, help="Size of the root disk in GiB.")
@click.option("--models", multiple=True, metavar="HOST:CONTAINER", help="A folder of models; may be repeated.")
@click.option("--listen", help="Address that vLLM listens on; the container's own when left out.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the API key; else $BUILDER_API_KEY, else a new one is made and kept.",
)
@click.option(
    "--fallback",
    is_flag=False,
    flag_value=plan.OWN_FALLBACK,
    metavar="[PROFILE]",
    help="Profile to try when the first does not come up; its own Fallback when none is named.",
)
@click.option("--full", is_flag=True, help="Never a linked clone.")
@click.option("--replace", "replacing", is_flag=True, help="Take the place of the deployment of this name.")
@click.option("--resume", "resuming", is_flag=True, help="Go on with the run that was cut short.")
@click.option(
    "--deadline",
    type=click.IntRange(1, 1800),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="How long the first answer may take; the service itself gives up after 1800.",
)
@click.option("--no-check", is_flag=True, help="Go on in spite of what `builder check --quick` calls an error.")
@click.option("--dry-run", is_flag=True, help="Print the commands in order; change nothing.")
@json_option
def deploy(**given: Any) -> None:
    """Put a template on a host, clone it, give it cards and a profile, and wait until it answers.

    \b
    Examples:
      builder deploy --ctid 921 --profile fp8
      builder deploy --ctid 921 --profile fp8 --host ssh:root@pve --dry-run
      builder deploy --ctid 921 --profile fp8 --replace --fallback awq
      builder deploy --ctid 921 --resume
    """
    as_json, dry = given["as_json"], given["dry_run"]
    progress = console.progress(as_json or dry)
    host = open_host(given["where"], dry=dry, say=progress.say)

    def secrets(made: plan.Plan) -> profiles.secrets.Secrets:
        kept = profiles.secrets.kept(host.name, made.container.name)
        return profiles.secrets.obtain(given["api_key_file"], kept, os.environ, keep=not dry)

    if given["resuming"]:
        if dry:
            raise UsageError("--resume and --dry-run exclude each other")
        done = run.resume(host, given["ctid"], secrets, progress, deadline=given["deadline"])
    else:
        loaded = containers.load(given["file"])
        for finding in loaded.findings:
            if finding.ctid in (None, given["ctid"]):
                progress.say(f"{loaded.source}: {finding.text}")
        done = run.deploy(
            host,
            given["ctid"],
            lambda: plan.make(_wish(given, loaded), loaded, host, progress),
            secrets,
            progress,
            deadline=given["deadline"],
        )
    _show(done, host.name, dry, as_json)


def _wish(given: dict[str, Any], loaded: containers.Loaded) -> plan.Wish:
    entry = loaded.containers.get(given["ctid"])
    name = given["profile"] or (entry.profile if entry else None)
    recipe = load(given["recipe"] or _recipe_of(name, given["ctid"]), KINDS, given["variant"])
    return plan.Wish(
        ctid=given["ctid"],
        recipe=recipe,
        profile=given["profile"],
        template=given["template"] or _newest(recipe),
        overrides={key: value for key, value in _overrides(given).items() if value is not None},
        fallback=given["fallback"],
        full=given["full"],
        replace=given["replacing"],
        listen=given["listen"],
        check=not given["no_check"],
    )


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    gpus = given["gpus"]
    return {
        "name": given["name"],
        "ip": given["ip"],
        "gateway": given["gateway"],
        "bridge": given["bridge"],
        "mac": given["mac"],
        "gpus": None if gpus is None else _numbers(gpus),
        "memory_mib": given["memory"],
        "cores": given["cores"],
        "storage": given["storage"],
        "root_gib": given["root"],
        "models": given["models"] or None,
    }


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip()) if text != "none" else ()
    except ValueError as error:
        raise UsageError(f"--gpus is {text!a}", hint="give numbers such as 0 or 0,1, or none") from error


def _recipe_of(profile: str | None, ctid: int) -> Path:
    if profile is None:
        hint = "give --profile, or --recipe to serve what the vllm_ keys of its entry say"
        raise UsageError("neither a profile nor a recipe is named", where=f"container {ctid}", hint=hint)
    return profiles.find(profile)


def _newest(recipe: Recipe) -> Path:
    folder = beside(recipe, "artifacts")
    found = pack.newest(folder, recipe.full_name, recipe.distribution.architecture)
    if found is None:
        hint = f"run `builder template {recipe.directory}`"
        raise UsageError(f"no template of {recipe.full_name}", where=folder, hint=hint)
    return found


def _show(done: run.Deployed, host: str, dry: bool, as_json: bool) -> None:
    container = done.plan.container
    if as_json:
        told = {"plan": jsonable(done.plan), "profile": done.profile, "commands": list(done.commands), "dry_run": dry}
        console.print_json(told)
        return
    if dry:
        click.echo("\n".join(done.commands))
        return
    click.echo(f"{container.name}: container {container.ctid} on {host} serves {done.profile}")
    click.echo(f"API key: {profiles.secrets.kept(host, container.name)}")


@click.command()
@click.argument("ctid", type=int)
@host_option
@json_option
def rollback(ctid: int, where: str, as_json: bool) -> None:
    """Take back the run of a container that was cut short: killed, disconnected, or the machine went down.

    \b
    Example:
      builder rollback 921
    """
    progress = console.progress(as_json)
    taken = run.rollback(open_host(where, say=progress.say), ctid, progress)
    if as_json:
        console.print_json({"ctid": ctid, "run": taken.run, "steps": [state.name for state in taken.steps]})
    else:
        click.echo(f"container {ctid}: the run of {taken.started} is rolled back")


@click.command()
@click.argument("which", metavar="CTID|NAME")
@host_option
@click.option("--old", is_flag=True, help="Remove the stopped ones that a --replace left, not the one that serves.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def destroy(which: str, where: str, old: bool, yes: bool, as_json: bool) -> None:
    """Stop and remove a deployment; only what the builder made.

    \b
    Examples:
      builder destroy 921
      builder destroy vllm-fp8 --old --yes
    """
    host = open_host(where)
    found = find(host, which)
    chosen = run.retired(host, found.mark.name) if old else (found,)
    if not chosen:
        raise UsageError(f"no stopped deployment of {found.mark.name}", where=host.name)
    listed = ", ".join(f"{each.guest.ctid} ({plain(each.mark.name)})" for each in chosen)
    if not yes:
        click.confirm(f"Remove {listed} and what is in it?", abort=True, err=True)
    for each in chosen:
        run.destroy(host, each, console.progress(as_json))
    if as_json:
        console.print_json({"destroyed": [each.guest.ctid for each in chosen]})
    else:
        click.echo(f"removed {listed}")


@click.group()
def templates() -> None:
    """Templates on a host.

    \b
    Example:
      builder templates ls
    """


@templates.command("ls")
@host_option
@json_option
def templates_ls(where: str, as_json: bool) -> None:
    """List the templates that the builder made, with their clones.

    \b
    Example:
      builder templates ls --host ssh:root@pve
    """
    guests = look(open_host(where))
    servers = deployments(guests)
    rows: list[dict[str, Any]] = [
        {
            "ctid": found.guest.ctid,
            "recipe": found.mark.recipe,
            "sha256": found.mark.digest,
            "made": found.mark.made,
            "clones": [each.guest.ctid for each in servers if each.mark.digest == found.mark.digest],
        }
        for found in deployments(guests, TEMPLATE)
    ]
    if as_json:
        console.print_json(rows)
        return

    def clones(row: dict[str, Any]) -> str:
        return ", ".join(map(str, row["clones"])) or "none"

    cells = [
        (row["ctid"], plain(row["recipe"]), plain(row["sha256"])[:12], plain(row["made"]), clones(row)) for row in rows
    ]
    console.print_table(("ctid", "recipe", "sha256", "made", "clones"), cells)


@templates.command("gc")
@host_option
@click.option("--dry-run", is_flag=True, help="Only list them.")
@json_option
def templates_gc(where: str, dry_run: bool, as_json: bool) -> None:
    """Remove templates that have no clones.

    \b
    Example:
      builder templates gc
    """
    host = open_host(where)
    unused = run.unused_templates(host)
    if not dry_run:
        run.remove_templates(host, unused, console.progress(as_json))
    if as_json:
        console.print_json({"removed": [found.guest.ctid for found in unused], "dry_run": dry_run})
    else:
        verb = "would remove" if dry_run else "removed"
        click.echo(f"{verb} {', '.join(str(found.guest.ctid) for found in unused) or 'nothing'}")
