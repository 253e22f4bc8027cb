"""A process as Kubernetes runs a container: another user without capabilities, a read-only root file system, volumes.

Needs root, to mount and to change the user. Everything happens in a mount namespace of the process, so nothing is left
behind. The network is the machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentserving_operator.manifests.common import USER

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
PROGRAMS = ("unshare", "mount", "chroot", "setpriv")


def missing() -> str:
    """What this machine lacks; "" when containers can be started."""
    if os.geteuid() != 0:
        return "root, to mount and to become another user"
    return " and ".join(name for name in PROGRAMS if shutil.which(name) is None)


def empty_dir(path: Path) -> Path:
    """A volume as kubelet makes an emptyDir with `fsGroup`."""
    path.mkdir()
    os.chown(path, 0, USER)
    path.chmod(0o2777)
    return path


def start(
    argv: Sequence[str],
    *,
    root: Path,
    image: Sequence[str],
    volumes: Mapping[str, Path],
    env: Mapping[str, str],
    log: Path,
) -> subprocess.Popen[bytes]:
    """Starts a command; the process is the command itself.

    `root`: an empty directory. `image`: directories of this machine that the container sees with the system's, at the
    same paths, read-only. `volumes`: directories by the paths where they are mounted, writable. `env` is all of it.
    """
    place = shlex.quote(str(root))
    lines = ["set -e", f"mount -t tmpfs -o mode=0755 none {place}"]
    # A copy, because volumes are mounted below it.
    lines.append(f"cp -a /etc {place}/etc")
    lines += [f"mkdir -p {place}{path}; mount --rbind {path} {place}{path}" for path in ("/proc", "/sys", "/dev")]
    for target, source in volumes.items():
        at = f"{place}{shlex.quote(target)}"
        lines.append(f"mkdir -p {at}; mount --bind {shlex.quote(str(source))} {at}")
    # After the volumes: a checkout may lie in /tmp, which is one.
    for path in (*SYSTEM, *image):
        if os.path.islink(path) and path in SYSTEM:
            lines.append(f"ln -s {shlex.quote(os.readlink(path))} {place}{path}")
        elif os.path.isdir(path):
            at = f"{place}{shlex.quote(path)}"
            lines.append(f"mkdir -p {at}; mount --bind {shlex.quote(path)} {at}; mount -o remount,bind,ro {at}")
    lines.append(f"mount -o remount,ro {place}")
    identity = (f"--reuid={USER}", f"--regid={USER}", f"--groups={USER}")
    command = ["chroot", str(root), "setpriv", *identity, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    lines.append(f"exec {shlex.join([*command, *argv])}")
    with log.open("wb") as out:
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", "\n".join(lines)],
            stdout=out, stderr=out, env={"PATH": os.environ["PATH"], **env},
        )  # fmt: skip


def status_of(pid: int) -> dict[str, str]:
    """Of a process, as the kernel says it: user, capabilities and so on."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def writable_mounts(pid: int) -> set[str]:
    """Where the process' file systems are mounted for writing, without those of the kernel."""
    found = set()
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        _, _, _, _, target, options, *_ = line.split()
        if "rw" in options.split(",") and not target.startswith(("/proc", "/sys", "/dev")):
            found.add(target)
    return found
