"""A policy in the formats that users apply: JSON for `agentserving policy set`, YAML for an AgentServingCluster."""

from __future__ import annotations

from agentserving.contract.policy import Policy, Source
from agentserving.contract.policy_message import policy_to
from google.protobuf import json_format


def as_json(policy: Policy) -> str:
    """The JSON that `agentserving policy set FILE` reads."""
    return json_format.MessageToJson(policy_to(policy), preserving_proto_field_name=True) + "\n"


def _word(value: str) -> str:
    return "".join(part.capitalize() for part in value.split("_"))


def as_yaml(policy: Policy, indent: int = 2) -> str:
    """`scheduling:` of an AgentServingCluster's spec; bounds and quanta must be whole milliseconds (ValueError)."""
    if policy.source is not Source.FIXED or policy.classes:
        raise ValueError("levels: only fixed levels can be written out, not those computed from finished programs")
    bounded = policy.levels[:-1]
    for index, level in enumerate(bounded):
        if level.upper_bound_us % 1000 or level.quantum_us % 1000:
            raise ValueError(f"levels[{index}]: bounds and quanta must be whole milliseconds")
    lines = [
        "scheduling:",
        "  policy: custom",
        "  custom:",
        f"    accounting: {_word(policy.accounting.value)}",
        *(["    levels:"] if bounded else []),
    ]
    for level in bounded:
        lines.append(f"    - upperBoundMilliseconds: {level.upper_bound_us // 1000}")
        lines.append(f"      quantumMilliseconds: {level.quantum_us // 1000}")
    lines += [
        f"    order: {_word(policy.order.value)}",
        f"    betaMilli: {policy.beta_milli}",
        f"    maxPreemptions: {policy.max_preemptions}",
        f"    decisionIntervalSteps: {policy.decision_interval_steps}",
        f"    unmanagedLevel: {policy.unmanaged_level}",
        f"    retentionMilli: {policy.retention_milli}",
        *(["    workingSet: true"] if policy.working_set else []),
    ]
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def in_words(policy: Policy) -> str:
    """A one-line summary."""
    bounds = ", ".join(f"{level.upper_bound_us / 1e6:g}" for level in policy.levels[:-1])
    levels = f"{len(policy.levels)} levels up to {bounds} s" if bounds else "one level"
    beta = f"beta {policy.beta_milli / 1000:g}" if policy.beta_milli else "no promotion"
    preemptions = f"at most {policy.max_preemptions} preemptions" if policy.max_preemptions else "no preemption"
    bounded = "; working set bounded" if policy.working_set else ""
    retention = f"; KV retained for {policy.retention_milli / 1000:g} times its cost" if policy.retention_milli else ""
    account = policy.accounting.value.replace("_", " ")
    return (
        f"account: {account}; {levels}; order: {policy.order.value.replace('_', ' ')}; {beta}; {preemptions}"
        f"{retention}{bounded}"
    )
