"""The page at `/` in a browser, over the DevTools protocol of Chromium."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from .conftest import QUERY, TEXTS, Serve, Served

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")


class Tab:
    """A tab of a browser, and everything that it reports."""

    def __init__(self, connection: ClientConnection, width: int) -> None:
        self._connection = connection
        self._numbers = count()
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def send(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while True:
            received = json.loads(self._connection.recv(timeout=60))
            if received.get("id") == number:
                assert "error" not in received, received
                return received["result"]
            self.events.append(received)

    def run(self, script: str) -> Any:
        """Evaluate a script; a promise is awaited."""
        reply = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds, which is checked before each frame."""
        self.run(
            f"new Promise(done => {{ const check = () => {condition} ? done() : "
            "requestAnimationFrame(check); check(); })"
        )

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str, **parameters: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, **parameters)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console, exceptions, and violations of the policy."""
        kinds = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
        return [event for event in self.events if event.get("method") in kinds]

    def requested(self) -> set[str]:
        method = "Network.requestWillBeSent"
        return {e["params"]["request"]["url"] for e in self.events if e.get("method") == method}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium")
    profile = tmp_path_factory.mktemp("profile")
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                yield found[1]
                break
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("width", [1280, 400])
def test_two_models_side_by_side_by_keyboard(
    served: Served, browser: str, tmp_path: Path, width: int
) -> None:
    with connect(browser, max_size=None) as connection:
        tab = Tab(connection, width)
        tab.open(served.url)
        tab.until("document.querySelectorAll('#first option').length === 3")
        assert tab.run("document.activeElement.id") == "query"
        for field in ("instruction", "key"):
            assert tab.run(f"document.getElementById('{field}').offsetParent") is None
        tab.type(QUERY)
        tab.press("Tab")
        tab.type("\n\n".join(TEXTS))
        tab.press("Tab")
        tab.press("Tab")
        tab.press("m", text="m")  # The model whose name begins with it.
        tab.press("Tab")
        tab.type("0.5")
        tab.press("Enter", text="\r")
        tab.until("document.querySelectorAll('#rankings li').length > 20")
        for number, adapter in enumerate((None, "medical")):
            ranking = served.reranker.rank(QUERY, TEXTS, adapter=adapter)
            column = f"document.querySelectorAll('section')[{number}]"
            texts = f"[...{column}.querySelectorAll('p')].map(p => p.textContent)"
            scores = f"[...{column}.querySelectorAll('.score')].map(s => s.textContent)"
            assert tab.run(texts) == [str(result.document).strip() for result in ranking]
            assert tab.run(scores) == [f"{result.score:.4f}" for result in ranking]
            reached = sum(result.score >= 0.5 for result in ranking)
            line = f"threshold 0.5000: {reached} of {len(TEXTS)} reach it"
            assert tab.run(f"{column}.querySelector('.line').textContent") == line
        # Nothing is wider than the window.
        root = "document.documentElement"
        assert tab.run(f"{root}.scrollWidth === {root}.clientWidth && innerWidth === {width}")
        assert tab.complaints() == []
        paths = {url.removeprefix(served.url) for url in tab.requested()}
        assert paths - {"data:,"} == {"/", "/info", "/v1/rerank"}
        shot = tab.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (tmp_path / f"page-{width}.png").write_bytes(base64.b64decode(shot))


def test_a_key_and_errors(serve: Serve, browser: str) -> None:
    server = serve(api_key="secret", max_documents=3)
    with connect(browser, max_size=None) as connection:
        tab = Tab(connection, 1280)
        tab.open(server.url)
        tab.until("!document.getElementById('key-label').hidden")
        assert "API key is missing" in tab.run("document.getElementById('problem').textContent")
        tab.until("document.activeElement.id === 'key'")
        tab.type("secret")
        tab.run("document.getElementById('query').value = 'when'")
        tab.run("document.getElementById('passages').value = '<b>a</b>\\nb\\nc\\nd'")
        tab.run("document.getElementById('passages').focus()")
        tab.press("Enter", modifiers=2)
        tab.until("document.getElementById('problem').textContent.includes('4 are too many')")
        tab.run("document.getElementById('passages').value = '<b>a</b>\\nb'")
        tab.press("Enter", modifiers=2)
        tab.until("document.querySelectorAll('#rankings li').length === 2")
        assert tab.run("document.getElementById('problem').textContent") == ""
        assert "<b>a</b>" in tab.run("document.getElementById('rankings').textContent")


def test_the_policy_allows_nothing_but_the_page(served: Served) -> None:
    page = served.client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"https?://|@import|url\(|<link[^>]*href=\"(?!data:)", page.text)
