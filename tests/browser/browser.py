"""A real browser for tests of the page: Debian's Chromium without a window, driven by selenium.

It starts no more than its driver and the browser, keeps what both write in a folder that is given,
and opens no connection but to pages on this machine. ADR 0015 says why it is a real one.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

FLAGS: Final = (
    "--headless",
    # Chromium's own sandbox needs rights that root in a container does not have; what is opened is
    # our own page alone.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # It talks to nobody by itself.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    # Phones lay their scroll bar over the page, so its width is the page's.
    "--hide-scrollbars",
)
PATIENCE_S: Final = 30.0
DESKTOP: Final = (1280, 900)
PHONE: Final = (360, 740)
HELP: Final = "`scripts/install-browser` installs it on Debian"


def missing() -> str:
    """Why no browser can be started here; "" when one can."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed: it belongs to the extra `test`"
    for names, package in ((BROWSERS, "chromium"), (DRIVERS, "chromium-driver")):
        if _found(names) is None:
            return f"there is no {package} on this machine; {HELP}"
    return ""


BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
DRIVERS: Final = ("chromedriver",)


def _found(names: tuple[str, ...]) -> str | None:
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One window. `size` and `scheme` are as the page sees them."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.resize(*DESKTOP)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """The size of the page's window, in its own pixels, `scale` of the screen's each."""
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, scheme: str = "light", motion: str = "no-preference") -> None:
        """What the user's system asks for: a light or a dark page, and whether with motion."""
        self._command(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": motion},
            ],
        )

    def open(self, url: str) -> None:
        """Load a page anew, whatever is open; what was logged before is forgotten."""
        self.driver.get("about:blank")
        self.log()
        self.requests()
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """What `script`, the body of a function in JavaScript, returns; promises are awaited."""
        done = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"(async (...arguments) => {{ {script} }})(...arguments)"
            ".then((value) => done({ value }), (error) => done({ error: String(error) }));",
            *arguments,
        )
        assert "error" not in done, done["error"]
        return done.get("value")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """The text of the first element that matches, as the document holds it."""
        found = self.run("return document.querySelector(arguments[0])?.textContent", selector)
        assert found is not None, f"nothing on the page is {selector}"
        return " ".join(str(found).split())

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)",
            selector,
        )
        return [" ".join(each.split()) for each in found]

    def facts(self, place: str) -> dict[str, str]:
        """The terms of the lists in a place, and what is said of each; all of one moment."""
        found: dict[str, str] = self.run(
            "const place = document.querySelector(arguments[0]);"
            "return Object.fromEntries([...place.querySelectorAll('dt')].map((each) =>"
            " [each.textContent, each.nextElementSibling.textContent]))",
            place,
        )
        return found

    def attribute(self, selector: str, name: str) -> str | None:
        found: str | None = self.run(
            "return document.querySelector(arguments[0]).getAttribute(arguments[1])", selector, name
        )
        return found

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Return once `condition()` is true; fail with what the page says when it never is."""
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < limit, (
                f"not within {PATIENCE_S:g} s: {what}; the page says:\n"
                f"{self.run('return document.body.innerText')}"
            )
            time.sleep(0.05)

    def wait_text(self, selector: str, wanted: str) -> None:
        self.wait(lambda: self.texts(selector)[:1] == [wanted], f"{selector} says {wanted!r}")

    def log(self) -> list[dict[str, Any]]:
        """What the browser has logged since it was asked last."""
        found: list[dict[str, Any]] = self.driver.get_log("browser")
        return found

    def complaints(self) -> list[str]:
        """Errors of the page itself in the log: scripts, and what its policy forbade. Answers that
        are errors, and connections that broke, are none."""
        return [
            each["message"]
            for each in self.log()
            if each["source"] != "network" and each["level"] in ("SEVERE", "WARNING")
        ]

    def requests(self) -> list[str]:
        """URLs that were asked for since this was called last."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                found.append(message["params"]["url"])
        return found

    def hosts(self) -> set[str]:
        """Hosts and ports of these, and what has none by its scheme (`data:`)."""
        return {
            urlsplit(url).netloc or urlsplit(url).scheme
            for url in self.requests()
            if url != "about:blank"
        }

    def overflow(self) -> str:
        """What is wider than the window or its own box, one in a line, and by how much. Boxes that
        are meant to scroll may."""
        return "\n".join(self.run(OVERFLOW))

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> str:
        """What has the focus: its id, else its name, else its text."""
        found: str = self.run(
            "const it = document.activeElement;"
            "return it.id || it.name || it.textContent.trim().slice(0, 40)"
        )
        return found

    def screenshot(self, path: Path) -> None:
        """The whole page, from top to bottom, as it is now."""
        assert self.driver.save_screenshot(str(path))

    def height(self) -> int:
        """Of the whole page, in its own pixels."""
        found: int = self.run("return Math.ceil(document.documentElement.scrollHeight)")
        return found

    def _command(self, name: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(name, parameters)


OVERFLOW: Final = """
const page = document.documentElement;
const width = page.clientWidth;
const found = [];
const tell = (each, why) => {
  const start = each.textContent.trim().slice(0, 40).replaceAll(/\\s+/g, " ");
  found.push(`${each.tagName}#${each.id}.${each.getAttribute("class")} "${start}" ${why}`);
};
if (page.scrollWidth > width) tell(page, `${page.scrollWidth} wide, of ${width}`);
const holds = "dd, dt, td, th, h1, h2, h3, p, .index, .waiting, .unit, .tag, button";
for (const each of document.body.querySelectorAll("*")) {
  const box = each.getBoundingClientRect();
  if (!box.width || each.closest(".hidden, .skip")) continue;
  if (each.closest("svg") && each.tagName !== "svg") continue;
  const scrolls = each.parentElement.closest(".scroll");
  if (!scrolls && (box.right > width + 0.5 || box.left < -0.5)) {
    tell(each, `from ${box.left} to ${box.right}`);
  }
  if (each.matches(holds) && each.clientWidth && each.scrollWidth > each.clientWidth + 1) {
    tell(each, `${each.scrollWidth} wide, in ${each.clientWidth}`);
  }
}
return found;
"""


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """A browser of its own, with an empty profile in `folder`; it is ended at the end."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    binary, driver_binary = _found(BROWSERS), _found(DRIVERS)
    assert binary is not None
    assert driver_binary is not None
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With a path there is nothing that selenium would look for, or fetch.
    service = ChromeService(driver_binary, log_output=str(folder / "chromedriver.log"))
    driver = Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(PATIENCE_S)
        yield Browser(driver)
    finally:
        driver.quit()
