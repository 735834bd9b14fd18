"""Fixtures that start real processes and always end them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes.pipeline import (
    Command,
    Pipeline,
    environment,
    eventually,
    make_settings,
    pipeline_of,
)


@pytest.fixture(autouse=True, scope="session")
def _this_source_tree() -> Iterator[None]:
    """Services are started from this source tree, installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        yield


@pytest.fixture
def start_pipeline(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Starts a pipeline on `folder` in the test's folder, with settings as in `make_settings`."""
    with ExitStack() as stack:

        def start(folder: str = "data", **overrides: object) -> Pipeline:
            settings = make_settings(tmp_path / folder, **overrides)
            return stack.enter_context(pipeline_of(settings, tmp_path / f"{folder}.log"))

        yield start


@pytest.fixture(scope="module")
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One running pipeline for all tests of a module, with its `PIPELINE_SETTINGS` if it has any.

    Tests share it: each uses accounts of its own, and counts ids from where it finds them.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    overrides = getattr(request.module, "PIPELINE_SETTINGS", {})
    settings = make_settings(folder / "data", **overrides)
    with pipeline_of(settings, folder / "services.log") as running:
        yield running


@pytest.fixture
def start_command() -> Iterator[Callable[..., Command]]:
    """Starts a command of the product in the background."""
    started: list[Command] = []

    def start(*arguments: str | Path, cwd: Path | None = None) -> Command:
        command = Command(*arguments, cwd=cwd)
        started.append(command)
        return command

    yield start
    for command in reversed(started):
        command.end()


@pytest.fixture
def threads_end() -> Iterator[None]:
    """No thread of a test goes on behind it."""
    before = threading.active_count()
    yield
    eventually(lambda: threading.active_count() <= before, "the threads of a test end")
