"""A kubectl for machines without one: answers `get` and `logs` from files and really forwards ports.

Started as ``kubectl``. KUBECTL_ANSWERS is a directory with a JSON file for each resource. Its file `ports` contains the
local port that a forwarded port leads to; `ports-NAME` overrides it for the target NAME.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

SCRIPT = f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n'


def install(directory: Path) -> None:
    """Installs the stand-in as `kubectl` into a directory that is on PATH."""
    script = directory / "kubectl"
    script.write_text(SCRIPT)
    script.chmod(0o755)


def _copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            to.sendall(data)
    except OSError:
        pass
    to.close()


def _forward(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"Forwarding from 127.0.0.1:{listener.getsockname()[1]} -> {port}", flush=True)
    while True:
        one, _ = listener.accept()
        other = socket.create_connection(("127.0.0.1", port))
        for pair in ((one, other), (other, one)):
            threading.Thread(target=_copy, args=pair, daemon=True).start()


def main(arguments: list[str]) -> None:
    """Runs one command."""
    answers = Path(os.environ["KUBECTL_ANSWERS"])
    words = [word for word in arguments if not word.startswith("--")]
    with (answers / "asked").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    if words[0] == "port-forward":
        own = answers / f"ports-{words[1].partition('/')[2]}"
        _forward(int((own if own.exists() else answers / "ports").read_text()))
    if words[0] == "logs":
        print((answers / "logs").read_text(), end="")
        return
    found = answers / f"{words[1]}.json"
    if not found.exists():
        sys.exit(f'error: the server doesn\'t have a resource type "{words[1]}"')
    print(found.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
