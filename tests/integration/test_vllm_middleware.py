"""The engine's middleware in a real vLLM: calls that wait, clients that leave, bodies that lie, a core that dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from agentserving.contract.response_ids import engine_of
from agentserving.contract.signatures import public_bytes
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import ClusterSpec, engine_env, vllm_argv
from support.eventually import eventually
from support.processes import running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

COMMENT = b": keep-alive\n\n"
KEEP_ALIVE_S = 0.2
START_BOUND_S = 600
MESSAGES = [{"role": "user", "content": "hi"}]
# Longer than any test: its client ends it.
ENDLESS = {"max_tokens": 8_000, "ignore_eos": True}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
}

# Their tokenization takes longer than KEEP_ALIVE_S.
LONG_PROMPTS = ["x" * 7_000] * 600


class Engine:
    """vLLM with the plugin and the middleware, one call at a time."""

    def __init__(self, home: Path) -> None:
        python = vllm_env.ensure_vllm()
        for signer in ("ticket", "gateway"):
            (home / f"{signer}.pub").write_bytes(public_bytes(os.urandom(32)))
        # A free port could be another process's by the time vLLM listens.
        self.socket, self.log = str(home / "http.sock"), home / "log"
        spec = ClusterSpec(home, max_num_seqs=1)
        argv = vllm_argv(python, vllm_env.ensure_model(python), 0, spec, "--uds", self.socket)
        env = {**engine_env("e0", home, home, 0, unticketed="last"), "AGENTSERVING_SSE_KEEP_ALIVE_S": str(KEEP_ALIVE_S)}
        self.http = self.client()
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, env={**os.environ, **env}, stdout=out, stderr=out)

    def client(self) -> httpx.Client:
        """A client with connections of its own."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), base_url="http://engine", timeout=60)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        # Not by connecting: httpx leaks the socket of a refused connection to a Unix socket.
        return "Application startup complete" in self.log.read_text()

    def requests(self, kind: str) -> float:
        """The gauge of `running` or `waiting` requests."""
        text = self.http.get("/metrics").text
        found = re.search(rf"^vllm:num_requests_{kind}\{{.*\}} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def is_idle(self) -> bool:
        return not self.requests("running") and not self.requests("waiting")

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json={"model": "tiny", **body})

    @contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        document = {"model": "tiny", "stream": True, **body}
        with self.http.stream("POST", path, json=document) as response:
            yield response

    @contextmanager
    def busy(self) -> Iterator[Iterator[bytes]]:
        """While another call occupies the only slot: the chunks of its stream."""
        with self.stream("/v1/completions", {"prompt": "hi", **ENDLESS}) as response:
            chunks = response.iter_raw()
            read_until(chunks, b"data: ")
            yield chunks

    def kill_core(self) -> None:
        (core,) = running(self.process.pid, "EngineCore")
        core.kill()

    def close(self) -> None:
        self.http.close()
        tree = []
        if self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            tree = [parent, *parent.children(recursive=True)]
            self.process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=30)
        for each in alive:
            each.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        eventually(made.is_ready, "vLLM serves", START_BOUND_S, poll_s=0.5)
        yield made
    finally:
        made.close()


@pytest.fixture
def idle(engine: Engine) -> Engine:
    """The engine without calls of an earlier test."""
    eventually(engine.is_idle, "no call is left")
    return engine


def read_until(chunks: Iterator[bytes], wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += next(chunks)
    return seen


@pytest.mark.parametrize("path", BODIES)
def test_a_call_that_waits_gets_comments_and_then_its_tokens(idle: Engine, path: str) -> None:
    with idle.busy(), idle.stream(path, BODIES[path]) as waiting:
        assert waiting.status_code == 200
        chunks = waiting.iter_raw()
        seen = read_until(chunks, COMMENT)
        seen += read_until(chunks, COMMENT)
    assert waiting.headers["content-type"] == "text/event-stream; charset=utf-8"
    with idle.stream(path, BODIES[path]) as served:
        whole = b"".join(served.iter_raw())
    assert seen.replace(COMMENT, b"")[:20] == (whole[:20] if path == "/v1/responses" else b"")
    assert whole.replace(COMMENT, b"").endswith(b"\n\n")


def test_the_id_of_a_response_names_its_engine(idle: Engine) -> None:
    path = "/v1/responses"
    answered = idle.post(path, BODIES[path]).json()
    assert engine_of(answered["id"]) == "e0"
    with idle.stream(path, BODIES[path]) as served:
        event = read_until(served.iter_raw(), b"\n\n").split(b"data: ")[1].split(b"\n")[0]
    assert engine_of(json.loads(event)["response"]["id"]) == "e0"


def test_the_sdk_reads_a_stream_with_comments(idle: Engine) -> None:
    with idle.client() as http:
        client = openai.OpenAI(base_url="http://engine/v1", api_key="none", max_retries=0, http_client=http)
        with idle.busy() as hog:
            stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, stream=True)  # type: ignore[call-overload]
            eventually(lambda: idle.requests("waiting"), "the call waits")
            read_until(hog, b"data: ")
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("length", "stop")


def test_a_stream_whose_head_is_late_is_opened_early(idle: Engine) -> None:
    """vLLM cuts all prompts into tokens before it sends a head."""
    with idle.stream("/v1/completions", {"prompt": LONG_PROMPTS, "max_tokens": 1}) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert response.headers["x-accel-buffering"] == "no", "vLLM's own head"
        chunks = response.iter_raw()
        assert next(chunks).startswith(COMMENT)
        read_until(chunks, b'data: {"id":"cmpl-')


def test_an_error_that_vllm_finds_late_becomes_an_event(idle: Engine) -> None:
    """Few characters, more tokens than the model's context."""
    with idle.stream("/v1/completions", {"prompt": [*LONG_PROMPTS, "\U0001f600" * 4_000]}) as response:
        seen = b"".join(response.iter_raw())
    assert response.status_code == 200
    assert seen.startswith(COMMENT)
    error, done, rest = seen.replace(COMMENT, b"").split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == 400
    assert (done, rest) == (b"data: [DONE]", b"")


@pytest.mark.parametrize("path", BODIES)
def test_an_error_keeps_its_status(idle: Engine, path: str) -> None:
    answer = idle.post(path, {**BODIES[path], "model": "another", "stream": True})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", [{"session_id": "forged"}, {"vllm_xargs": {"session_id": "forged"}}])
def test_a_body_cannot_name_a_session(idle: Engine, path: str, field: dict[str, object]) -> None:
    answer = idle.post(path, {**BODIES[path], **field})
    assert answer.status_code == 400
    assert "session_id is set by agentserving" in answer.json()["error"]["message"]
    assert idle.post(path, {**BODIES[path], "metadata": {"session_id": "an agent's own"}}).status_code == 200


def abandon_stream(engine: Engine) -> None:
    with engine.busy():
        pass


def abandon_whole_answer(engine: Engine) -> None:
    with ThreadPoolExecutor(1) as pool, engine.client() as client:
        body = {"model": "tiny", "prompt": "hi", **ENDLESS}
        call = pool.submit(client.post, "/v1/completions", json=body)
        eventually(lambda: engine.requests("running"), "the call runs")
        _leave(client)
        with pytest.raises((httpx.HTTPError, RuntimeError, OSError)):
            call.result(20)


def abandon_waiting_stream(engine: Engine) -> None:
    with engine.busy():
        with engine.stream("/v1/chat/completions", BODIES["/v1/chat/completions"]) as waiting:
            read_until(waiting.iter_raw(), COMMENT)
        eventually(lambda: not engine.requests("waiting"), "the waiting call is aborted", deadline_s=1.0)


def _leave(client: httpx.Client) -> None:
    """Closes the sockets below a request that another thread waits for."""
    for connection in list(client._transport._pool.connections):  # type: ignore[attr-defined]
        stream = connection._connection._network_stream
        stream.get_extra_info("socket").shutdown(2)


@pytest.mark.parametrize("leave", [abandon_stream, abandon_whole_answer, abandon_waiting_stream])
def test_a_client_that_leaves_frees_its_slot_within_a_second(idle: Engine, leave: Callable[[Engine], None]) -> None:
    leave(idle)
    eventually(idle.is_idle, "the call is aborted", deadline_s=1.0)


def events_until_the_end(engine: Engine, path: str, started: Future[None]) -> bytes:
    with engine.stream(path, BODIES[path]) as response:
        chunks = response.iter_raw()
        seen = read_until(chunks, COMMENT)
        started.set_result(None)
        # Raises if the stream is cut.
        return seen + b"".join(chunks)


def test_every_dialect_hears_that_the_engine_core_has_died(idle: Engine) -> None:
    """Last: it ends the engine."""
    with idle.busy() as hog, ThreadPoolExecutor(len(BODIES)) as pool:
        started: list[Future[None]] = [Future() for _ in BODIES]
        calls = [pool.submit(events_until_the_end, idle, path, it) for path, it in zip(BODIES, started, strict=True)]
        for each in started:
            each.result(60)
        idle.kill_core()
        running = b"".join(hog)
        ends = {path: call.result(60) for path, call in zip(BODIES, calls, strict=True)}
    for ended in (running, ends["/v1/completions"], ends["/v1/chat/completions"]):
        *_, error, done, rest = ended.split(b"\n\n")
        assert json.loads(error.removeprefix(b"data: "))["error"]["message"]
        assert (done, rest) == (b"data: [DONE]", b"")
    *_, failed, rest = ends["/v1/responses"].split(b"\n\n")
    assert failed.startswith(b"event: response.failed\ndata: ")
    response = json.loads(failed.partition(b"data: ")[2])["response"]
    assert (response["status"], response["error"]["code"], rest) == ("failed", "server_error", b"")
    assert b"event: error\ndata: " in ends["/v1/messages"]
    assert b"message_stop" not in ends["/v1/messages"]
