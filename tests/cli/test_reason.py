"""The line of a log that says why a component ended. The logs are real ones, shortened."""

from __future__ import annotations

import pytest
from agentserving_cli.local.reason import ending, reason_in

CORE = "(EngineCore pid=9903) ERROR 11-24 22:23:05 [core.py:1510] "
ENGINE_CORE_FAILED = f"""\
(APIServer pid=9793) WARNING 11-24 22:22:04 [system_utils.py:255] Found ulimit of 20000: `OSError: [Errno 24]`.
{CORE}EngineCore failed to start.
{CORE}Traceback (most recent call last):
{CORE}  File "/x/vllm/v1/engine/core.py", line 1194, in __init__
{CORE}ValueError: To serve at least one request, 0.5 GiB KV cache is needed, which is larger than the available memory
(EngineCore pid=9903) Traceback (most recent call last):
(EngineCore pid=9903)   File "/x/vllm/v1/engine/core.py", line 1194, in __init__
(EngineCore pid=9903) ValueError: To serve at least one request, 0.5 GiB KV cache is needed, which is larger than the \
available memory
(APIServer pid=9793) Traceback (most recent call last):
(APIServer pid=9793)   File "/x/vllm/v1/engine/utils.py", line 998, in wait_for_engine_startup
(APIServer pid=9793) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
BAD_LENGTH = """\
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (999999) is greater than the derived max_model_len.
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            ENGINE_CORE_FAILED,
            "ValueError: To serve at least one request, 0.5 GiB KV cache is needed, which is larger than the available "
            "memory",
        ),
        (
            BAD_LENGTH,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
            "User-specified max_model_len (999999) is greater than the derived max_model_len.",
        ),
        (
            "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n",
            "api_server.py: error: unrecognized arguments: --nonsense",
        ),
        (
            "/v/bin/python: Error while finding module specification for 'vllm.x' (No module named 'vllm')\n",
            "/v/bin/python: Error while finding module specification for 'vllm.x' (No module named 'vllm')",
        ),
        (
            '{"event": "starting", "level": "info"}\n'
            '{"listen": "127.0.0.1:80", "event": "cannot listen: is the port taken?", "level": "error"}\n',
            "cannot listen: is the port taken?: listen: 127.0.0.1:80",
        ),
        (
            '{"level":"warn","msg":"x"}\n{"level":"fatal","ts":"2026","caller":"etcdmain/etcd.go:203",'
            '"msg":"discovery failed","error":"listen tcp 127.0.0.1:2379: bind: address already in use"}\n',
            "discovery failed: error: listen tcp 127.0.0.1:2379: bind: address already in use",
        ),
        (
            '{"event": "crashed", "level": "error", "exception": "Traceback:\\n  File x\\nKeyError: 7"}\n',
            "crashed: KeyError: 7",
        ),
        ("some words\nlast words\n\n", "last words"),
        ("", ""),
    ],
)
def test_the_root_cause_is_found(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def test_an_end_is_told_in_words() -> None:
    assert ending(3) == "ended with code 3"
    assert ending(-9) == "was killed by SIGKILL (out of memory?)"
    assert ending(-11) == "was killed by SIGSEGV"
