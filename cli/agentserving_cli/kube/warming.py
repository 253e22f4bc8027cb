"""A Job that downloads a model from S3 into the claim that a cluster's engines share, before they need it. Pure.

It is the engines' own init container: what it has downloaded they find. With another URI it fetches the next version of
the model while the engines still serve this one.
"""

from __future__ import annotations

import copy
import hashlib

from agentserving_cli.kube.clusters import Object

DOWNLOAD, CACHE = "model", "model-cache"
# Of engine pods. Not their nodes: a claim that engines share can be mounted anywhere, and the Job needs no accelerator.
_SHARED = (
    "securityContext", "imagePullSecrets", "serviceAccountName", "automountServiceAccountToken", "hostAliases",
    "dnsPolicy", "dnsConfig", "enableServiceLinks",
)  # fmt: skip
# Of an attempt that fails at the end of a long download little is lost: the next one continues it.
ATTEMPTS, DELETED_AFTER_S = 10, 86_400


class NothingToWarmError(ValueError):
    """The cluster has no volume that a Job could fill; the message says what the spec needs."""


def warm_job(engines: Object, uri: str = "") -> Object:
    """From the engines' live StatefulSet or LeaderWorkerSet. `uri`: what to download instead of what they load now.

    NothingToWarmError when its model is not from S3, or its volume is not shared.
    """
    metadata = engines["metadata"]
    template = engines["spec"].get("leaderWorkerTemplate", {}).get("leaderTemplate") or engines["spec"]["template"]
    template = template["spec"]
    download = copy.deepcopy(next((e for e in template.get("initContainers", ()) if e["name"] == DOWNLOAD), None))
    if download is None:
        raise NothingToWarmError("spec.model.source.s3 is not set: only models from S3 are downloaded before they load")
    mounted = {each["name"] for each in download["volumeMounts"]}
    volumes = [each for each in template["volumes"] if each["name"] in mounted]
    if not any(each["name"] == CACHE and "persistentVolumeClaim" in each for each in volumes):
        raise NothingToWarmError(
            "engines do not share their cache: set spec.model.cache.type ExistingClaim, with a ReadWriteMany claim"
        )
    at = download["args"].index("--uri") + 1
    download["args"][at] = uri or download["args"][at]
    version = hashlib.sha256(download["args"][at].encode()).hexdigest()[:8]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{metadata['name']}-warm-{version}",
            "namespace": metadata["namespace"],
        },
        "spec": {
            "backoffLimit": ATTEMPTS,
            "ttlSecondsAfterFinished": DELETED_AFTER_S,
            "template": {
                "spec": {
                    **{key: template[key] for key in _SHARED if key in template},
                    "restartPolicy": "OnFailure",
                    "containers": [download],
                    "volumes": volumes,
                }
            },
        },
    }
