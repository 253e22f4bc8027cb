"""What the plugin refuses, and that its tables of vLLM's symbols match its code."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import agentserving_engine
import pytest
from agentserving_engine import conformance
from agentserving_engine.conformance import (
    BLOCK_POOL_SYMBOLS,
    OPTIONAL_SCHEDULER_SYMBOLS,
    REQUEST_ATTRIBUTES,
    SCHEDULER_ATTRIBUTES,
    SCHEDULER_METHODS,
    SCHEDULER_OUTPUT_ATTRIBUTES,
    UnsupportedEngineError,
    check_config,
    check_symbols,
    check_version,
    missing_symbols,
)

SOURCE = Path(agentserving_engine.__path__[0])
# Modules that may import vLLM: the hooks, the adapter with its view of the KV cache, the queue, which implements vLLM's
# interface, and the process of nodes without a scheduler, which is vLLM's own.
HOOKS, ADAPTER, MEMORY, QUEUE = "scheduler.py", "vllm_adapter.py", "block_memory.py", "waiting_queue.py"
WORKER = "node_worker.py"


def touched(names: set[str]) -> set[str]:
    """Attributes of objects with these names that the plugin uses, by getattr and hasattr too.

    `x.vllm.NAME` counts as `vllm.NAME`.
    """
    found: set[str] = set()
    for path in (SOURCE / HOOKS, SOURCE / ADAPTER, SOURCE / MEMORY, SOURCE / QUEUE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and _stands_for(node.value, names):
                found.add(node.attr)
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"getattr", "hasattr"}
            ):
                target, name = node.args[:2]
                if _stands_for(target, names) and isinstance(name, ast.Constant):
                    found.add(str(name.value))
    return {name for name in found if not name.startswith("__")}


def _stands_for(node: ast.expr, names: set[str]) -> bool:
    if isinstance(node, ast.Subscript):
        # requests[key] is a request.
        return "request" in names and _stands_for(node.value, {"requests"})
    return (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)


def overridden() -> set[str]:
    """Methods of vLLM's scheduler that call super() in ours."""
    tree = ast.parse((SOURCE / "scheduler.py").read_text())
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name) and node.value.func.id == "super" and node.attr != "__init__"
    }  # fmt: skip


def test_the_table_of_scheduler_symbols_is_what_the_plugin_touches() -> None:
    table = {*SCHEDULER_ATTRIBUTES, *SCHEDULER_METHODS, *OPTIONAL_SCHEDULER_SYMBOLS}
    # `vllm.__version__` in the hooks is the module's.
    assert touched({"vllm"}) | overridden() == table


def test_the_tables_of_request_output_and_pool_symbols_are_what_the_plugin_touches() -> None:
    assert touched({"request"}) == set(REQUEST_ATTRIBUTES)
    assert touched({"output"}) == set(SCHEDULER_OUTPUT_ATTRIBUTES)
    assert touched({"pool", "block_pool"}) == set(BLOCK_POOL_SYMBOLS)


def test_only_the_parts_that_touch_vllm_import_it() -> None:
    importing = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(module and module.split(".")[0] == "vllm" for module in modules):
                importing.add(path.name)
    assert importing == {HOOKS, ADAPTER, MEMORY, QUEUE, WORKER}


def test_only_the_adapter_assigns_to_attributes_of_vllms_objects() -> None:
    ours = {"self"}
    for name in (HOOKS, QUEUE):
        for node in ast.walk(ast.parse((SOURCE / name).read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
            for target in (each for each in targets if isinstance(each, ast.Attribute)):
                owner = target.value
                while isinstance(owner, ast.Attribute):
                    owner = owner.value
                assert isinstance(owner, ast.Name)
                assert owner.id in ours | {"guard"}, f"{name} writes {ast.unparse(target)}"


class OldScheduler:
    """Lacks nearly everything."""

    running: tuple[()] = ()

    def schedule(self) -> None: ...

    def _preempt_request(self, request: object, timestamp: float) -> None: ...


def test_a_missing_symbol_or_parameter_is_named() -> None:
    missing = missing_symbols(OldScheduler(), SimpleNamespace(status=None))
    assert "Scheduler._preempt_request(drop_stale_output)" in missing
    assert "Scheduler.requires_kv_delivery" in missing
    assert "Request.session_id" in missing
    assert not {"Scheduler.schedule", "Scheduler.running", "Request.status"} & set(missing)
    with pytest.raises(UnsupportedEngineError, match=r"vLLM 0\.31\.0 lacks .*session_id.*: use a release of 0\.28 to"):
        check_symbols("0.31.0", OldScheduler(), SimpleNamespace())


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0", "1.0.0", "dev", ""])
def test_a_version_outside_the_range_is_refused_with_the_range(version: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=r"use 0\.28 to 0\.33, or leave --scheduler-cls out"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.28.0", "0.33.0", "0.32.1+cpu", "0.33.0rc1"])
def test_a_version_in_the_range_is_accepted(version: str) -> None:
    check_version(version)


def config(**changes: object) -> SimpleNamespace:
    values = {
        "model_config": SimpleNamespace(runner_type="generate", is_diffusion=False),
        "parallel_config": SimpleNamespace(data_parallel_size=1, data_parallel_index=0),
        "kv_transfer_config": None,
    }
    return SimpleNamespace(**{**values, **changes})


def test_an_ordinary_engine_is_accepted() -> None:
    check_config(config())
    check_config(config(kv_transfer_config=SimpleNamespace(is_kv_producer=True, is_kv_consumer=True)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_config": SimpleNamespace(runner_type="pooling")}, "'pooling' has no decode steps.*use stock vLLM"),
        ({"model_config": SimpleNamespace(is_diffusion=True)}, "diffusion.*use stock vLLM"),
        ({"kv_transfer_config": SimpleNamespace(is_kv_producer=True, is_kv_consumer=False)}, "KV producer.*use stock"),
        (
            {"parallel_config": SimpleNamespace(data_parallel_size=2, data_parallel_index=0)},
            r"not AGENTSERVING_RANKS, which is 1 \(size 2, this is rank 0\): set the variable to the same number",
        ),
        (
            {
                "parallel_config": SimpleNamespace(
                    data_parallel_size=1, data_parallel_index=0, data_parallel_external_lb=True
                )
            },
            "start one engine.*for each front",
        ),
        # A rank of a dense model: vLLM sets its size to one.
        ({"parallel_config": SimpleNamespace(data_parallel_size=1, data_parallel_index=1)}, "this is rank 1"),
    ],
)
def test_what_cannot_be_scheduled_by_program_is_refused_with_the_alternative(changes: dict, reason: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=reason):
        check_config(config(**changes))


@pytest.mark.parametrize(
    ("size", "rank"),
    # The ranks of a dense model have size one; those of a model with experts the size of the engine.
    [(1, 0), (1, 3), (4, 0), (4, 3)],
)
def test_as_many_ranks_as_were_announced_are_accepted(size: int, rank: int) -> None:
    check_config(config(parallel_config=SimpleNamespace(data_parallel_size=size, data_parallel_index=rank)), ranks=4)


@pytest.mark.parametrize(("size", "rank"), [(1, 4), (8, 0), (2, 0)])
def test_other_ranks_than_were_announced_are_refused(size: int, rank: int) -> None:
    parallel = SimpleNamespace(data_parallel_size=size, data_parallel_index=rank)
    with pytest.raises(UnsupportedEngineError, match="AGENTSERVING_RANKS, which is 4"):
        check_config(config(parallel_config=parallel), ranks=4)


def test_the_range_is_what_the_version_matrix_runs() -> None:
    from engine.vllm_sources import VERSIONS

    minors = [conformance.parse_version(version) for version in VERSIONS]
    assert minors[0] == conformance.OLDEST
    assert minors[-1] == conformance.NEWEST
    assert minors == [(0, minor) for minor in range(conformance.OLDEST[1], conformance.NEWEST[1] + 1)]
