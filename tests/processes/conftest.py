"""Fixtures that start real processes and always end them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes.pipeline import Command, Pipeline, environment, make_settings, pipeline_of


@pytest.fixture(autouse=True)
def _this_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services are started from this source tree, installed or not."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.fixture
def start_pipeline(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Starts a pipeline on the test's folder, or on `folder`, with settings as in `make_settings`."""
    with ExitStack() as stack:

        def start(folder: str = "data", **overrides: object) -> Pipeline:
            settings = make_settings(tmp_path / folder, **overrides)
            return stack.enter_context(pipeline_of(settings, tmp_path / f"{folder}.log"))

        yield start


@pytest.fixture
def pipeline(start_pipeline: Callable[..., Pipeline]) -> Pipeline:
    """A running pipeline with ordinary settings."""
    return start_pipeline()


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
