"""A real Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from support.eventually import eventually_async

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.errors: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; what the page has complained about meanwhile is in `errors`."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(message["params"])[:500])
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    async def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        answer = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, what: str) -> None:
        """Waits until an expression is true; what is not there yet makes it false."""
        tried = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        await eventually_async(lambda: self.value(tried), what)

    async def key(self, key: str) -> None:
        """A key is pressed and released."""
        text = {"text": key} if len(key) == 1 else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def screenshot(self, path: Path) -> None:
        """Writes what the page looks like, as PNG."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot"))["data"]))


@asynccontextmanager
async def opened(url: str, *, dark: bool = False) -> AsyncIterator[Page]:
    """A tab with a page, in a browser of its own."""
    assert CHROMIUM is not None
    # Not below pytest's directory: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="as-chromium-", ignore_cleanup_errors=True) as directory:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            f"--user-data-dir={directory}", "--window-size=1400,900", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ports = Path(directory) / "DevToolsActivePort"
            await eventually_async(lambda: ports.exists() and len(ports.read_text().split()) == 2, "chromium listens")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{ports.read_text().split()[0]}/json/list") as answer:
                    tabs = [each for each in await answer.json() if each["type"] == "page"]
                async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=64 << 20) as socket:
                    page = Page(socket)
                    for domain in ("Runtime", "Log", "Page"):
                        await page.send(f"{domain}.enable")
                    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                    await page.send("Emulation.setEmulatedMedia", features=scheme)
                    await page.send("Page.navigate", url=url)
                    yield page
        finally:
            browser.terminate()
            await browser.wait()
