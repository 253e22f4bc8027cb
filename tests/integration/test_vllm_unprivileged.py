"""A real vLLM with the command, environment and volumes of an engine pod, as the pod's user, on a read-only root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from agentserving.contract.signatures import public_bytes
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import engine_env
from agentserving_cli.local.ports import free_ports
from agentserving_operator.manifests.common import USER, Port
from agentserving_operator.manifests.engine_pod import CHANNEL_DIR, HOME_DIR, KEY_DIR, engine_container
from support import contained
from support.eventually import eventually
from support.operator_objects import env_of, make_cluster

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

START_BOUND_S = 600
MODEL = "/models/tiny"
# What the image of a CPU engine sets.
OF_THE_IMAGE = ("PYTHONPATH", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND")


class Engine:
    """The container `engine` of a cluster without keys."""

    def __init__(self, home: Path) -> None:
        python = vllm_env.ensure_vllm()
        cluster = make_cluster(
            model={"name": MODEL, "servedName": "tiny", "maxLength": 2048},
            engine={
                "accelerator": {"count": 0}, "maxSequences": 4,
                "extraArgs": ["--load-format", "dummy", "--dtype", "float32"],
            },
            auth={"clients": "None"},
        )  # fmt: skip
        container = engine_container(cluster)
        self.volumes = {
            mount["mountPath"]: contained.empty_dir(home / mount["name"]) for mount in container["volumeMounts"]
        }
        shutil.copytree(vllm_env.ensure_model(python), self.volumes["/models"] / "tiny")
        (self.volumes[KEY_DIR] / "public").write_bytes(public_bytes(os.urandom(32)))
        (self.port,), self.log = free_ports(1), home / "log"
        argv = [str(python), *container["command"][1:], *container["args"]]
        argv[argv.index("--port") + 1] = str(self.port)
        assert str(Port.ENGINE) not in argv
        env = {name: str(value).replace("$(POD_NAME)", "demo-engine-0") for name, value in env_of(container).items()}
        of_image = engine_env("", home, home, 0)
        env |= {name: of_image[name] for name in OF_THE_IMAGE} | {"POD_NAME": "demo-engine-0"}
        (home / "root").mkdir()
        self.process = contained.start(
            argv, root=home / "root", image=self._image(python, env["PYTHONPATH"]), volumes=self.volumes, env=env,
            log=self.log,
        )  # fmt: skip

    def _image(self, python: Path, sources: str) -> list[str]:
        environment = python.parents[1]
        return [str(environment), str(python.resolve().parents[1]), *sources.split(os.pathsep)]

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return "Application startup complete" in self.log.read_text()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if lacking := contained.missing():
        pytest.fail(f"this test needs {lacking}")
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        eventually(made.is_up, "vLLM serves", START_BOUND_S, poll_s=0.5)
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


def test_it_answers_calls_without_any_privilege(engine: Engine) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
    response = httpx.post(f"http://127.0.0.1:{engine.port}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    status = contained.status_of(engine.process.pid)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")


def test_it_can_write_to_its_volumes_only(engine: Engine) -> None:
    assert contained.writable_mounts(engine.process.pid) <= engine.volumes.keys() - {"/dev/shm"}
    compiled = engine.volumes[HOME_DIR] / ".cache" / "vllm" / "torch_compile_cache"
    assert any(each.is_file() for each in compiled.rglob("*")), "kernels are compiled into the home directory"


def test_its_socket_is_open_to_the_sidecars_user(engine: Engine) -> None:
    """Both containers of the pod have one user; before, the engine was root and the sidecar was not."""
    (socket,) = [each for each in engine.volumes[CHANNEL_DIR].iterdir() if each.is_socket()]
    assert (socket.stat().st_uid, socket.stat().st_gid) == (USER, USER)
