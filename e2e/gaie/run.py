"""`make epp-conformance`: a real control plane, two engines and the endpoint picker, driven by epp_test.go."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from agentserving_gateway.ext_proc.service import Encryption, ExtProc, ExtProcOptions, served  # noqa: E402
from gateway.gateway_rig import answer_json, rig  # noqa: E402


async def main() -> int:
    """The exit status of `go test`; 0 and a line on standard error where there is no Go."""
    if shutil.which("go") is None:
        print("SKIPPED: epp-conformance needs Go (https://go.dev/dl) and its module proxy", file=sys.stderr)
        return 0
    async with rig(answer_json, answer_json) as made:
        service = ExtProc(
            made.picker.core, ended=made.picker._ended, ready=lambda: made.admission.ready, max_body_bytes=1 << 20
        )
        async with served(service, ExtProcOptions(ext_proc_listen="127.0.0.1:0", ext_proc_tls=Encryption.NONE)):
            environment = {
                **os.environ,
                "EPP_ADDRESS": f"127.0.0.1:{service.port}",
                "EPP_ENDPOINTS": ",".join(engine.address for engine in made.engines),
            }
            test = await asyncio.create_subprocess_exec(
                "go", "test", "-count=1", "-v", "./...", cwd=HERE, env=environment
            )
            return await test.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
