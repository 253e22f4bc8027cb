"""Whether a control plane can lead on what an etcd contains: `python -m agentserving_controlplane.backup`.

For a copy of a store only, such as a restored snapshot: it takes the writer's lease and recovers, exactly as a control
plane that starts. Prints one JSON document, `Report` by prefix; exits with 0 when everything was read, else with 1.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field

import msgspec
from agentserving.contract.signatures import SigningKey
from agentserving_process import logs, options
from agentserving_process.options import option
from agentserving_process.supervision import Supervisor

from agentserving_controlplane.api.conversion import policy_version_from_bytes
from agentserving_controlplane.control_plane import ENGINES_PREFIX, ControlPlane
from agentserving_controlplane.key_operations import KEYS_PREFIX
from agentserving_controlplane.policy.in_force import POLICY_KEY
from agentserving_controlplane.policy.tenants import TENANTS_PREFIX
from agentserving_controlplane.settings import PlaneSettings, StoreOptions
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.store.port import FencedError, StoreError
from agentserving_controlplane.table.rows import CHUNKS_PREFIX, LATE_PREFIX, ROWS_PREFIX, NewerSchemaError
from agentserving_controlplane.table.states import ProgramState
from agentserving_controlplane.table.token_use import TOKENS_PREFIX

# Where a cluster keeps its items below its prefix, and the lease of its leader.
_DATA, _LEADER = "/d/", "/leader"
_FAMILIES = (
    ROWS_PREFIX, CHUNKS_PREFIX, LATE_PREFIX, ENGINES_PREFIX, KEYS_PREFIX, TENANTS_PREFIX, TOKENS_PREFIX, POLICY_KEY
)  # fmt: skip
# Where the backup has no leader. Else the lease is taken in that leader's name: it will not come back, and the store
# takes a holder of the same name for a crash that need not be waited for.
OWNER = "backup-check"


class Report(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One cluster. `epoch`: of its last leader in the backup, 0 = it had none. `unreadable`: reasons by key."""

    prefix: str
    revision: int
    epoch: int
    items: int = 0
    programs: dict[str, int] = msgspec.field(default_factory=dict)
    calls_in_flight: int = 0
    keys: int = 0
    tenants: int = 0
    policy: str = ""
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)
    # Why no control plane could lead; "" = one could.
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """Which clusters of the snapshot are checked"""

    only_prefix: str = option(
        "", "of one cluster; none: of each that this etcd has", read=lambda text: text.rstrip("/")
    )
    store: StoreOptions = field(default_factory=StoreOptions)


def prefixes_of(keys: list[str]) -> list[str]:
    """Those of the clusters that have items, or had a leader, among these keys. Pure."""
    found = set()
    for key in keys:
        prefix, separator, item = key.partition(_DATA)
        if separator and item.startswith(_FAMILIES):
            found.add(prefix)
        elif key.endswith(_LEADER):
            found.add(key.removesuffix(_LEADER))
    return sorted(found)


async def check(given: CheckOptions) -> list[Report]:
    """Of each cluster. StoreError when etcd does not answer."""
    client = EtcdClient(given.store.etcd_endpoints, given.store.etcd_tls)
    try:
        revision, pairs = await client.load(b"\0", b"\0")
    finally:
        await client.close()
    keys = [pair.key.decode(errors="replace") for pair in pairs]
    leaders = {key: pair for key, pair in zip(keys, pairs, strict=True) if key.endswith(_LEADER)}
    found, there = [], prefixes_of(keys)
    if given.only_prefix and given.only_prefix not in there:
        missing = f"no cluster has this prefix; those that are there: {', '.join(there) or 'none'}"
        return [Report(prefix=given.only_prefix, revision=revision, epoch=0, error=missing)]
    for prefix in [given.only_prefix] if given.only_prefix else there:
        leader = leaders.get(prefix + _LEADER)
        report = Report(prefix=prefix, revision=revision, epoch=0 if leader is None else leader.create_revision)
        await _lead(given.store, report, OWNER if leader is None else leader.value.decode(errors="replace"))
        found.append(report)
    return found


async def _lead(options: StoreOptions, report: Report, owner: str) -> None:
    """Leads for as long as reading takes, and writes down what was found."""
    prefix = report.prefix
    store = EtcdStore(options.etcd_endpoints, prefix, options.etcd_tls, options.lease_s)
    settings = PlaneSettings(ticket_keys=lambda: (SigningKey.generate(),))
    fenced: list[Exception] = []
    try:
        plane = ControlPlane(settings, store, await store.acquire(owner), fenced.append)
        async with Supervisor() as tasks:
            tasks.start("lease", store.keep_lease, passes=(FencedError,))
            await plane.recover(store, policy_version_from_bytes)
            _count(report, plane, len((await store.load()).items))
        await plane.commits.close()
        await store.resign()
    except (StoreError, NewerSchemaError) as error:
        report.error = str(error)
    finally:
        await store.close()
    if fenced and not report.error:
        report.error = str(fenced[0])


def _count(report: Report, plane: ControlPlane, items: int) -> None:
    index = plane.table.index
    states = Counter(index.state_of(row) for row in plane.table.rows.values())
    report.items, report.unreadable = items, dict(plane.unreadable)
    report.programs = {state.name.lower(): states[state] for state in ProgramState}
    report.calls_in_flight = index.open_calls
    report.keys, report.tenants = len(list(plane.api_keys.keys)), len(plane.tenants)
    report.policy = f"{plane.policy.policy.name} (version {plane.policy.version})"


def main() -> None:
    """Prints a report of each cluster as JSON, for `agentserving backup check`."""
    given = options.parse(CheckOptions, prog="agentserving-backup", description=__doc__, environment={})
    logs.configure()
    try:
        reports = asyncio.run(check(given))
    except StoreError as error:
        sys.exit(f"the store cannot be read: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(reports) + b"\n")
    sys.exit(1 if any(each.error or each.unreadable for each in reports) else 0)


if __name__ == "__main__":
    main()
