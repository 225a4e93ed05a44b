"""`scaleout start`, `stop`, `status`, `actors`, `drain`, `token`, `logs`: a cluster, from the command line.

Errors are one line on stderr, and the exit status is 1.
"""

from __future__ import annotations

import json
import os
import sys

import click

from scaleout._runtime.cluster import control
from scaleout.errors import ScaleoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Group(click.Group):
    """Says what is wrong in one line."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ScaleoutError as error:
            raise click.ClickException(str(error)) from error


_name = click.option("--name", default="default", show_default=True, help="Which cluster.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Starts, stops and shows the nodes of a scaleout cluster."""


@main.command()
@click.option("--head", is_flag=True, help="The first node of a cluster, which keeps its state.")
@click.option("--address", help="HOST:PORT of the head, for any other node.")
@click.option(
    "--host",
    default="",
    help="The address to listen on.  [default: a head's is loopback, others' the one by which they reach the head]",
)
@click.option("--port", default=0, help="The port to listen on.  [default: a free one; a head's is kept]")
@click.option("--num-cpus", type=click.IntRange(0), help="CPUs to lend.  [default: those of this machine]")
@click.option("--num-gpus", type=click.IntRange(0), help="GPUs to lend.  [default: those of this machine]")
@click.option("--resources", default="{}", help="Others, as JSON: '{\"license\": 2}'.")
@click.option("--token-file", type=click.Path(dir_okay=False), help="The join token; or set SCALEOUT_TOKEN.")
@click.option("--block", is_flag=True, help="Stay in the foreground.")
@_name
def start(
    head: bool,
    address: str | None,
    host: str,
    port: int,
    num_cpus: int | None,
    num_gpus: int | None,
    resources: str,
    token_file: str | None,
    block: bool,
    name: str,
) -> None:
    """Start a node on this machine."""
    if head == bool(address):
        raise click.UsageError("either --head for the first node, or --address HOST:PORT of the head for others")
    options = {
        "cluster": name,
        "address": address or "",
        "host": host,
        "port": port,
        "resources": _resources(resources, num_cpus, num_gpus),
    }
    token = _token(token_file, name) if address else None
    if block:
        control.run(options, token)
    started = control.start(options, token)
    click.echo(f"node {started['node_id']} of the cluster {name!r} listens on {started['address']}")
    if not head:
        return
    click.echo(f"\nprograms:        SCALEOUT_ADDRESS={started['address']} python program.py")
    if not host:
        click.echo("other machines:  not these: for them it takes scaleout start --head --host ADDRESS")
    else:
        join = f"SCALEOUT_TOKEN={control.token(name)} scaleout start --address {started['address']}"
        click.echo(f"other machines:  {join}")


def _resources(text: str, num_cpus: int | None, num_gpus: int | None) -> dict[str, float]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not all(isinstance(v, (int, float)) and v >= 0 for v in found.values()):
            raise ValueError
    except ValueError:
        example = '{"license": 2}'
        raise click.UsageError(f"--resources is a JSON object of numbers, such as {example!r}, not {text!r}") from None
    for key, value in (("CPU", num_cpus), ("GPU", num_gpus)):
        if value is not None:
            found[key] = value
    return found


def _token(token_file: str | None, name: str) -> str | None:
    if token_file is not None:
        try:
            with open(token_file) as file:
                return file.read().strip()
        except OSError as error:
            raise click.ClickException(f"the token file {token_file} cannot be read: {error.strerror}") from error
    token = os.environ.get("SCALEOUT_TOKEN")
    if not token and sys.stdin.isatty() and not control.has_token(name):
        token = str(click.prompt("Token", hide_input=True))
    return token


@main.command()
@_name
def stop(name: str) -> None:
    """Stop the nodes of this cluster that run here."""
    stopped = control.stop(name)
    for record in stopped:
        click.echo(f"stopped {'the head' if record['is_head'] else 'node'} {record['node_id']} at {record['address']}")
    if not stopped:
        click.echo(f"no node of the cluster {name!r} runs here")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_name
def status(as_json: bool, name: str) -> None:
    """Show the nodes of a cluster."""
    nodes = control.nodes(name)
    if as_json:
        click.echo(json.dumps(nodes, indent=2))
        return
    for node in nodes:
        state = "draining" if node["is_draining"] else node["state"]
        amounts = ", ".join(
            f"{int(amount) / 1000:g} {kind}"
            for kind, amount in sorted(node["resources"].items())
            if kind != "memory" and int(amount)
        )
        head = "  head" if node["is_head"] else ""
        click.echo(f"{node['node_id']}  {node['host']}:{node['port']}  {state}  {amounts}{head}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_name
def actors(as_json: bool, name: str) -> None:
    """Show the detached actors of a cluster."""
    found = control.actors(name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for actor in found:
        restarts = f"  {actor['restarts']} restarts" if actor["restarts"] else ""
        space = f" in {actor['namespace']!r}" if actor["namespace"] else ""
        click.echo(f"{actor['name']!r}{space}  {actor['class_name']}  {actor['state']}  pid {actor['pid']}{restarts}")


@main.command()
@click.argument("node")
@_name
def drain(node: str, name: str) -> None:
    """Give a node no new work."""
    control.drain(name, node)
    click.echo(f"node {node} gets no new work")


@main.command()
@click.option("--rotate", is_flag=True, help="Make a new one; the old one is of no use any more.")
@_name
def token(rotate: bool, name: str) -> None:
    """Show the token by which machines join; on the head."""
    click.echo(control.token(name, rotate))


@main.command()
@_name
def logs(name: str) -> None:
    """Print the logs of the nodes that have run here."""
    for path in control.logs(name):
        click.echo(f"==> {path}")
        click.echo(path.read_text(errors="replace"), nl=False)


if __name__ == "__main__":
    main(prog_name="scaleout")
