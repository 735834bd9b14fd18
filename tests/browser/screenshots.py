"""Makes the pictures of the page in the documents: `python -m tests.browser.screenshots`.

Starts a pipeline with the page in a temporary folder, puts load on it from processes of its own
(`tallybus load`), and takes the page light, dark, on a phone, and with a service down. They show
the machine that makes them: its speed, its fonts.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from tallybus import Deposit, Function, WaitLevel
from tallybus.common.settings.sections import page_address
from tests.browser.browser import DESKTOP, Browser, missing, running_browser
from tests.browser.png import encoded
from tests.processes.pipeline import (
    Command,
    Pipeline,
    environment,
    make_settings,
    pipeline_of,
    quiet_endpoint,
)
from tests.support.folders import DOCS, FUNCTION_EXAMPLES

MOST_BYTES: Final = 200_000
FUNCTION: Final = FUNCTION_EXAMPLES / "fee_transfer" / "fee_transfer.wat"
PIXELS: Final = """
const picture = new Image();
picture.src = "data:image/png;base64," + arguments[0];
await picture.decode();
const canvas = new OffscreenCanvas(picture.width, picture.height);
const context = canvas.getContext("2d");
context.drawImage(picture, 0, 0);
const bytes = context.getImageData(0, 0, picture.width, picture.height).data;
let text = "";
for (let at = 0; at < bytes.length; at += 30000) {
  text += String.fromCharCode(...bytes.subarray(at, at + 30000));
}
return [picture.width, picture.height, btoa(text)];
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.browser.screenshots", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=DOCS / "images")
    parser.add_argument("--seconds", type=float, default=130, help="how long there is load before")
    chosen = parser.parse_args()
    reason = missing()
    if reason:
        print(f"no pictures: {reason}", file=sys.stderr)
        return 1
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    chosen.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallybus-pages-")))
        settings = make_settings(
            folder / "data",
            gateway__page=quiet_endpoint().removeprefix("tcp://"),
            ledger__transactions_per_segment=5_000_000,
        )
        pipeline = stack.enter_context(pipeline_of(settings, folder / "services.log"))
        browser = stack.enter_context(running_browser(folder))
        take(browser, pipeline, chosen.out, chosen.seconds)
    return 0


def take(browser: Browser, pipeline: Pipeline, out: Path, seconds: float) -> None:
    """All pictures, into `out`, after so many seconds of load."""
    address = page_address(pipeline.settings)
    assert address is not None
    with pipeline.client() as client:
        client.register_function("fee_transfer", wasm(FUNCTION))
        client.submit_and_wait(Deposit(account=101, amount=1_000_000), WaitLevel.SNAPSHOT)
        call = Function("fee_transfer", [101, 202, 999, 10_000, 50])
        called = client.submit_and_wait(call, WaitLevel.SNAPSHOT).tx_id
    url = f"http://{address[0]}:{address[1]}/"
    pictures = [("page-light", "light", DESKTOP[0]), ("page-dark", "dark", DESKTOP[0])]
    with load(pipeline.endpoint):
        browser.open(url)
        time.sleep(seconds)
        for name, scheme, width in [*pictures, ("page-phone", "light", 390)]:
            show(browser, url, scheme, width, called)
            picture(browser, width, out / f"{name}.png")
        show(browser, url, "light", DESKTOP[0])
        time.sleep(5)  # what the page has seen it keeps, in grey
        pipeline.kill(["transactor"])
        browser.wait_text("#verdict-text", "The transactor is down.")
        time.sleep(8)  # for its part of the history
        picture(browser, DESKTOP[0], out / "page-service-down.png")


def show(browser: Browser, url: str, scheme: str, width: int, tx_id: int | None = None) -> None:
    """Open the page, and look up a transaction and a balance in it."""
    browser.prefer(scheme, motion="reduce")
    browser.resize(width, 900)
    browser.open(url if tx_id is None else f"{url}#tx={tx_id}")
    browser.wait_text("#link", "Live")
    if tx_id is not None:
        browser.wait(lambda: browser.texts("#transaction"), "the transaction")
        browser.find("#account").send_keys("202\n")
        browser.wait(lambda: browser.texts("#balance"), "the balance")
        browser.run("document.activeElement.blur()")


def picture(browser: Browser, width: int, path: Path) -> None:
    """The whole page that is open, from its head to its foot, as a file."""
    browser.resize(width, browser.height())
    time.sleep(2.5)  # two reports at this size
    told = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    browser.driver.get("about:blank")
    wide, high, pixels = browser.run(PIXELS, told["data"])
    shades = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(high, wide, 4)
    path.write_bytes(encoded(shades[:, :, :3]))
    size = path.stat().st_size
    print(f"{path}: {wide} x {high}, {size:,} bytes")
    assert size < MOST_BYTES, f"{path} is too large for the documents"


@contextmanager
def load(endpoint: str) -> Iterator[None]:
    """Transfers that wait to be durable, calls of a function, and a few that wait to be readable,
    all from processes that are ended at the end."""
    common = ("--endpoint", endpoint, "--unique-refs", "--timeout", "60", "--ops", str(10**10))
    kinds = (
        ("--kind", "transfer", "--batch", "8192", "--accounts", "1000000"),
        ("--kind", "function", "--batch", "512", "--accounts", "10000", "--in-flight", "1"),
        ("--kind", "mixed", "--batch", "64", "--accounts", "1000", "--wait", "snapshot"),
        ("--kind", "deposit", "--batch", "16", "--accounts", "1000", "--wait", "computed"),
    )
    commands = [Command("load", *common, *kind) for kind in kinds]
    try:
        yield
    finally:
        for command in commands:
            command.end()


def wasm(path: Path) -> bytes:
    import wasmtime

    return bytes(wasmtime.wat2wasm(path.read_text("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
