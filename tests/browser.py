"""A headless Chromium, driven over a pipe by the DevTools protocol; and the text of the PDFs that it prints."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import signal
import time
import unicodedata
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT_S = 30.0
FLAGS = ("--headless", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Browser:
    """A Chromium of its own, ended with the `with` block.

    Commands go in at its descriptor 3 and answers and events come out at 4, JSON that ends with a zero byte.
    """

    def __init__(self, profile: Path):
        assert CHROMIUM is not None, "no chromium found"
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]  # clear of 3 and 4
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # which Chromium's sandbox refuses
        self._pid = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *FLAGS, *root, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, str(profile) + ".log", os.O_WRONLY | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
            ],
            setpgroup=0,
        )
        for end in (commands, answers, *high):
            os.close(end)
        self._rest, self._last = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come meanwhile are kept. Raises `RuntimeError`, `TimeoutError`."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        end = time.monotonic() + TIMEOUT_S
        while (answer := self._receive(end - time.monotonic())).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, event: str) -> None:
        """Until an event of this name has come."""
        end = time.monotonic() + TIMEOUT_S
        while not any(each["method"] == event for each in self.events):
            self.events.append(self._receive(end - time.monotonic()))

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("chromium does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("chromium has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


class Tab:
    """One page in a browser, with what it said and what it asked for."""

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900, mobile: bool = False):
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height, mobile)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there; what other pages said is forgotten."""
        self._browser.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        self._browser.wait("Page.loadEventFired")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """By day or by night; `screen` or `print` forces what is otherwise decided by where the page goes."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression. Raises `RuntimeError`."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, script: str) -> None:
        """The mouse on the middle of an element, given as an expression; it is scrolled to first."""
        x, y = self.run(
            f"(() => {{ const e = {script}; e.scrollIntoView({{block: 'center', inline: 'center'}});"
            "const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        codes = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27}
        about = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def errors(self) -> list[str]:
        """What the page, or the browser about it, complained of."""
        self.run("0")
        kinds = {"Runtime.exceptionThrown": None, "Runtime.consoleAPICalled": "type", "Log.entryAdded": "entry"}
        return [json.dumps(each["params"]) for each in self._browser.events if each["method"] in kinds]

    def requests(self) -> list[str]:
        """The addresses that the page asked for, but for data inside of it."""
        self.run("0")
        sent = [each for each in self._browser.events if each["method"] == "Network.requestWillBeSent"]
        urls = [each["params"]["request"]["url"] for each in sent]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, file: Path, whole: bool = False) -> None:
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        answer = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(answer["data"])


def pdf_pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))


def pdf_text(pdf: bytes) -> str:
    """The text of a PDF as Chromium writes it, without blanks: each font's glyphs by the map that comes with it."""
    objects = {int(match[1]): match[2] for match in re.finditer(rb"(?s)(?:^|\n)(\d+) 0 obj\b(.*?)\nendobj", pdf)}
    maps = {
        number: _glyphs(_stream(objects[int(found[1])]))
        for number, body in objects.items()
        if (found := re.search(rb"/ToUnicode (\d+) 0 R", body))
    }
    text = []
    for body in objects.values():
        if not re.search(rb"/Type\s*/Page\b(?!s)", body):
            continue
        fonts = {name: maps.get(int(n), {}) for name, n in re.findall(rb"/(F\d+) (\d+) 0 R", body)}
        for number in re.findall(rb"/Contents (\d+) 0 R", body):
            text.append(_shown(_stream(objects[int(number)]), fonts))
    return "\n".join(text)


def _stream(body: bytes) -> bytes:
    """A compressed stream, whatever follows it."""
    return zlib.decompressobj().decompress(body.split(b"stream\n", 1)[1])


def _glyphs(table: bytes) -> dict[str, str]:
    """A ToUnicode table: glyph in hexadecimal -> character."""
    found = {}
    for block in re.findall(rb"(?s)beginbfchar(.*?)endbfchar", table):
        for glyph, code in re.findall(rb"<(\w+)>\s*<(\w+)>", block):
            found[glyph.decode().upper()] = bytes.fromhex(code.decode()).decode("utf-16-be")
    for block in re.findall(rb"(?s)beginbfrange(.*?)endbfrange", table):
        for low, high, code in re.findall(rb"<(\w+)>\s*<(\w+)>\s*<(\w+)>", block):
            for step in range(int(high, 16) - int(low, 16) + 1):
                glyph = f"{int(low, 16) + step:0{len(low)}X}"
                found[glyph] = chr(int(code, 16) + step)
    return found


def _shown(content: bytes, fonts: dict[bytes, dict[str, str]]) -> str:
    text, glyphs = [], dict[str, str]()
    for font, string in re.findall(rb"/(F\d+) [\d.]+ Tf|<(\w+)>", content):
        if font:
            glyphs = fonts.get(font, {})
        else:
            codes = string.decode().upper()
            text += [glyphs.get(codes[i : i + 4], "") for i in range(0, len(codes), 4)]
    return unicodedata.normalize("NFKC", "".join(text)).replace(" ", "")  # ligatures apart
