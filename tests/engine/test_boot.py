"""One boot for all ranks of one start of an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agentserving_engine.boot import boot_of_parent, new_boot, read_boot, write_boot

SOURCE = "from agentserving_engine.boot import boot_of_parent; print(boot_of_parent())"


def test_children_of_one_process_have_one_boot() -> None:
    ranks = {subprocess.run([sys.executable, "-c", SOURCE], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(ranks) == 1
    assert ranks != {f"{boot_of_parent()}\n".encode()}


def test_another_start_with_the_same_process_id_is_another_boot(tmp_path: Path) -> None:
    kernel = tmp_path / "sys/kernel/random"
    kernel.mkdir(parents=True)
    process = tmp_path / str(os.getppid())
    process.mkdir()

    def boot(started: int, kernel_boot: str) -> str:
        (kernel / "boot_id").write_text(f"{kernel_boot}\n")
        (process / "stat").write_text(f"1 (python) v) S {' '.join(['0'] * 18)} {started} 0 0")
        return boot_of_parent(tmp_path)

    one, other = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
    assert len({boot(5, one), boot(6, one), boot(5, other)}) == 3
    assert boot(5, one) == boot(5, one)


def test_the_boot_in_the_directory_is_the_last_one_written(tmp_path: Path) -> None:
    assert read_boot(tmp_path) == ""
    for boot in (new_boot(), new_boot()):
        write_boot(tmp_path, boot)
        assert read_boot(tmp_path) == boot
