"""Lets a CPU worker of vLLM use AMX: Linux kills a process that uses it without having asked (SIGILL).

vLLM's attention on CPUs with AMX does not ask. Other libraries in the process may have done so, or not. Given to vLLM
as `--worker-extension-cls`, because only that is imported by workers.
"""

from __future__ import annotations

import ctypes
import platform

# Linux, arch/x86/include/uapi/asm/prctl.h and asm/fpu/types.h: permission for the state of AMX tiles.
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18


def request() -> bool:
    """Asks for this process and those that it forks. False where the CPU or the kernel has no AMX."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)


class AmxWorker:
    """Adds nothing to vLLM's worker: importing it is what counts."""


request()
