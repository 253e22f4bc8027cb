"""Specs that make a cluster, and specs that do not: for the parser here, and for a real API server in e2e."""

from __future__ import annotations

from typing import Any

MINIMAL: dict[str, Any] = {"model": {"name": "meta-llama/Llama-3.1-8B-Instruct"}}

VALID: list[dict[str, Any]] = [
    MINIMAL,
    {**MINIMAL, "engine": {"type": "Simulator", "simulator": {}, "accelerator": {"count": 0, "products": []}}},
    {
        **MINIMAL,
        "engine": {"accelerator": {"tolerations": [{"key": "spot"}]}, "resources": {"limits": {"cpu": "2"}}},
    },
    {**MINIMAL, "store": {"type": "ExternalEtcd", "external": {"endpoints": ["a:2379"]}}},
    {**MINIMAL, "scheduling": {"policy": "custom", "custom": {"accounting": "Sum"}}},
    {
        **MINIMAL,
        "engine": {"template": {"metadata": {"labels": {"team": "a"}}, "spec": {"nodeSelector": {"zone": "a"}}}},
        "gateway": {"template": {"spec": {"containers": [{"name": "logs", "image": "logs:1"}], "hostIPC": True}}},
        "store": {"etcd": {"template": {"spec": {"affinity": {"nodeAffinity": {}}, "tolerations": [{"key": "x"}]}}}},
    },
    {**MINIMAL, "engine": {"accelerator": {"count": 8, "dataParallelSize": 2, "tensorParallelSize": 4}}},
    {**MINIMAL, "engine": {"accelerator": {"count": 0, "dataParallelSize": 2}}},
    {**MINIMAL, "engine": {"nodes": 2, "accelerator": {"count": 8}}},
    {**MINIMAL, "engine": {"nodes": 2, "accelerator": {"count": 8, "tensorParallelSize": 16}}},
    {
        **MINIMAL,
        "engine": {"nodes": 4, "accelerator": {"count": 8, "tensorParallelSize": 8, "pipelineParallelSize": 4}},
    },
    {
        **MINIMAL,
        "engine": {"nodes": 2, "accelerator": {"count": 0, "tensorParallelSize": 2}, "autoscaling": {"max": 2}},
    },
    {**MINIMAL, "engine": {"accelerator": {"count": 8, "tensorParallelSize": 4, "pipelineParallelSize": 2}}},
    {**MINIMAL, "engine": {"autoscaling": {"max": 4}}},
    {**MINIMAL, "engine": {"autoscaling": {"min": 0, "max": 1, "scaler": "External", "holdSeconds": 60}}},
    {
        **MINIMAL,
        "gateway": {
            "ingress": {
                "className": "nginx",
                "hosts": ["a.b", "*.c.d"],
                "tlsSecretName": "t",
                "annotations": {"a": "b"},
            },
            "httpRoute": {
                "parentRefs": [{"name": "g", "namespace": "n", "sectionName": "https", "port": 443}],
                "hostnames": ["a.b"],
                "pathPrefix": "/llama",
                "headers": {"X-Gateway-Model-Name": "llama"},
            },
        },
        "network": {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"},
    },
    {
        "model": {
            "name": "m",
            "alsoServedAs": ["a", "b/c"],
            "reasoningParser": "qwen3",
            "maxLoraRank": 64,
            "chatTemplate": {"configMapName": "templates"},
            "loraAdapters": [{"name": "sql", "source": "org/sql"}],
            "maxLoras": 1,
            "maxCpuLoras": 1,
        },
        "gateway": {
            "groupByContent": False,
            "programHeaders": [{"name": "x-run", "parent": "x-parent-run"}, {"name": "x-session-id"}],
            "ignoredProgramHeaders": ["session-id"],
        },
    },
    {"model": {"name": "m", "source": {"image": {"reference": "r.io/m:1", "pullPolicy": "Always", "path": "a/b-1"}}}},
    {
        "model": {
            "name": "m",
            "source": {
                "s3": {
                    "uri": "s3://models/m/v1",
                    "endpoint": "http://s3:9000",
                    "region": "eu-west-1",
                    "secretName": "s",
                }
            },
            "cache": {"type": "ExistingClaim", "claimName": "c"},
        }
    },
    {**MINIMAL, "tls": {"issuer": "Operator"}},
    {**MINIMAL, "tls": {"engines": True}, "engine": {"extraArgs": ["--seed", "1"]}},
    {**MINIMAL, "gateway": {"tls": {"secretName": "front"}}},
    {**MINIMAL, "tls": {"issuer": "None"}},
    {**MINIMAL, "auth": {"clients": "Keys"}},
    {**MINIMAL, "auth": {"clients": "Keys", "jwt": {"issuer": "https://a.b/", "audience": "c", "jwksSecretName": "d"}}},
    {**MINIMAL, "controlPlane": {"programBudget": {"tokens": 10**12, "engineSeconds": 1, "calls": 50}}},
    {**MINIMAL, "network": {"egress": "Open", "modelSources": [], "metricsNamespaces": []}},
    {**MINIMAL, "network": {"modelSources": [{"cidr": "10.1.0.0/16", "port": 8080}]}},
    {**MINIMAL, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}},
]

TWO_ADAPTERS = [{"name": "a", "source": "b"}, {"name": "c", "source": "d"}]
JWT = {"issuer": "https://a.b/", "audience": "c", "jwksSecretName": "d"}

# (spec, field, words of the parser)
INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"model": {"name": "m", "source": {}}}, "spec.model.source", "exactly one of image and s3"),
    (
        {"model": {"name": "m", "source": {"image": {"reference": "m:1"}, "s3": {"uri": "s3://models/m"}}}},
        "spec.model.source",
        "exactly one of image and s3",
    ),
    ({"model": {"name": "m", "source": {"s3": {"uri": "gs://b/m"}}}}, "spec.model.source.s3.uri", "does not match"),
    (
        {"model": {"name": "m", "source": {"image": {"reference": "m:1", "path": "../etc"}}}},
        "spec.model.source.image.path",
        "does not match",
    ),
    (
        {"model": {"name": "m", "source": {"s3": {"uri": "s3://models/m"}}}, "engine": {"type": "Simulator"}},
        "spec.model.source",
        "VLLM only",
    ),
    ({**MINIMAL, "engine": {"autoscaling": {}}}, "spec.engine.autoscaling.max", "is required"),
    ({**MINIMAL, "engine": {"autoscaling": {"min": 3, "max": 2}}}, "spec.engine.autoscaling.min", "at most max"),
    ({**MINIMAL, "engine": {"autoscaling": {"max": 0}}}, "spec.engine.autoscaling.max", "at least 1"),
    (
        {**MINIMAL, "engine": {"autoscaling": {"max": 2, "targetPercent": 0}}},
        "spec.engine.autoscaling.targetPercent",
        "at least 10",
    ),
    ({**MINIMAL, "gateway": {"ingress": {"tlsSecretName": "t"}}}, "spec.gateway.ingress.tlsSecretName", "needs hosts"),
    ({**MINIMAL, "gateway": {"ingress": {"hosts": ["A"]}}}, "spec.gateway.ingress.hosts[0]", "does not match"),
    ({**MINIMAL, "gateway": {"httpRoute": {"parentRefs": []}}}, "spec.gateway.httpRoute.parentRefs", "name a Gateway"),
    ({**MINIMAL, "network": {"ipFamilies": ["v6"]}}, "spec.network.ipFamilies[0]", "does not match"),
    ({**MINIMAL, "engine": {"extraArgs": ["--data-parallel-size=2"]}}, "spec.engine.extraArgs", "dataParallelSize"),
    (
        {**MINIMAL, "engine": {"extraArgs": ['--kv-transfer-config={"kv_role":"kv_producer"}']}},
        "spec.engine.extraArgs",
        "prefill and decode are not divided",
    ),
    (
        {"model": {"name": "m", "loraAdapters": [{"name": "a", "source": "b"}]}, "engine": {"type": "Simulator"}},
        "spec.model",
        "type VLLM only",
    ),
    (
        {**MINIMAL, "engine": {"nodes": 2, "accelerator": {"count": 8, "tensorParallelSize": 3}}},
        "spec.engine.accelerator.tensorParallelSize",
        "must be accelerator.count times nodes",
    ),
    (
        {
            **MINIMAL,
            "engine": {"nodes": 2, "accelerator": {"count": 8, "tensorParallelSize": 8, "pipelineParallelSize": 1}},
        },
        "spec.engine.accelerator.tensorParallelSize",
        "must be accelerator.count times nodes",
    ),
    (
        {**MINIMAL, "engine": {"nodes": 2, "accelerator": {"count": 0, "tensorParallelSize": 3}}},
        "spec.engine.accelerator.tensorParallelSize",
        "multiple of nodes",
    ),
    (
        {**MINIMAL, "engine": {"accelerator": {"count": 4, "tensorParallelSize": 4, "pipelineParallelSize": 2}}},
        "spec.engine.accelerator.tensorParallelSize",
        "at most accelerator.count",
    ),
    (
        {**MINIMAL, "engine": {"nodes": 2, "accelerator": {"count": 2, "dataParallelSize": 2}}},
        "spec.engine.nodes",
        "excludes accelerator.dataParallelSize",
    ),
    ({**MINIMAL, "engine": {"nodes": 2, "kvOffloadGiB": 8}}, "spec.engine.nodes", "excludes kvOffloadGiB"),
    (
        {**MINIMAL, "engine": {"nodes": 2, "extraArgs": ["--nnodes=3"]}},
        "spec.engine.extraArgs",
        "what the fields set",
    ),
    (
        {
            "model": {"name": "m", "cache": {"type": "PersistentVolumeClaim"}},
            "engine": {"nodes": 2},
        },
        "spec.model.cache.type",
        "engine.nodes 1 only",
    ),
    ({"model": {"name": "m", "maxLoras": 1}}, "spec.model.maxLoras", "at most the number of loraAdapters"),
    (
        {"model": {"name": "m", "loraAdapters": [{"name": "a", "source": "b"}], "maxCpuLoras": 2}},
        "spec.model.maxCpuLoras",
        "at most the number of loraAdapters",
    ),
    (
        {"model": {"name": "m", "loraAdapters": TWO_ADAPTERS, "maxLoras": 2, "maxCpuLoras": 1}},
        "spec.model.maxCpuLoras",
        "must be at least maxLoras",
    ),
    (
        {
            "model": {"name": "m", "loraAdapters": TWO_ADAPTERS, "maxLoras": 2},
            "engine": {"extraArgs": ["--max-loras=4"]},
        },
        "spec.engine.extraArgs",
        "give each once",
    ),
    (
        {**MINIMAL, "gateway": {"programHeaders": [{"name": "authorization"}]}},
        "spec.gateway.programHeaders[0].name",
        "cannot be a credential",
    ),
    (
        {**MINIMAL, "gateway": {"programHeaders": [{"name": "x-run", "parent": "x-agentserving-tenant"}]}},
        "spec.gateway.programHeaders[0].parent",
        "cannot be a credential",
    ),
    (
        {**MINIMAL, "gateway": {"programHeaders": [{"name": "X-Run"}]}},
        "spec.gateway.programHeaders[0].name",
        "does not match",
    ),
    (
        {**MINIMAL, "gateway": {"ignoredProgramHeaders": ["x-run"]}},
        "spec.gateway.ignoredProgramHeaders",
        "those of known agents",
    ),
    ({**MINIMAL, "gateway": {"tls": {}}}, "spec.gateway.tls.secretName", "is required"),
    ({**MINIMAL, "auth": {"jwt": JWT}}, "spec.auth.jwt", "needs clients Keys"),
    ({**MINIMAL, "auth": {"clients": "None", "jwt": JWT}}, "spec.auth.jwt", "needs clients Keys"),
    (
        {**MINIMAL, "auth": {"clients": "Keys", "jwt": {**JWT, "algorithms": ["HS256"]}}},
        "spec.auth.jwt.algorithms[0]",
        "must be one of RS256",
    ),
    (
        {**MINIMAL, "auth": {"clients": "Keys", "jwt": {**JWT, "algorithms": []}}},
        "spec.auth.jwt.algorithms",
        "needs one",
    ),
    (
        {**MINIMAL, "auth": {"clients": "Keys", "jwt": {**JWT, "audience": "a,b"}}},
        "spec.auth.jwt.audience",
        "does not match",
    ),
    (
        {**MINIMAL, "auth": {"clients": "Keys", "jwt": {**JWT, "issuer": "$(POD_IP)"}}},
        "spec.auth.jwt.issuer",
        "does not match",
    ),
    ({}, "spec.model", "is required"),
    ({"model": {}}, "spec.model.name", "is required"),
    ({"model": None}, "spec.model", "is required"),
    ({"model": "llama"}, "spec.model", "must be an object"),
    ({"model": {"name": ""}}, "spec.model.name", "at least 1"),
    ({"model": {"name": "a b"}}, "spec.model.name", "does not match"),
    ({"model": {"name": "a\n"}}, "spec.model.name", "does not match"),
    ({"model": {"name": "--trust-remote-code"}}, "spec.model.name", "does not match"),
    ({"model": {"name": "x" * 257}}, "spec.model.name", "at most 256"),
    (
        {**MINIMAL, "engine": {"template": {"spec": {"restartPolicy": "Never"}}}},
        "spec.engine.template.spec.restartPolicy",
        "no such field",
    ),
    (
        {**MINIMAL, "engine": {"template": {"spec": {"volumes": [{"emptyDir": {}}]}}}},
        "spec.engine.template.spec.volumes[0].name",
        "is required",
    ),
    (
        {**MINIMAL, "gateway": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}},
        "spec.gateway.template.spec.containers[1]",
        "appears twice",
    ),
    ({**MINIMAL, "gateway": {"template": {"spec": {"affinity": []}}}}, "spec.gateway.template.spec.affinity", "object"),
    ({**MINIMAL, "engine": {"replicas": -1}}, "spec.engine.replicas", "at least 0"),
    ({**MINIMAL, "engine": {"replicas": True}}, "spec.engine.replicas", "whole number"),
    ({**MINIMAL, "engine": {"replicas": 1.5}}, "spec.engine.replicas", "whole number"),
    ({**MINIMAL, "engine": {"type": "TGI"}}, "spec.engine.type", "VLLM, Simulator"),
    ({**MINIMAL, "engine": {"replica": 1}}, "spec.engine.replica", "no such field; the fields are type, replicas"),
    ({**MINIMAL, "engine": {"extraArgs": ["x"] * 129}}, "spec.engine.extraArgs", "at most 128 entries"),
    ({**MINIMAL, "engine": {"extraArgs": "x"}}, "spec.engine.extraArgs", "must be a list"),
    ({**MINIMAL, "engine": {"simulator": {}}}, "spec.engine.simulator", "type Simulator only"),
    ({**MINIMAL, "engine": {"type": "Simulator", "kvOffloadGiB": 1}}, "spec.engine.kvOffloadGiB", "type VLLM"),
    (
        {**MINIMAL, "engine": {"accelerator": {"count": 2, "tensorParallelSize": 4}}},
        "spec.engine.accelerator.tensorParallelSize",
        "at most accelerator.count",
    ),
    (
        {**MINIMAL, "engine": {"accelerator": {"count": 8, "dataParallelSize": 2, "tensorParallelSize": 2}}},
        "spec.engine.accelerator.dataParallelSize",
        "dataParallelSize times tensorParallelSize",
    ),
    (
        {**MINIMAL, "engine": {"accelerator": {"products": ["a", "a"]}}},
        "spec.engine.accelerator.products[1]",
        "twice",
    ),
    (
        {**MINIMAL, "engine": {"accelerator": {"nodeSelector": {"zone": 3}}}},
        "spec.engine.accelerator.nodeSelector.zone",
        "must be a string",
    ),
    (
        {**MINIMAL, "engine": {"accelerator": {"tolerations": [{"operator": "Equal"}]}}},
        "spec.engine.accelerator.tolerations[0].key",
        "operator Exists only",
    ),
    ({**MINIMAL, "model": {"name": "a", "cache": {"claimName": "c"}}}, "spec.model.cache.claimName", "no other"),
    ({**MINIMAL, "store": {"type": "ExternalEtcd"}}, "spec.store.external", "is needed with type ExternalEtcd"),
    ({**MINIMAL, "store": {"etcd": {"members": 2}}}, "spec.store.etcd.members", "1 or 3"),
    ({**MINIMAL, "scheduling": {"policy": "custom"}}, "spec.scheduling.custom", "is needed with policy custom"),
    (
        {**MINIMAL, "scheduling": {"policy": "custom", "custom": {"unmanagedLevel": 1}}},
        "spec.scheduling.custom.unmanagedLevel",
        "0 to the number of levels",
    ),
    (
        {**MINIMAL, "controlPlane": {"programBudget": {"calls": 0}}},
        "spec.controlPlane.programBudget.calls",
        "at least 1",
    ),
    ({**MINIMAL, "controlPlane": {"replicas": 6}}, "spec.controlPlane.replicas", "at most 5"),
    (
        {**MINIMAL, "controlPlane": {"replicas": 2}, "store": {"type": "Memory"}},
        "spec.controlPlane.replicas",
        "must be 1 with store.type Memory",
    ),
    ({**MINIMAL, "tls": {"issuer": "CertManager"}}, "spec.tls.issuerRef", "is needed with issuer CertManager"),
    ({**MINIMAL, "tls": {"issuer": "Operator", "issuerRef": {"name": "ca"}}}, "spec.tls.issuerRef", "with no other"),
    ({**MINIMAL, "tls": {"issuerRef": {"name": "ca"}}}, "spec.tls.issuerRef", "with no other"),
    ({**MINIMAL, "auth": {"clients": "Keys"}, "tls": {"issuer": "None"}}, "spec.auth.clients", "needs spec.tls"),
    ({**MINIMAL, "tls": {"issuer": "None", "engines": True}}, "spec.tls.engines", "needs an issuer"),
    (
        {**MINIMAL, "tls": {"engines": True}, "gateway": {"inferencePool": {"enabled": True}}},
        "spec.tls.engines",
        "excludes gateway.inferencePool",
    ),
    (
        {**MINIMAL, "tls": {"engines": True}, "engine": {"extraArgs": ["--seed", "1", "--ssl-keyfile=x"]}},
        "spec.engine.extraArgs",
        "may not contain --ssl-",
    ),
    (
        {**MINIMAL, "network": {"modelSources": [{"cidr": "example.com"}]}},
        "spec.network.modelSources[0].cidr",
        "does not match",
    ),
    ({**MINIMAL, "network": {"metricsNamespaces": ["a", "a"]}}, "spec.network.metricsNamespaces[1]", "twice"),
    ({**MINIMAL, "tls": {"issuer": "Vault"}}, "spec.tls.issuer", "None, Operator, CertManager"),
    (
        {**MINIMAL, "tls": {"issuer": "CertManager", "issuerRef": {"name": "ca", "kind": "Secret"}}},
        "spec.tls.issuerRef.kind",
        "Issuer, ClusterIssuer",
    ),
]
