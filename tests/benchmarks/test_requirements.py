"""Requirements on policies beyond the paper are checked against their runs."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.requirements import SUSTAINED, requirements, sustained


def rows(rate: float, wait_share: float, **token_ms: float) -> list[dict[str, Any]]:
    """Five seeds of every policy named, a little apart from each other."""
    return [
        {
            "run": {"workload": "bfcl", "rate_per_s": rate, "contender": name.replace("_", "-"), "seed": seed},
            "figures": {
                "token_ms": mean + seed, "token_p99_ms": 3 * mean + seed, "large_latency_p99_s": 10 * mean,
                "wait_share": wait_share,
            },
        }
        for name, mean in token_ms.items()
        for seed in range(5)
    ]  # fmt: skip


def test_a_loss_to_plas_names_workload_and_rate() -> None:
    lines = requirements(
        rows(0.2, 0.0, vllm_opt=50, plas=51, gittins=50) + rows(1.0, 0.5, vllm_opt=400, plas=100, gittins=120)
    )
    plas, gittins = lines
    assert plas == ["plas", "1.019", "1.02 (bfcl 0.2/s)", "-"]
    assert gittins == ["gittins", "1.000", "1.00 (bfcl 0.2/s)", "bfcl 1/s (mean and p99)"]


def test_noise_is_not_a_loss() -> None:
    some = rows(1.0, 0.5, vllm_opt=400, plas=100, gittins=100)
    for row in some:
        if row["run"]["contender"] == "gittins" and row["run"]["seed"] == 4:
            row["figures"]["token_ms"] += 60
    assert requirements(some)[1][3] == "nowhere"


def test_throughput_at_equal_latency_is_interpolated_between_the_rates() -> None:
    some = rows(0.5, 0.0, vllm_opt=98, plas=98, srpt=98, vllm=798) + rows(1.0, 0.5, vllm_opt=398, plas=248, srpt=198)
    some += rows(1.0, 0.5, vllm=2000)
    ((workload, goal, *rates),) = sustained(some)
    by_policy = dict(zip(SUSTAINED, rates, strict=True))
    assert (workload, goal) == ("bfcl", "250")
    assert by_policy["vllm-opt"] == "0.75 (1.00x)"
    assert by_policy["plas"] == "1 (1.33x)"
    assert by_policy["srpt"] == ">1 (>1.33x)"
    assert by_policy["vllm"] == "<0.5 (<0.67x)"
    assert by_policy["atlas"] == "-"
