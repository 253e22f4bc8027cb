"""Every panel of the dashboard and every recording rule has something to show of a cluster under load.

With a real Prometheus; where none is installed, nothing is tried, and the report says so. DASHBOARD_PICTURE=path.png
also draws the panels of DASHBOARD_MINUTES (5) minutes of load into the picture that the documentation shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import openai
import pytest
import yaml
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import program_service_pb2_grpc
from agentserving_cli.local.ports import free_ports
from integration.local_cluster import Cluster
from support.eventually import eventually
from support.panel_pictures import Series, draw

FILES = Path(__file__).parents[2] / "charts/agentserving/files"
PROMETHEUS = shutil.which("prometheus")
# Only where something is wrong, or where a cluster has what this one has not.
MAY_BE_EMPTY = {"Served without the control plane"}

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on PATH: the dashboard's panels were NOT tried"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("board") / "state", "--engine", "simulator", "--engines", "1", auth=True)
    try:
        yield made
    finally:
        made.close()


class Prometheus:
    """One that scrapes a local cluster every second, with the labels that PodMonitors add, and evaluates the rules."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        # Rates of five minutes, of a test that takes one.
        rules = directory / "rules.yaml"
        rules.write_text(_shorter((FILES / "alerts.yaml").read_text()))
        token = str(cluster.directory / "keys" / "metrics.token")
        scraped = [
            {
                "job_name": pod,
                "authorization": {"credentials_file": token},
                "metrics_path": urlsplit(url).path,
                "static_configs": [{"targets": [urlsplit(url).netloc], "labels": {"namespace": "demo", "pod": pod}}],
            }
            for pod, url in cluster.addresses["metrics"].items()
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = directory / "prometheus.yaml"
        config.write_text(json.dumps({"global": every, "scrape_configs": scraped, "rule_files": [str(rules)]}))
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series that an expression gives now; none while Prometheus starts."""
        return [each for each in self._ask("query", query=expression) if each["value"][1] != "NaN"]

    def recorded(self, expression: str, since_s: float) -> Series:
        """What an expression has given since then, every five seconds."""
        found = self._ask("query_range", query=expression, start=since_s, end=time.time(), step=5)
        return [
            (each["metric"], [(float(at), float(value)) for at, value in each["values"] if value != "NaN"])
            for each in found
        ]

    def _ask(self, what: str, **parameters: object) -> list[dict[str, Any]]:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:
                    return []
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except OSError:
            return []
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def _shorter(expressions: str) -> str:
    return expressions.replace("[5m]", "[1m]").replace("[15m]", "[1m]")


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), cluster)
    try:
        eventually(lambda: started.query("agentserving_leader == 1"), "a first scrape", 60)
        load(cluster)
        yield started
    finally:
        started.close()


def load(cluster: Cluster, prefix: str = "p", programs: int = 16) -> None:
    """Programs of three calls, more at once than the engine has slots for their tokens."""

    channel = grpc.insecure_channel(cluster.addresses["control_plane"])
    stub = program_service_pb2_grpc.ProgramServiceStub(channel)
    key = (("authorization", f"Bearer {cluster.key}"),)

    def agent(number: int) -> None:
        opening = pb.OpenProgramRequest(program_id=f"{prefix}{number}", name=f"class-{number % 2}")
        stub.OpenProgram(opening, metadata=key, timeout=30)
        with openai.OpenAI(
            base_url=cluster.addresses["gateway"], api_key=cluster.key, max_retries=0,
            default_headers={"x-agentserving-program-id": f"{prefix}{number}"},
        ) as sdk:  # fmt: skip
            for _ in range(3):
                sdk.completions.create(model="tiny", prompt="x " * 200, max_tokens=30, timeout=120)
        stub.CloseProgram(pb.CloseProgramRequest(program_id=f"{prefix}{number}"), metadata=key, timeout=30)

    with channel, ThreadPoolExecutor(max(8, programs // 2)) as pool:
        list(pool.map(agent, range(programs)))


def panels() -> list[Any]:
    board = json.loads((FILES / "dashboard.json").read_text())
    return [pytest.param(panel, id=panel["title"]) for panel in board["panels"]]


@pytest.mark.parametrize("panel", panels())
def test_a_panel_has_something_to_show(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    expressions = [_shorter(target["expr"].replace("$namespace", ".+")) for target in panel["targets"]]
    if panel["title"] in MAY_BE_EMPTY:
        for expression in expressions:
            prometheus.query(expression)
        return
    eventually(lambda: any(map(prometheus.query, expressions)), panel["title"], 60)


def test_all_panels_are_drawn_from_what_is_recorded(cluster: Cluster, prometheus: Prometheus, tmp_path: Path) -> None:
    wanted = os.environ.get("DASHBOARD_PICTURE")
    # What `load` has left; for the picture of the documentation, minutes more of it.
    since_s = time.time() - 60
    ends_s = time.time() + 60 * float(os.environ.get("DASHBOARD_MINUTES", "5")) if wanted else 0.0
    number = 1
    while time.time() < ends_s:
        load(cluster, f"wave{number}-", programs=8 + 24 * (number % 3 == 0))
        number += 1
    path = Path(wanted) if wanted else tmp_path / "dashboard.png"
    shown = [param.values[0] for param in panels()]

    def recorded(expression: str) -> Series:
        return prometheus.recorded(_shorter(expression.replace("$namespace", ".+")), since_s)

    def all_drawn() -> bool:
        return all(count or title in MAY_BE_EMPTY for title, count in draw(shown, recorded, path).items())

    eventually(all_drawn, "every panel has a line", 60)
    assert path.stat().st_size > 10_000


def test_recording_rules_give_series_by_their_labels(prometheus: Prometheus) -> None:
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    recorded = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
    for name in recorded:
        found = eventually(lambda name=name: prometheus.query(name), name, 60)
        assert all(each["metric"]["namespace"] == "demo" for each in found), name
    classes = {each["metric"]["class"] for each in prometheus.query("agentserving:call_wait_seconds:p90")}
    assert {"class-0", "class-1"} <= classes


def test_no_alert_is_pending_for_a_cluster_that_is_well(prometheus: Prometheus) -> None:
    assert prometheus.query('ALERTS{severity=~"critical|warning"}') == []
