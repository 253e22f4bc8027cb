"""Cost models of GPUs: what data sheets say, and what they do not have."""

from __future__ import annotations

import pytest
from agentserving_simulator.cost_model import GPUS, MODELS, cost_model


def test_a_lone_call_of_8b_decodes_as_fast_as_vllm_does_on_an_a100() -> None:
    assert cost_model("a100-80gb", "llama-3.1-8b").decode_us(1, 1000, 100) / 100 == pytest.approx(11_000, rel=0.05)


def test_70b_takes_four_gpus_and_they_split_its_weights() -> None:
    small, large = (cost_model("a100-80gb", name) for name in ("llama-3.1-8b", "llama-3.1-70b"))
    assert large.weights_us == pytest.approx(small.weights_us * (70.6 / 8.03) / 4)
    # 4 x (0.9 x 85.9 - 3) GB less 141.2 GB of weights, at 320 KiB a token.
    assert large.num_blocks * 16 == pytest.approx((4 * 74.31e9 - 141.2e9) / (320 * 1024), rel=0.001)
    assert large.base_us > small.base_us, "GPUs have to agree, layer by layer"


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b"])
def test_an_h100_is_faster_in_everything(model: str) -> None:
    old, new = (cost_model(gpu, model) for gpu in ("a100-80gb", "h100-80gb"))
    assert new.weights_us < old.weights_us
    assert new.compute_us_per_token < 0.5 * old.compute_us_per_token
    assert new.transfer_us_per_token < old.transfer_us_per_token
    assert new.num_blocks == old.num_blocks


def test_a_b200_is_faster_in_everything_and_holds_more() -> None:
    old, new = (cost_model(gpu, "llama-3.1-8b") for gpu in ("h100-80gb", "b200-180gb"))
    assert new.weights_us == pytest.approx(old.weights_us * 3.35 / 8)
    assert new.compute_us_per_token == pytest.approx(old.compute_us_per_token * 989 / 2250)
    assert new.num_blocks > 2 * old.num_blocks


def test_a_mixture_of_experts_reads_the_experts_that_its_tokens_use() -> None:
    model, cost = MODELS["qwen3-30b-a3b-fp8"], cost_model("h100-80gb", "qwen3-30b-a3b-fp8")
    assert model.active_parameters == pytest.approx(3.3e9, rel=0.03), "as its card says"
    every = 30.5e9 / (0.8 * 3.35e12) * 1e6
    assert cost.read_us(10_000) == pytest.approx(every)
    lone, dozen = (cost.read_us(calls) for calls in (1, 12))
    assert lone == pytest.approx(every * model.active_parameters / model.parameters)
    # Of 128 experts 12 calls use 1 - (1 - 8 / 128)^12 = 54 %.
    assert dozen == pytest.approx(cost.weights_us + 0.539 * cost.experts_us, rel=0.001)
    assert cost.step_us(12, 0) == cost.decode_us(12, 0, 1) == int(cost.base_us + dozen)
    # 0.9 x 85.9 - 3 GB less 30.5 GB of weights, at 96 KiB a token.
    assert cost.num_blocks * 16 == pytest.approx((74.31e9 - 30.5e9) / (96 * 1024), rel=0.001)


@pytest.mark.parametrize(
    ("gpu", "model", "parallel", "words"),
    [
        ("a100", "llama-3.1-8b", 0, f"no GPU 'a100'; there are {', '.join(GPUS)}"),
        ("h100-80gb", "llama-4", 0, f"no model 'llama-4'; there are {', '.join(MODELS)}"),
        ("h100-80gb", "llama-3.1-70b", 1, "llama-3.1-70b does not fit on 1 h100-80gb: 141 GB of weights"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_told(gpu: str, model: str, parallel: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cost_model(gpu, model, parallel)
