"""The examples of the documents, done as a reader does them: what comes is what the pages show.

One pipeline runs, as after `scripts/up`, for all pages: whoever has done one page can do the next.
The README is the first. A page that says that its session is "on a new ledger" gets one. Each page
has a folder of its own, with the checkout's examples and the ledger's data in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.documents.reader import Reader, is_run, not_run, typed, working_in
from tests.documents.texts import PROJECT, documents, of_markdown, relative
from tests.processes.pipeline import Pipeline, make_settings, pipeline_of

IN_CHECKOUT = ("docs", "examples", "scripts", "README.md")


def has_examples(page: Path) -> bool:
    return any(map(is_run, of_markdown(page.read_text("utf-8"), relative(page))))


PAGES = [page for page in documents() if has_examples(page)]


@pytest.fixture
def start_pipeline(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    with ExitStack() as stack:

        def start(folder: str) -> Pipeline:
            settings = make_settings(tmp_path / folder)
            return stack.enter_context(pipeline_of(settings, tmp_path / "services.log"))

        yield start


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("reader")
    with pipeline_of(make_settings(folder / "data"), folder / "services.log") as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_examples_of_a_page_give_what_it_shows(
    page: Path,
    ledger: Pipeline,
    tmp_path: Path,
    start_pipeline: Callable[..., Pipeline],
) -> None:
    for name in IN_CHECKOUT:
        (tmp_path / name).symlink_to(PROJECT / name)
    if "on a new ledger" in " ".join(page.read_text("utf-8").split()):
        ledger = start_pipeline("data")
    else:
        (tmp_path / "data").symlink_to(ledger.data)
    with ledger.client() as client:
        last_id = client.pipeline_index().sequenced
    reader = Reader(tmp_path, ledger.endpoint, last_id)
    with working_in(tmp_path):
        reader.read(page)
    assert not reader.complaints, "".join(f"\n{each}" for each in reader.complaints)
    assert reader.ran


def test_most_commands_of_the_documents_are_run() -> None:
    run = left = 0
    for page in documents():
        for piece in of_markdown(page.read_text("utf-8"), relative(page)):
            if piece.language not in ("sh", "console"):
                continue
            for command, *_ in typed(piece):
                if command.startswith("tallybus "):
                    if is_run(piece) and not not_run(command):
                        run += 1
                    else:
                        left += 1
    assert run > 60
    assert run > 3 * left
