"""One browser for all tests of the page, and the pages that they open in it."""

from collections.abc import Iterator

import pytest

from tests.browser.browser import DESKTOP, Browser, missing, running_browser
from tests.browser.scripted import Scripted, scripted_page
from tests.processes.pipeline import environment


@pytest.fixture(autouse=True, scope="session")
def _this_source_tree() -> Iterator[None]:
    """Services are started from this source tree, installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        yield


@pytest.fixture(scope="session")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    with running_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser) -> Iterator[Browser]:
    """The browser, as large as on a desk, light, with motion; and what the page did wrong."""
    shared_browser.resize(*DESKTOP)
    shared_browser.prefer()
    yield shared_browser
    complaints = shared_browser.complaints()
    shared_browser.driver.get("about:blank")
    assert complaints == [], "scripts of the page failed, or did what its policy forbids"


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """The page on reports and answers that the test makes up."""
    with scripted_page() as page:
        yield page
