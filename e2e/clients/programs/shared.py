"""What the agents of this folder share: their tool, their sub-agent, and what they print.

    python FRAMEWORK_agent.py [--instrument NAME] [--sub-agent] PROMPT

An agent asks for the weather by a tool and answers. With --instrument it is one program of this name; with --sub-agent
its tool asks another agent of the same framework, which is a program inside it. The last line is JSON: how often the
tools have run, and the answer.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

# (prompt, tool) -> the answer.
Answer = Callable[[str, Callable[[str], str]], str]

MODEL = os.environ["OPENAI_MODEL"]
BASE_URL = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]


def main(answer: Answer) -> None:
    """Runs an agent as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--instrument", metavar="NAME", default="")
    parser.add_argument("--sub-agent", action="store_true")
    parser.add_argument("prompt")
    given = parser.parse_args()
    ran: list[str] = []

    def get_weather(city: str) -> str:
        """Tells the weather.

        Args:
            city: Where.
        """
        ran.append(city)
        return "sunny"

    def ask_helper(city: str) -> str:
        import agentserving

        with agentserving.program("helper"):
            return answer("say hello", get_weather)

    def get_weather_from_helper(city: str) -> str:
        """Tells the weather.

        Args:
            city: Where.
        """
        ran.append(city)
        # Frameworks call tools where an event loop runs, in which no second one can be started.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ask_helper, city).result()

    get_weather_from_helper.__name__ = get_weather.__name__
    if given.instrument or given.sub_agent:
        import agentserving

        agentserving.instrument()
    with agentserving.program(given.instrument) if given.instrument else nullcontext():
        text = answer(given.prompt, get_weather_from_helper if given.sub_agent else get_weather)
    print(json.dumps({"tools": len(ran), "answer": text}))
