"""The generated NetworkPolicies with real packets: hosts are network namespaces, the router has nftables rules made of
the policies. Needs root, `ip` and `nft`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from agentserving_operator.manifests import desired
from support.network_connections import CONNECTIONS, HOSTS, OPERATOR_NAMESPACE, REFUSED
from support.network_policies import nft_script
from support.operator_objects import make_cluster

pytestmark = pytest.mark.timeout(240)

PORTS = sorted({port for _, _, port in (*CONNECTIONS, *REFUSED)})
# Listens on all ports, and says so.
LISTEN = """
import socket, sys, time
listening = [socket.create_server((sys.argv[1], int(port)), backlog=64) for port in sys.argv[2:]]
print("listening", flush=True)
sys.stdin.read()
"""
# Prints which of the addresses accept a connection.
CONNECT = """
import json, socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=20).close()
        return True
    except OSError:
        return False
print(json.dumps([reaches(*each) for each in json.loads(sys.argv[1])]))
"""


def _run(*argv: str, text: str | None = None) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)


def _missing() -> str:
    if os.geteuid() != 0:
        return "root, for network namespaces"
    absent = [name for name in ("ip", "nft") if shutil.which(name) is None]
    return " and ".join(absent)


class Network:
    """A router, and a namespace for each host, which listens on PORTS."""

    def __init__(self) -> None:
        self._prefix = f"asn{os.getpid()}"
        self.router = f"{self._prefix}-r"
        self._spaces = {name: f"{self._prefix}-{number}" for number, name in enumerate(HOSTS)}
        self._listeners: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Returns when all hosts listen and reach each other."""
        _run("ip", "netns", "add", self.router)
        _run("ip", "netns", "exec", self.router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for number, (name, host) in enumerate(HOSTS.items()):
            self._attach(number, self._spaces[name], host.address)
        for name, host in HOSTS.items():
            self._listeners.append(self._python(name, LISTEN, host.address, *map(str, PORTS)))
        for each in self._listeners:
            assert each.stdout is not None
            assert each.stdout.readline() == "listening\n"

    def _attach(self, number: int, space: str, address: str) -> None:
        """By a subnet of four addresses: the router has one, the host the other."""
        head, _, last = address.rpartition(".")
        gateway = f"{head}.{int(last) - 1}"
        inside, outside = f"h{number}", f"r{number}"
        _run("ip", "netns", "add", space)
        _run("ip", "-n", self.router, "link", "add", outside, "type", "veth", "peer", inside, "netns", space)
        for at, link, own in ((self.router, outside, gateway), (space, inside, address)):
            _run("ip", "-n", at, "addr", "add", f"{own}/30", "dev", link)
            _run("ip", "-n", at, "link", "set", link, "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        _run("ip", "-n", space, "route", "add", "default", "via", gateway)

    def _python(self, host: str, program: str, *arguments: str) -> subprocess.Popen[str]:
        argv = ["ip", "netns", "exec", self._spaces[host], sys.executable, "-S", "-c", program, *arguments]
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def enforce(self, script: str) -> None:
        """The router's rules from now on."""
        _run("ip", "netns", "exec", self.router, "nft", "flush", "ruleset")
        _run("ip", "netns", "exec", self.router, "nft", "-f", "-", text=script)

    def reached(self, connections: list[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
        """Those that are accepted."""
        found = set()
        for source in HOSTS:
            own = [each for each in connections if each[0] == source]
            if not own:
                continue
            wanted = json.dumps([(HOSTS[target].address, port) for _, target, port in own])
            output, _ = self._python(source, CONNECT, wanted).communicate(timeout=120)
            found |= {each for each, accepted in zip(own, json.loads(output), strict=True) if accepted}
        return found

    def close(self) -> None:
        """Ends all processes and removes the namespaces."""
        for each in self._listeners:
            each.kill()
            each.communicate()
        for space in (*self._spaces.values(), self.router):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


@pytest.fixture
def network() -> Iterator[Network]:
    if missing := _missing():
        pytest.skip(f"NetworkPolicies were NOT tried with real packets: that needs {missing}")
    made = Network()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_packets_go_where_the_policies_say_and_nowhere_else(network: Network) -> None:
    every = [*CONNECTIONS, *REFUSED]
    # Without policies everything is open, so a refusal below is a policy's.
    assert network.reached(every) == set(every)
    cluster = replace(make_cluster(), operator_namespace=OPERATOR_NAMESPACE)
    policies = [each for each in desired(cluster) if each["kind"] == "NetworkPolicy"]
    network.enforce(nft_script(policies, list(HOSTS.values())))
    assert network.reached(every) == set(CONNECTIONS)
