"""The symbols that the plugin uses exist, in the versions that its tables say."""

from __future__ import annotations

import re
from dataclasses import fields

import vllm
from agentserving_engine.conformance import (
    OPTIONAL_SCHEDULER_SYMBOLS,
    SCHEDULER_OUTPUT_ATTRIBUTES,
    missing_symbols,
    parse_version,
)
from engine.versions.rig import Engine, Pipeline
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


def case_every_symbol_is_there(pipeline: Pipeline) -> None:
    engine = Engine(pipeline)
    assert missing_symbols(engine.scheduler, Request("", [0], SamplingParams(max_tokens=1), None)) == []
    names = {field.name for field in fields(SchedulerOutput)}
    assert set(SCHEDULER_OUTPUT_ATTRIBUTES) <= names
    engine.close()


def case_optional_symbols_are_in_the_versions_that_the_table_says(pipeline: Pipeline) -> None:
    engine = Engine(pipeline)
    _, minor = parse_version(vllm.__version__)
    stock = Scheduler
    for name, where in OPTIONAL_SCHEDULER_SYMBOLS.items():
        first = int(match[1]) if (match := re.match(r"0\.(\d+) and later", where)) else 0
        last = int(match[1]) if (match := re.match(r"up to 0\.(\d+)", where)) else minor
        have = hasattr(stock, name) or name in vars(engine.scheduler)
        assert have == (first <= minor <= last), f"{name}: {where}"
    engine.close()
