"""The benchmark on a GPU, apart from the runs on the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agentserving_simulator.cost_model import CostModel
from click.testing import CliRunner

from benchmarks.gpu import SHAPE_8B, TOKENIZER, main, shaped_model, virtually
from benchmarks.records import RESULTS


def test_a_run_is_shown_next_to_virtual_time(tmp_path: Path) -> None:
    document = json.loads((RESULTS / "gpu-cuda.json").read_text())
    row = document["rows"][0]
    again = virtually(document, row)
    assert again["latency_s"] == pytest.approx(row["figures"]["latency_s"], rel=0.15)
    slower = CostModel(**document["engine"]["cost"] | {"speed": again["speed"] / 2})
    assert virtually(document, row, slower)["latency_s"] > 1.5 * again["latency_s"]
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps(document | {"rows": [row]}))
    printed = CliRunner().invoke(main, ["--table", str(raw)])
    assert printed.exit_code == 0, printed.output
    kinds = [line.split("│")[2].strip() for line in printed.output.splitlines() if line.startswith("│")]
    assert kinds == ["engine", "virtual", "virtual, no preemptions", "data sheet"], printed.output


def test_the_model_has_the_shape_of_8b_and_the_tokenizer_of_the_tiny_one(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    for name in TOKENIZER:
        (tiny / name).write_text(name)
    (tiny / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}))
    made = shaped_model(tmp_path / "8b", tiny)
    config = json.loads((made / "config.json").read_text())
    assert config == {"architectures": ["LlamaForCausalLM"], **SHAPE_8B}
    assert [(made / name).read_text() for name in TOKENIZER] == list(TOKENIZER)


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused = CliRunner().invoke(main, [])
    assert refused.exit_code == 1
    assert "--device cpu" in refused.output
