"""Models from a real S3 server: complete, once, and whatever an interruption has left."""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentserving_cli.local.ports import free_ports
from agentserving_operator.model_download import PART_BYTES
from agentserving_operator.model_path import directory_of
from support.certificate_files import CertificateFiles
from support.s3_server import BUCKET, KEYS, s3_server

# More than one part.
WEIGHTS = random.Random(7).randbytes(PART_BYTES + 1_000_003)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "original/empty.txt": b""}
OBJECTS = {f"llama/v1/{name}": data for name, data in FILES.items()}
URI = f"s3://{BUCKET}/llama/v1"


@pytest.fixture(scope="module")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3") / "moto.log"


@pytest.fixture(scope="module")
def endpoint(s3_log: Path) -> Iterator[str]:
    # The name of another model begins with the prefix.
    with s3_server(s3_log, {**OBJECTS, "llama/v1-large/config.json": b"no", "v1.5/a.d/b": b"x"}) as url:
        # Directories, as consoles create them.
        for key in ("llama/v1/", "llama/v1/original/", "v1.5/", "v1.5/a.d/"):
            put(int(url.rpartition(":")[2]), key, b"")
        yield url


def put(port: int, key: str, data: bytes = b"x") -> None:
    """As it is: our client sends no such key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT", f"/{BUCKET}/{key.replace('..', '%2E%2E')}", data)
    assert connection.getresponse().status == 200
    connection.close()


def start(root: Path, endpoint: str, uri: str = URI, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentserving_operator.model_download", "--uri", uri, "--root", str(root)]
    environment = {**os.environ, **KEYS, **variables}
    return subprocess.Popen(
        [*command, "--endpoint", endpoint],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(root: Path, endpoint: str, uri: str = URI, **variables: str) -> tuple[int, list[str]]:
    """(exit status, lines of the log)."""
    process = start(root, endpoint, uri, **variables)
    _, log = process.communicate(timeout=120)
    return process.returncode, log.splitlines()


def files_of(root: Path, endpoint: str, uri: str = URI) -> dict[str, bytes]:
    place = Path(directory_of(str(root), uri, endpoint))
    return {str(each.relative_to(place)): each.read_bytes() for each in place.rglob("*") if each.is_file()}


def test_a_model_arrives_complete_and_later_starts_do_not_need_the_server(
    tmp_path: Path, endpoint: str, s3_log: Path
) -> None:
    status, log = run(tmp_path, endpoint)
    assert (status, log[-1]) == (0, "complete")
    assert files_of(tmp_path, endpoint) == FILES
    asked = s3_log.read_text().count("GET /")
    assert run(tmp_path, endpoint) == (0, ["the files are there"])
    assert s3_log.read_text().count("GET /") == asked > len(FILES)


def test_a_directory_is_no_file_whatever_its_name(tmp_path: Path, endpoint: str) -> None:
    uri = f"s3://{BUCKET}/v1.5"
    assert run(tmp_path, endpoint, uri)[0] == 0
    assert files_of(tmp_path, endpoint, uri) == {"a.d/b": b"x"}


def test_an_interrupted_download_fetches_what_is_missing(tmp_path: Path, endpoint: str) -> None:
    partial = Path(directory_of(str(tmp_path), URI, endpoint) + ".partial")
    (partial / "original").mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(WEIGHTS)
    before = (partial / "model.safetensors").stat()
    (partial / "config.json.partial").write_bytes(b"{")
    (partial / "original" / "removed-since").write_bytes(b"x")
    status, log = run(tmp_path, endpoint)
    assert status == 0, log
    assert files_of(tmp_path, endpoint) == FILES
    after = Path(directory_of(str(tmp_path), URI, endpoint)) / "model.safetensors"
    assert (after.stat().st_ino, after.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_killed_download_is_never_taken_for_a_model(tmp_path: Path, endpoint: str) -> None:
    process = start(tmp_path, endpoint)
    assert process.stderr is not None
    for line in process.stderr:
        if "model.safetensors" in line:
            break
    process.kill()
    process.communicate(timeout=60)
    assert files_of(tmp_path, endpoint) in ({}, FILES)
    assert run(tmp_path, endpoint)[0] == 0
    assert files_of(tmp_path, endpoint) == FILES


def test_of_engines_that_share_a_volume_one_downloads(tmp_path: Path, endpoint: str) -> None:
    processes = [start(tmp_path, endpoint) for _ in range(3)]
    ends = [process.communicate(timeout=120)[1].splitlines()[-1] for process in processes]
    assert sorted(ends) == ["complete", "the files are there", "the files are there"]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert files_of(tmp_path, endpoint) == FILES


@pytest.mark.parametrize(
    ("uri", "says"),
    [(f"s3://{BUCKET}/llama/v2", "there are no objects"), ("s3://nobody/llama", "specified bucket does not exist")],
)
def test_the_last_line_says_why_there_is_no_model(tmp_path: Path, endpoint: str, uri: str, says: str) -> None:
    status, log = run(tmp_path, endpoint, uri)
    assert status == 1
    assert log[-1].startswith(f"cannot download {uri}: ")
    assert says in log[-1]
    assert files_of(tmp_path, endpoint, uri) == {}


def test_a_server_that_cannot_be_reached_is_said_with_the_cause(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    status, log = run(tmp_path, f"http://127.0.0.1:{port}")
    assert (status, len(log)) == (1, 1)
    assert "Connection refused" in log[-1]


def test_a_private_authority_is_trusted_by_the_usual_variable(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path).paths("etcd")
    with s3_server(tmp_path / "moto.log", OBJECTS, files) as url:
        status, log = run(tmp_path / "stranger", url)
        assert (status, len(log)) == (1, 1)
        assert "UnknownIssuer" in log[0]
        assert run(tmp_path / "root", url, SSL_CERT_FILE=str(files["ca"]))[0] == 0
    assert files_of(tmp_path / "root", url) == FILES


def test_an_object_outside_of_the_directory_is_refused(tmp_path: Path, s3_log: Path) -> None:
    evil = "llama/v1/../../evil"
    with s3_server(s3_log.with_name("evil.log"), {}) as url:
        port = int(url.rpartition(":")[2])
        put(port, evil)
        status, log = run(tmp_path / "root", url)
    assert status == 1, log
    assert "evil" in log[-1]
    assert [each for each in tmp_path.rglob("*") if "evil" in each.name] == []
