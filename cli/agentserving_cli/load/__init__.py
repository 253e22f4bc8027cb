"""The demo's load: agent programs of four kinds, as users write them."""

from agentserving_cli.load.agent import ProgramResult
from agentserving_cli.load.mixed import Progress, run_mixed_load

__all__ = ["ProgramResult", "Progress", "run_mixed_load"]
