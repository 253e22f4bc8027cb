"""Lets an etcd member that lost its volume join its cluster again: the init container of each member of several.

etcd refuses to start such a member ("has already been bootstrapped"): with its log it lost the votes it cast, so it
must not come back under its old identity. It has to be removed from the cluster and added as a new member, and then
started with another --initial-cluster-state. A StatefulSet's arguments cannot change for one pod, so this program takes
etcd's flags, makes those changes if they are necessary, and writes etcd's configuration file.

Nothing is removed unless a majority of the other members agrees that this one had started before (etcd's API needs a
quorum for that). Without a quorum the program fails with the reason, which the cluster's StoreReady condition shows.

It runs in etcd's pod, without access to Kubernetes. The list that a peer gives needs no client; all else goes to etcd's
gRPC API: its JSON API cannot reach its own server where that admits control planes' certificates only.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from agentserving.transport.channels import channel
from agentserving.transport.connection import Pem
from google.protobuf.message import Message

from agentserving_operator import etcd_cluster_pb2 as pb

T = TypeVar("T", bound=Message)
NEW, EXISTING = "new", "existing"
REQUEST_TIMEOUT_S = 5.0
# A rolling restart or an election lasts seconds; after this the container fails and is restarted with a back-off.
GIVE_UP_S, RETRY_S = 60.0, 2.0


class EtcdError(Exception):
    """No member answered as it should; the message is the last one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member as etcd lists it. A member has client URLs once it has started, and a name once it was meant to."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a member without a log must do: remove its former self, be added, and start with this state."""

    state: str
    remove: int | None = None
    add: bool = False


def decide(members: Sequence[Member], name: str, peer_url: str) -> Decision:
    """For a member without a log, from the list of a cluster that exists. Repeating it after a crash is harmless."""
    former = next((each for each in members if peer_url in each.peer_urls or each.name == name), None)
    if former is None:
        # Removed, and not added yet.
        return Decision(state=EXISTING, add=True)
    if former.client_urls:
        return Decision(state=EXISTING, remove=former.id, add=True)
    # Never started: named in the initial cluster, or (without a name) added to it later.
    return Decision(state=NEW if former.name else EXISTING)


def config_of(flags: Mapping[str, str], state: str) -> dict[str, Any]:
    """The content of etcd's --config-file for these flags. TLS flags are nested there."""
    config: dict[str, Any] = {"initial-cluster-state": state}
    for flag, value in flags.items():
        typed: Any = True if value == "true" else int(value) if value.isdigit() else value
        prefix, _, rest = flag.partition("-")
        if flag.endswith(("cert-file", "key-file", "trusted-ca-file", "client-cert-auth")):
            section, key = ("peer", rest) if prefix == "peer" else ("client", flag)
            config.setdefault(f"{section}-transport-security", {})[key] = typed
        elif flag.endswith("-cert-allowed-hostname"):
            # etcd 3.5 does not know this key in files.
            config.setdefault(f"{prefix}-transport-security", {})["allowed-hostname"] = [value]
        else:
            config[flag] = typed
    return config


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """`--name=value` by name; a flag without a value is "true"."""
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value if equals else "true" for name, equals, value in pairs}


class Cluster:
    """The other members: etcd's list on peer ports, which needs no quorum, and its API."""

    def __init__(self, flags: Mapping[str, str]) -> None:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        self._pem: Pem | None = None
        if "peer-trusted-ca-file" in flags:
            ca, cert, key = (flags[f"peer-{name}"] for name in ("trusted-ca-file", "cert-file", "key-file"))
            context = ssl.create_default_context(cafile=ca)
            context.load_cert_chain(cert, key)
            handlers.append(urllib.request.HTTPSHandler(context=context))
            self._pem = Pem(Path(ca).read_bytes(), Path(cert).read_bytes(), Path(key).read_bytes())
        self._opener = urllib.request.build_opener(*handlers)

    def known_to_peer(self, peer_url: str) -> list[Member]:
        """The members that one peer knows; empty when nothing listens there, as before it has started.

        EtcdError when it listens and does not answer: etcd ends the connection of a member whose certificate names no
        host of its address, and for seconds after a pod has moved its name leads to the former address.
        """
        try:
            with self._opener.open(f"{peer_url}/members", timeout=REQUEST_TIMEOUT_S) as response:
                return [
                    Member(
                        id=int(found["id"]),
                        name=str(found.get("name") or ""),
                        peer_urls=tuple(found.get("peerURLs") or ()),
                        client_urls=tuple(found.get("clientURLs") or ()),
                    )
                    for found in json.load(response)
                ]
        except urllib.error.URLError as error:
            if _nothing_listens(error.reason):
                return []
            raise EtcdError(f"{peer_url}: {error.reason}") from error
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            raise EtcdError(f"{peer_url}: {error or type(error).__name__}") from error

    def members(self, client_urls: Sequence[str]) -> list[Member]:
        """The members that a majority agrees on."""
        found = self._call(client_urls, "MemberList", pb.MemberListRequest(linearizable=True), pb.MemberListResponse)
        return [
            Member(id=each.ID, name=each.name, peer_urls=tuple(each.peerURLs), client_urls=tuple(each.clientURLs))
            for each in found.members
        ]

    def remove(self, client_urls: Sequence[str], member_id: int) -> None:
        """Removes a member for good: an id is never used again."""
        self._call(client_urls, "MemberRemove", pb.MemberRemoveRequest(ID=member_id), pb.MemberRemoveResponse)

    def add(self, client_urls: Sequence[str], peer_url: str) -> None:
        """Adds a member that starts afterwards."""
        self._call(client_urls, "MemberAdd", pb.MemberAddRequest(peerURLs=[peer_url]), pb.MemberAddResponse)

    def _call(self, client_urls: Sequence[str], method: str, request: Message, response: type[T]) -> T:
        error = EtcdError("no other member has started")
        for url in client_urls:
            with channel(urllib.parse.urlsplit(url).netloc, (), self._pem) as opened:
                call: Any = opened.unary_unary(
                    f"/etcdserverpb.Cluster/{method}",
                    request_serializer=type(request).SerializeToString,
                    response_deserializer=response.FromString,
                )
                try:
                    answer: T = call(request, timeout=REQUEST_TIMEOUT_S)
                except grpc.RpcError as failed:
                    error = EtcdError(f"{url}: {failed.code().name} {failed.details()}")
                else:
                    return answer
        raise error


def started(cluster: Cluster, name: str, peer_urls: Iterable[str]) -> list[str]:
    """Client URLs of the other members that have started. EtcdError if none is known and a peer did not say."""
    urls: set[str] = set()
    unknown: EtcdError | None = None
    for peer_url in peer_urls:
        try:
            known = cluster.known_to_peer(peer_url)
        except EtcdError as error:
            unknown = error
        else:
            urls.update(url for member in known if member.name != name for url in member.client_urls)
    if unknown is not None and not urls:
        raise unknown
    return sorted(urls)


def _nothing_listens(reason: object) -> bool:
    if isinstance(reason, (ConnectionRefusedError, TimeoutError, socket.gaierror)):
        return True
    return isinstance(reason, OSError) and reason.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)


def state_of(flags: Mapping[str, str], cluster: Cluster) -> str:
    """The --initial-cluster-state of a member without a log, which has been added again if that was necessary."""
    name = flags["name"]
    peers = dict(each.partition("=")[::2] for each in flags["initial-cluster"].split(","))
    peer_url = peers.pop(name)
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        try:
            client_urls = started(cluster, name, peers.values())
            if not client_urls:
                # No other member has started: the cluster is new, and starts when a majority of its members does.
                return NEW
            decision = decide(cluster.members(client_urls), name, peer_url)
            if decision.remove is not None:
                say(f"{name} lost its volume: removing its former self (member {decision.remove:x}) from the cluster")
                cluster.remove(client_urls, decision.remove)
            if decision.add:
                say(f"adding {name} to the cluster as a new member")
                cluster.add(client_urls, peer_url)
            return decision.state
        except EtcdError as error:
            if time.monotonic() > deadline:
                raise
            say(f"{name} has no log and cannot join its cluster yet: {error}")
            time.sleep(RETRY_S)


def has_log(data_dir: Path) -> bool:
    """Whether etcd finds a write-ahead log there, and with it the identity of its member."""
    return any((data_dir / "member" / "wal").glob("*.wal"))


def say(message: str) -> None:
    """A line of log."""
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """`etcd_member --config-file PATH ETCD-FLAGS`: writes the file, after joining the cluster again if necessary."""
    parser = argparse.ArgumentParser(prog="etcd_member", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config-file", required=True, type=Path)
    arguments, rest = parser.parse_known_args(argv)
    flags = parse_flags(rest)
    data_dir, state = Path(flags["data-dir"]), NEW
    if not has_log(data_dir):
        try:
            state = state_of(flags, Cluster(flags))
        except EtcdError as error:
            say(
                f"{flags['name']} lost its volume, and without a majority of the other members it cannot be replaced. "
                f"Bring them back; if their volumes are lost too, create a new AgentServingCluster. Last error: {error}"
            )
            return 1
        if state == EXISTING and data_dir.exists():
            # Remains without a log would be taken for the database of the new member.
            os.rename(data_dir, data_dir.with_name(f"{data_dir.name}.lost-{time.time_ns()}"))
    written = arguments.config_file.with_suffix(".new")
    written.write_text(json.dumps(config_of(flags, state), indent=2))
    written.rename(arguments.config_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
