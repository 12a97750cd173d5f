"""A browser without a window, and servers that it can reach."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.running import Server, bound_socket, url_of

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
PATIENCE = 30.0
"""The longest time that the page gets to show something, in seconds."""


def missing() -> str:
    """Why no browser can be had; empty if one can."""
    if next(filter(None, map(shutil.which, PROGRAMS)), None) is None:
        return f"none of {', '.join(PROGRAMS)} is installed"
    return "" if shutil.which("chromedriver") else "chromedriver is not installed"


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A browser with an empty profile; it asks nobody but whom a test has it ask."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, PROGRAMS)))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of a server in a browser."""

    def __init__(self, driver: Chrome, url: str, width: int = 1280, *, dark: bool = False) -> None:
        """Open it, in a window of its own width and theme, and forget what was logged before."""
        self.driver = driver
        self.url = url
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
        driver.get("about:blank")  # what another server's page asks for is over
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # type: ignore[no-untyped-call]
        driver.get(f"{url}/ui")

    def one(self, selector: str) -> WebElement:
        """The first element that a selector of CSS finds."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """The text of all that a selector finds, as it is shown."""
        return "\n".join(each.text for each in self.all(selector)).replace("\xa0", " ")

    def tile(self, name: str) -> str:
        """What a tile shows."""
        return next((each.text for each in self.all("#tiles li") if each.text.startswith(name)), "").replace(
            "\xa0", " "
        )

    def until(self, shown: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until something is shown, which it gives."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            with suppress(StaleElementReferenceException):  # it was just shown anew
                if found := shown():
                    return found
            assert time.monotonic() < end, f"not shown within {seconds} s; there is:\n{self.text('body')}"
            time.sleep(0.05)

    def shows(self, selector: str, words: str) -> None:
        """Wait until some words are part of what a selector finds."""
        self.until(lambda: words in self.text(selector))

    def choose(self, model: str) -> None:
        from selenium.webdriver.support.ui import Select

        self.until(lambda: self.one("#models").is_displayed())
        Select(self.one("#model")).select_by_value(model)

    def say(self, text: str, budget: float | None = None) -> WebElement:
        """Send a message; its answer, once it is complete."""
        self.begin(text, budget)
        self.until(lambda: self.one(".log").get_attribute("aria-busy") == "false")
        return self.all(".said.assistant")[-1]

    def begin(self, text: str, budget: float | None = None) -> None:
        """Send a message."""
        self.until(lambda: self.all("#message"))
        if budget is not None:
            set_ = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
            self.driver.execute_script(set_, self.one("#budget"), str(budget))
        self.one("#message").send_keys(text + "\n")

    def complaints(self) -> list[str]:
        """What the browser's console has got since the last time, violations of the page's policy among it."""
        return [each["message"] for each in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def asked(self) -> set[str]:
        """The addresses of all that the page has asked for since the last time."""
        found = set()
        for each in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            told = json.loads(each["message"])["message"]
            if told["method"] == "Network.requestWillBeSent":
                found.add(told["params"]["request"]["url"])
        return found


@contextmanager
def listening(parts: ServerParts, port: int = 0) -> Iterator[str]:
    """The address of a server that runs in a thread, and ends at once at the end."""
    with bound_socket("127.0.0.1", port) as found:
        server = Server(parts, found)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server ended before it listened"
                time.sleep(0.005)
            yield url_of(found).replace("127.0.0.1", "localhost")
        finally:
            server.should_exit = server.force_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
