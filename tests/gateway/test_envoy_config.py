"""The configuration of Envoy: the real Envoy takes it, and it contains what the routes and the header lists say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agentserving_gateway.admission import ADMIT_DEADLINE_S, AWAY_WAIT_S, IN_FORCE_S
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.envoy import FrontSettings, bootstrap, names
from agentserving_gateway.envoy.replies import as_refusal, local_reply_config
from agentserving_gateway.front import Front, command, find_envoy, settings_of, usable_cores
from agentserving_gateway.identity import HEADERS
from agentserving_gateway.identity_options import IdentityOptions
from agentserving_gateway.routes import HEALTH, MODELS, ROUTES


def settings(run_dir: Path, **chosen: Any) -> FrontSettings:
    return FrontSettings(**{"listen": "127.0.0.1:0", "run_dir": run_dir, **chosen})


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"listen": "[::1]:8080"},
        {"listen": ":8080"},
        {"client_keys": True},
        {"max_body_bytes": 1, "max_connections": 1, "max_heap_bytes": 64 << 20},
        {"max_body_bytes": 4_000_000_000, "keep_alive_s": 0.5, "head_s": 0.25, "request_s": 3600.0},
    ],
    ids=str,
)
def test_envoy_takes_the_configuration(chosen: dict[str, Any], tmp_path: Path) -> None:
    made = settings(tmp_path, **chosen)
    EnginesFile(made.engines_file).load()
    made.crowd_file.parent.mkdir()
    made.crowd_file.write_text("0")
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(bootstrap(made)))
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "--config-path", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@pytest.mark.parametrize("keys", [False, True])
def test_envoy_waits_longer_for_an_answer_than_the_picker_for_a_leader(keys: bool, tmp_path: Path) -> None:
    made = settings(tmp_path, client_keys=keys, hold_s=3.0, budget_hold_s=5.0)
    asked = [each for each in find_all(bootstrap(made), "server_uri") if each["cluster"] == "picker"]
    _, by_body = (float(each["timeout"].removesuffix("s")) for each in asked)
    assert by_body > AWAY_WAIT_S + ADMIT_DEADLINE_S + IN_FORCE_S + made.hold_s + made.budget_hold_s


def test_the_command_line_says_what_the_options_say(tmp_path: Path) -> None:
    front = Front(listen="127.0.0.1:1", run_dir=tmp_path, max_body_bytes=7, max_heap_mib=64, workers=3)
    argv = command(settings_of(front, IdentityOptions()), envoy="/opt/envoy", workers=front.workers)
    assert argv[0] == "/opt/envoy"
    assert argv[argv.index("--concurrency") + 1] == "3"
    document = json.loads(Path(argv[argv.index("--config-path") + 1]).read_text())
    assert find_all(document, "max_request_bytes") == [7, 7]
    assert find_all(document, "max_heap_size_bytes") == [64 << 20]


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 8),
        ("max 100000", 8),
        ("", 8),
        ("1 0", 8),
        (None, 8),
    ],
)
def test_envoy_has_as_many_threads_as_the_cpu_limit_allows(text: str | None, cores: int, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    assert usable_cores(file, 8) == cores


def find_all(document: Any, key: str) -> list[Any]:
    """Values of a key anywhere."""
    if isinstance(document, dict):
        own = [document[key]] if key in document else []
        return own + [found for each in document.values() for found in find_all(each, key)]
    return [found for each in document for found in find_all(each, key)] if isinstance(document, list) else []


def manager(run_dir: Path, **chosen: Any) -> Any:
    (listener,) = bootstrap(settings(run_dir, **chosen))["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def pattern(match: Any, literal: str) -> str:
    """The regular expression of a match; one on a literal text is that text, escaped."""
    return re.escape(match[literal]) if literal in match else match.get("safe_regex", {}).get("regex", "")


def test_paths_without_a_variable_part_are_compared_and_not_searched(tmp_path: Path) -> None:
    (host,) = manager(tmp_path)["route_config"]["virtual_hosts"]
    literal = {each["match"]["path"] for each in host["routes"] if "path" in each["match"]}
    assert literal == {route.shown for route in ROUTES if "{" not in route.shown}


def test_each_route_is_in_the_table_with_its_methods_and_whoever_comes_first_is_meant(tmp_path: Path) -> None:
    (host,) = manager(tmp_path)["route_config"]["virtual_hosts"]
    paths = [(pattern(each["match"], "path"), each) for each in host["routes"]]
    for route in ROUTES:
        found = [each for path, each in paths if path == route.path and "route" in each]
        assert found, route.shown
        for each in found:
            (methods,) = [header for header in each["match"]["headers"] if header["name"] == ":method"]
            assert pattern(methods["string_match"], "exact") == "|".join(route.methods)
            # A request without a body cannot smuggle a second one.
            absent = {h["name"] for h in each["match"]["headers"] if h.get("present_match") is False}
            assert (absent == {"content-length", "transfer-encoding"}) == (route.methods != ("POST",))
    for own in (MODELS, HEALTH):
        assert [each for path, each in paths if path == own]
    assert host["routes"][-1]["direct_response"]["status"] == 404
    for route in ROUTES:
        for other in ROUTES:
            shared = set(route.methods) & set(other.methods) and route is not other
            assert not (shared and re.fullmatch(other.path, route.shown.replace("{id}", "resp_1")))


def test_each_reserved_header_is_removed_before_the_picker_is_asked(tmp_path: Path) -> None:
    filters = manager(tmp_path)["http_filters"]
    order = [each["name"] for each in filters]
    mutation = order.index("envoy.filters.http.header_mutation")
    assert mutation < order.index("agentserving.pick") < order.index("agentserving.pick_by_body")
    mutations = filters[mutation]["typed_config"]["mutations"]["request_mutations"]
    removed = {each["remove"] for each in mutations if "remove" in each}
    moved = {each["append"]["header"]["key"] for each in mutations if "append" in each}
    assert removed | moved >= set(names.RESERVED)
    assert [each["remove_on_match"]["key_matcher"]["prefix"] for each in mutations if "remove_on_match" in each]
    # Whatever the picker may set must not come from a client, except the names of programs.
    for name in set(names.PICKER_SETS) - {names.PROGRAM_ID}:
        assert name in removed | moved or name.startswith(names.ENVOYS_OWN), name


def test_the_picker_gets_every_header_that_names_a_program(tmp_path: Path) -> None:
    asked = [each for each in manager(tmp_path)["http_filters"] if each["name"].startswith("agentserving.pick")]
    for each in asked:
        allowed = {pattern["exact"] for pattern in each["typed_config"]["allowed_headers"]["patterns"]}
        assert allowed >= set(HEADERS)
        assert each["typed_config"]["failure_mode_allow"] is True
    for each in manager(tmp_path, client_keys=True)["http_filters"]:
        if each["name"].startswith("agentserving.pick"):
            assert each["typed_config"]["failure_mode_allow"] is False


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_refusal_of_5xx_is_turned_back_into_itself(status: int) -> None:
    travels = as_refusal(status)
    assert 400 <= travels < 500
    for mapper in local_reply_config(1, 1, ())["mappers"]:
        filters = mapper["filter"].get("and_filter", {}).get("filters", [])
        codes = [
            f["status_code_filter"]["comparison"]["value"]["default_value"]
            for f in filters
            if "status_code_filter" in f
        ]
        if codes == [travels]:
            assert mapper["status_code"] == status
            return
    raise AssertionError("no mapper")


@pytest.mark.parametrize("status", [400, 403, 404, 409, 429])
def test_other_refusals_travel_as_they_are(status: int) -> None:
    assert as_refusal(status) == status


def test_prompts_and_credentials_are_in_no_log_line(tmp_path: Path) -> None:
    line = json.dumps(manager(tmp_path)["access_log"])
    for word in ("%REQ(AUTHORIZATION", "%REQ(:PATH)%", "%PATH(", "REQUEST_BODY", "RESPONSE_BODY", names.TICKET + ")"):
        assert word.lower() not in line.lower()
