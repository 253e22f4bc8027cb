"""The `kubectl-agentserving` command: on PATH it is `kubectl agentserving`."""

from __future__ import annotations

import base64
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from agentserving.transport.connection import Pem
from agentserving.v1 import admin_service_pb2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.connection import DEADLINE_S, Services, connected, fail, named_leader
from agentserving_cli.kube.clusters import (
    CONTROL_PLANE_PORT,
    RESOURCE,
    NoClusterError,
    Object,
    choose,
    client_secret,
    conditions,
    control_plane_service,
    labels,
    pod_at,
)
from agentserving_cli.kube.findings import Finding, of_cluster, of_control_plane, of_operator, of_pods
from agentserving_cli.kube.kubectl import Kubectl, KubectlError
from agentserving_cli.output import is_data, output_option, print_data
from agentserving_cli.program_commands import program_commands

console = Console(soft_wrap=True)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which cluster, as kubectl has them; f(kubectl, cluster, ...) is given what they mean."""

    @functools.wraps(command)
    def found(*arguments: Any, kubeconfig: str, context: str, namespace: str, cluster: str, **chosen: Any) -> Any:
        try:
            return command(Kubectl(kubeconfig, context, namespace), cluster, *arguments, **chosen)
        except (KubectlError, NoClusterError) as error:
            fail(str(error))

    for option in (
        click.option("--cluster", default="", help="Name of the AgentServingCluster; not needed where there is one."),
        click.option("-n", "--namespace", default="", help="As kubectl's."),
        click.option("--context", default="", help="As kubectl's."),
        click.option("--kubeconfig", default="", help="As kubectl's."),
    ):
        found = option(found)
    return found


def _cluster(kubectl: Kubectl, name: str) -> Object:
    return choose(kubectl.items(RESOURCE), name, kubectl.namespace)


@contextmanager
def _connected(kubectl: Kubectl, cluster: Object) -> Iterator[Services]:
    """A Service's port leads to any of the pods, and the leader's own address leads there inside the cluster only."""
    tls = _certificates(kubectl, cluster)
    with kubectl.forwarded(control_plane_service(cluster), CONTROL_PLANE_PORT) as address:
        leader = named_leader(address, tls)
        if not leader:
            with connected(address, tls) as stubs:
                yield stubs
            return
    pods = kubectl.items("pods", "-l", labels(cluster["metadata"]["name"], "control-plane"))
    with kubectl.forwarded(pod_at(pods, leader), CONTROL_PLANE_PORT) as address, connected(address, tls) as stubs:
        yield stubs


def _certificates(kubectl: Kubectl, cluster: Object) -> Pem | None:
    """None where there is no TLS. A forwarded port is this machine's: certificates of control planes say localhost."""
    name = client_secret(cluster)
    if not name:
        return None
    data = kubectl.get("secrets", name).get("data", {})
    try:
        ca, cert, key = (base64.b64decode(data[each]) for each in ("ca.crt", "tls.crt", "tls.key"))
    except KeyError as error:
        raise KubectlError(f"Secret {name} has no {error.args[0]} yet: see `kubectl agentserving status`") from error
    return Pem(ca, cert, key, "localhost")


@contextmanager
def _found(kubectl: Kubectl, name: str) -> Iterator[Services]:
    with _connected(kubectl, _cluster(kubectl, name)) as stubs:
        yield stubs


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the command a way to the control plane through a port-forward of its own."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        return command(functools.partial(_found, kubectl, cluster), *arguments, **chosen)

    return _options(found)


@click.group()
@click.version_option("0.1.0")
def main() -> None:
    """Programs on an AgentServingCluster: who runs, who waits, under which policy.

    Uses your kubeconfig, and forwards a port to the control plane by itself. Where a namespace has one
    AgentServingCluster it is found; else name it with --cluster.
    """


for _command in program_commands(_where):
    main.add_command(_command)


@main.command()
@output_option
@_options
def status(kubectl: Kubectl, cluster: str, output: str) -> None:
    """How a cluster is: its conditions, engines and policy, as the operator tells them."""
    found = _cluster(kubectl, cluster)
    if is_data(output):
        print_data(found.get("status", {}), output)
        return
    told = found.get("status", {})
    policy, engines = told.get("policy", {}), told.get("engines", {})
    console.print(
        f"[bold]{escape(found['metadata']['name'])}[/bold] in {escape(found['metadata']['namespace'])}: "
        f"engines {escape(engines.get('summary', '-'))}, policy {escape(policy.get('name') or '-')} "
        f"v{policy.get('version', 0)}, {told.get('programs', 0)} programs, {escape(told.get('url') or 'no URL yet')}"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("CONDITION", "STATUS", "REASON", "MESSAGE"):
        table.add_column(title, no_wrap=title != "MESSAGE")
    for name, condition in conditions(found).items():
        words = " ".join(str(condition.get("message", "")).split())
        table.add_row(name, condition["status"], condition["reason"], escape(words))
    console.print(table)


@main.command()
@output_option
@_options
def doctor(kubectl: Kubectl, cluster: str, output: str) -> None:
    """Look for what is wrong with a cluster, and say what to do. Exit status 1 when something is."""
    findings = list(_findings(kubectl, cluster))
    if is_data(output):
        print_data([{"ok": each.ok, "what": each.what, "told": each.told} for each in findings], output)
    else:
        for each in findings:
            mark = "[green]ok [/green]" if each.ok else "[red]BAD[/red]"
            console.print(f"{mark} [bold]{escape(each.what)}[/bold] {escape(each.told)}")
    sys.exit(0 if all(each.ok for each in findings) else 1)


def _findings(kubectl: Kubectl, name: str) -> Iterator[Finding]:
    try:
        clusters = kubectl.items(RESOURCE)
    except KubectlError as error:
        hint = ": install the chart" if "the server doesn't have a resource type" in str(error) else ""
        yield Finding(False, "API", f"{error}{hint}")
        return
    yield Finding(True, "API", "answers, and knows AgentServingClusters")
    try:
        selector = "app.kubernetes.io/name=agentserving-operator"
        yield of_operator(kubectl.items("deployments", "--all-namespaces", "-l", selector))
    except KubectlError as error:
        yield Finding(True, "operator", f"could not be looked for ({error})")
    found = choose(clusters, name, kubectl.namespace)
    yield from of_cluster(found)
    yield from of_pods(kubectl.items("pods", "-l", labels(found["metadata"]["name"])))
    try:
        with _connected(kubectl, found) as stubs:
            overview = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=DEADLINE_S)
            policy = stubs.admin.GetPolicy(admin_service_pb2.GetPolicyRequest(), timeout=DEADLINE_S)
    except (KubectlError, click.ClickException) as error:
        yield Finding(
            False, "control plane", error.format_message() if isinstance(error, click.ClickException) else str(error)
        )
        return
    yield Finding(True, "control plane", "answers")
    yield from of_control_plane(found, overview, policy)


if __name__ == "__main__":
    main(prog_name="kubectl agentserving")
