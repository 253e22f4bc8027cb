"""The key is one that engines take, under the name where pods look."""

from __future__ import annotations

import base64

from agentserving_engine.settings import MIN_KEY_BYTES
from agentserving_operator.manifests.engine_pod import KEY_DIR, KEY_FILE
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.ticket_key_secret import KEY_BYTES, ticket_key_secret
from support.operator_objects import make_cluster, pod_spec


def test_the_key_is_where_pods_look_for_it() -> None:
    cluster = make_cluster()
    secret = ticket_key_secret(cluster, b"k" * KEY_BYTES)
    (volume,) = [v for v in pod_spec(engine_statefulset(cluster))["volumes"] if v["name"] == "ticket-key"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert f"{KEY_DIR}/{next(iter(secret['data']))}" == KEY_FILE
    assert base64.b64decode(secret["data"]["key"]) == b"k" * KEY_BYTES


def test_it_is_long_enough_and_cannot_be_changed() -> None:
    assert KEY_BYTES >= MIN_KEY_BYTES
    assert ticket_key_secret(make_cluster(), b"k" * KEY_BYTES)["immutable"] is True
