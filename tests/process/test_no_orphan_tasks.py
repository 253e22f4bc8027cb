"""Background work belongs to a Supervisor or a TaskGroup; the few other tasks are waited for where they are created."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("process/agentserving_process", "controlplane/agentserving_controlplane")

# Each of these awaits or cancels its tasks itself, and passes their failures on.
OWNERS = {
    "process/agentserving_process/supervision.py",
    "process/agentserving_process/leader_stream.py",  # the writer of a stream: a failure breaks the stream
    "process/agentserving_process/frames/server.py",  # logs failures; `stop` ends all
    "controlplane/agentserving_controlplane/store/group_commit.py",  # ends the leadership
    "controlplane/agentserving_controlplane/store/etcd/client.py",  # closes channels with old certificates
    "controlplane/agentserving_controlplane/store/etcd/watch.py",  # a read with a time limit
    "controlplane/agentserving_controlplane/api/streams.py",  # a TaskGroup for each stream
}


def creators() -> set[str]:
    found = set()
    for root in SOURCES:
        for path in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("create_task", "ensure_future", "TaskGroup"):
                    found.add(str(path.relative_to(ROOT)))
    return found


def test_tasks_are_created_by_known_owners_only() -> None:
    assert creators() <= OWNERS
