"""The `kubectl-agentserving` command: on PATH it is `kubectl agentserving`."""

from __future__ import annotations

import base64
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import agentserving
import click
from agentserving import Client
from agentserving.transport.connection import Pem
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentserving_cli.audit_command import audit_command
from agentserving_cli.connection import connected, fail, named_leader
from agentserving_cli.cost_command import cost_command
from agentserving_cli.key_commands import key_commands
from agentserving_cli.kube.clusters import (
    CONTROL_PLANE_PORT,
    RESOURCE,
    NoClusterError,
    Object,
    choose,
    client_secret,
    conditions,
    control_plane_service,
    engines_of,
    labels,
    pod_at,
)
from agentserving_cli.kube.findings import Finding, of_cluster, of_control_plane, of_operator, of_pods
from agentserving_cli.kube.kubectl import Kubectl, KubectlError
from agentserving_cli.kube.render_command import render_command
from agentserving_cli.output import is_data, output_option, print_data
from agentserving_cli.program_commands import program_commands
from agentserving_cli.tenant_commands import tenant_commands
from agentserving_cli.trace_command import trace_command
from agentserving_cli.ui_command import ui_command

console = Console(soft_wrap=True)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name the cluster, as kubectl's; they become the arguments of f(kubectl, cluster, ...)."""

    @functools.wraps(command)
    def found(*arguments: Any, kubeconfig: str, context: str, namespace: str, cluster: str, **chosen: Any) -> Any:
        try:
            return command(Kubectl(kubeconfig, context, namespace), cluster, *arguments, **chosen)
        except (KubectlError, NoClusterError) as error:
            fail(str(error))

    for option in (
        click.option("--cluster", default="", help="Name of the AgentServingCluster; the default: the only one."),
        click.option("-n", "--namespace", default="", help="As kubectl's."),
        click.option("--context", default="", help="As kubectl's."),
        click.option("--kubeconfig", default="", help="As kubectl's."),
    ):
        found = option(found)
    return found


def _cluster(kubectl: Kubectl, name: str) -> Object:
    return choose(kubectl.items(RESOURCE), name, kubectl.namespace)


@contextmanager
def _connected(kubectl: Kubectl, cluster: Object) -> Iterator[Client]:
    """Forwards a port to the leader: a Service's port leads to any pod, the leader's own address only works inside."""
    tls = _certificates(kubectl, cluster)
    with kubectl.forwarded(control_plane_service(cluster), CONTROL_PLANE_PORT) as address:
        leader = named_leader(address, tls)
        if not leader:
            with connected(address, tls) as client:
                yield client
            return
    pods = kubectl.items("pods", "-l", labels(cluster["metadata"]["name"], "control-plane"))
    with kubectl.forwarded(pod_at(pods, leader), CONTROL_PLANE_PORT) as address, connected(address, tls) as client:
        yield client


def _certificates(kubectl: Kubectl, cluster: Object) -> Pem | None:
    """None without TLS. Control planes' certificates carry localhost, which is where a forwarded port is."""
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
def _found(kubectl: Kubectl, name: str) -> Iterator[Client]:
    with _connected(kubectl, _cluster(kubectl, name)) as client:
        yield client


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command's `connect` forwards a port of its own to the control plane."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        return command(functools.partial(_found, kubectl, cluster), *arguments, **chosen)

    return _options(found)


def _read(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command's first argument reads the cluster."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        return command(functools.partial(_cluster, kubectl, cluster), *arguments, **chosen)

    return _options(found)


def _of_store(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command's first argument reads etcd's StatefulSet and the control plane's Deployment."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        def read() -> tuple[Object, Object]:
            name = _cluster(kubectl, cluster)["metadata"]["name"]
            return kubectl.get("statefulset", f"{name}-etcd"), kubectl.get("deployment", f"{name}-control-plane")

        return command(read, *arguments, **chosen)

    return _options(found)


def _of_engines(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command's first argument reads the engines' StatefulSet, or LeaderWorkerSet."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        def read() -> Object:
            return kubectl.get(*engines_of(_cluster(kubectl, cluster)))

        return command(read, *arguments, **chosen)

    return _options(found)


# Where audit lines are written. The operator's own log is in another namespace, and is read with --file.
AUDITED = (
    ("control-plane", "control-plane"),
    ("gateway", "picker"),
    ("engine", "sidecar"),
    ("batches", "batches"),
)


def _logs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the logs of the cluster's parts become the command's first argument."""

    @functools.wraps(command)
    def found(kubectl: Kubectl, cluster: str, *arguments: Any, **chosen: Any) -> Any:
        def lines(since: timedelta) -> Iterator[str]:
            name = _cluster(kubectl, cluster)["metadata"]["name"]
            for component, container in AUDITED:
                yield from kubectl.logs(labels(name, component), container, since.total_seconds())

        return command(lines, *arguments, **chosen)

    return _options(found)


@click.group()
@click.version_option(agentserving.__version__)
def main() -> None:
    """Programs on an AgentServingCluster: which run, which wait, under which policy.

    Uses your kubeconfig and forwards a port to the control plane. In a namespace with several AgentServingClusters,
    name one with --cluster.
    """


_commands = (
    *program_commands(_where),
    cost_command(_where),
    key_commands(_where),
    tenant_commands(_where),
    audit_command(_logs),
    trace_command(_where),
    ui_command(_where),
    render_command(_read, _of_store, _of_engines),
)
for _command in _commands:
    main.add_command(_command)


@main.command("status")
@output_option
@_options
def show_status(kubectl: Kubectl, cluster: str, output: str) -> None:
    """Show a cluster's conditions, engines and policy, as the operator reports them."""
    found = _cluster(kubectl, cluster)
    status = found.get("status", {})
    if is_data(output):
        print_data(status, output)
        return
    policy, engines = status.get("policy", {}), status.get("engines", {})
    scaling = status.get("autoscaling")
    wanted = f" (wanted {scaling.get('desired', 0)}: {scaling.get('reason') or '-'})" if scaling else ""
    console.print(
        f"[bold]{escape(found['metadata']['name'])}[/bold] in {escape(found['metadata']['namespace'])}: "
        f"engines {escape(engines.get('summary', '-') + wanted)}, policy {escape(policy.get('name') or '-')} "
        f"v{policy.get('version', 0)}, {status.get('programs', 0)} programs, "
        f"{escape(status.get('url') or 'no URL yet')}"
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
    """Check a cluster and say what to do about each problem. Exit status 1 when there is one."""
    findings = list(_findings(kubectl, cluster))
    if is_data(output):
        print_data([{"ok": each.ok, "what": each.what, "message": each.message} for each in findings], output)
    else:
        for each in findings:
            mark = "[green]ok [/green]" if each.ok else "[red]BAD[/red]"
            console.print(f"{mark} [bold]{escape(each.what)}[/bold] {escape(each.message)}")
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
        yield Finding(True, "operator", f"cannot be checked ({error})")
    found = choose(clusters, name, kubectl.namespace)
    yield from of_cluster(found)
    yield from of_pods(kubectl.items("pods", "-l", labels(found["metadata"]["name"])))
    try:
        with _connected(kubectl, found) as client:
            overview, policy = client.get_overview(), client.get_policy()
    except (KubectlError, click.ClickException) as error:
        yield Finding(
            False, "control plane", error.format_message() if isinstance(error, click.ClickException) else str(error)
        )
        return
    yield Finding(True, "control plane", "answers")
    yield from of_control_plane(found, overview, policy)


if __name__ == "__main__":
    main(prog_name="kubectl agentserving")
