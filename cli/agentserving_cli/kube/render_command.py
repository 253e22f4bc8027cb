"""`kubectl agentserving render keda|hpa|restore|warm`: objects to be looked at and applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import yaml

from agentserving_cli.kube.autoscalers import adapter_rule, keda_objects, of_cluster, pod_autoscaler
from agentserving_cli.kube.clusters import Object
from agentserving_cli.kube.restoring import restore_pods
from agentserving_cli.kube.warming import NothingToWarmError, warm_job

Cluster = Callable[[], Object]
Store = Callable[[], tuple[Object, Object]]
Where = Callable[[Callable[..., Any]], Callable[..., Any]]


def render_command(where: Where, of_store: Where, of_engines: Where) -> click.Group:
    """Each adds the options that name a cluster. The command's first argument then reads that cluster, its etcd's
    StatefulSet and its control plane's Deployment, or its engines' StatefulSet or
    LeaderWorkerSet."""

    @click.group()
    def render() -> None:
        """Print objects for a cluster: autoscalers that set the number of engines, pods that restore a backup, and a
        Job that downloads a model.

        Autoscalers follow what programs need. Give the cluster spec.engine.autoscaling.scaler External, so that engines
        finish their calls before they leave.
        """

    @render.command()
    @click.option(
        "--prometheus", "url", default="",
        help="Address of Prometheus, as KEDA reaches it. Without it, KEDA asks control planes itself.",
    )  # fmt: skip
    @where
    def keda(cluster: Cluster, url: str) -> None:
        """Print a ScaledObject for KEDA.

        Without --prometheus KEDA's namespace must be one of spec.network.metricsNamespaces.
        """
        click.echo("\n---\n".join(map(_yaml, keda_objects(of_cluster(cluster()), url))))

    @render.command()
    @where
    def hpa(cluster: Cluster) -> None:
        """Print a HorizontalPodAutoscaler, and the rule that prometheus-adapter needs for it."""
        click.echo(_yaml(pod_autoscaler(of_cluster(cluster()))))
        click.echo("# For prometheus-adapter's values, under rules.external:")
        rule = _yaml(adapter_rule()["externalRules"])
        click.echo("\n".join(f"# {line}" for line in rule.splitlines()))

    @render.command()
    @of_store
    def restore(store: Store) -> None:
        """Print a pod for each member of etcd that restores a snapshot into its volume.

        Scale the operator, etcd and the control plane to 0 before you apply them, then copy the snapshot into each:
        kubectl cp table.db POD:/backup/table.db -c receive
        """
        click.echo("\n---\n".join(map(_yaml, restore_pods(*store()))))

    @render.command()
    @click.option("--uri", default="", help="The version to download; by default the one that engines load now.")
    @of_engines
    def warm(engines: Cluster, uri: str) -> None:
        """Print a Job that downloads a model from S3 into the claim that engines share.

        With --uri it fetches the next version while engines serve this one; then change spec.model.source.s3.uri.
        """
        try:
            click.echo(_yaml(warm_job(engines(), uri)))
        except NothingToWarmError as error:
            raise click.ClickException(str(error)) from error

    return render


def _yaml(document: Any) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, width=1000)).rstrip()
