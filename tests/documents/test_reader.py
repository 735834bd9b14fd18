"""The reader of examples finds what is not as a page shows it, and takes what may vary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.reader import Reader, working_in

RIGHT = {
    "output of a console": "```console\n$ echo one; echo two\none\ntwo\n```",
    "two commands": "```console\n$ echo one\none\n$ echo two\ntwo\n```",
    "a command without output": "```console\n$ echo one > file\n$ cat file\none\n```",
    "a part that is left out": "```console\n$ echo one; echo two; echo three\none\n…\n```",
    "a time": "```console\n$ echo at 2026-03-01T09:30:00.5Z\nat 2025-12-31T00:00:00Z\n```",
    "an id": "```console\n$ echo transaction 8: committed\ntransaction 3: committed\n```",
    "output behind sh": "```sh\necho one\necho two\n```\nprints\n```\ntwo\n```",
    "a file that is named": 'Write `a.csv`:\n\n```csv\n1,2\n```\n\n```sh\ngrep "1,2" a.csv\n```',
    "a refusal": "```sh\ntallybus balance x    # refused: no account\n```",
    "what a print prints": "```python\nprint(1 + 1)  # 2: the sum\n```",
    "output behind Python": "```python\nprint(1 + 1)\n```\n```text\n2\n```",
    "Python that goes on": "```python\nx = 5\n```\n```python\nprint(x)  # 5\n```",
    "a test": "```python\ndef test_it(tmp_path):\n    tmp_path.mkdir()\n```",
    "what is filled in": "```sh\ntallybus deposit ACCOUNT AMOUNT\n```",
    "what needs another machine": "```sh\ntallybus index --endpoint tcp://ledger.example:1\n```",
}
WRONG = {
    "another output": "```console\n$ echo one\ntwo\n```",
    "more output": "```console\n$ echo one; echo two\none\n```",
    "less output": "```console\n$ echo one\none\ntwo\n```",
    "another number": "```console\n$ echo fuel 71 of 1000000\nfuel 34 of 1000000\n```",
    "two ids for one": (
        "```console\n$ echo transaction 8, transaction 9\ntransaction 3, transaction 3\n```"
    ),
    "another output behind sh": "```sh\necho one\n```\nprints\n```\ntwo\n```",
    "a command that fails": "```sh\nfalse\n```",
    "a command that is not refused": "```sh\necho fine    # refused\n```",
    "a file that no step makes": "```sh\ncat fee_transfer.wasm\n```",
    "an option that is not there": "```sh\ntallybus deposit 1 2 --fast\n```",
    "another status": "```sh\necho ok; false    # rejected: INSUFFICIENT_FUNDS\n```",
    "another print": "```python\nprint(1 + 1)  # 3\n```",
    "a longer print": "```python\nprint(21)  # 2\n```",
    "another output behind Python": "```python\nprint(1 + 1)\n```\n```text\n3\n```",
    "Python that raises": "```python\nassert False\n```",
    "a test that fails": "```python\ndef test_it():\n    assert False\n```",
}


def read(text: str, folder: Path) -> list[str]:
    page = folder / "page.md"
    page.write_text(text, "utf-8")
    reader = Reader(folder, "tcp://127.0.0.1:1", last_id=5)
    with working_in(folder):
        reader.read(page, folder)
    return [str(each) for each in reader.complaints]


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_is_as_shown_is_taken(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path) == []


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_not_as_shown_is_found(text: str, tmp_path: Path) -> None:
    assert len(read(text, tmp_path)) == 1


def test_a_new_ledger_has_the_ids_that_are_shown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo transaction 2\ntransaction 1\n```", "utf-8")
    reader = Reader(tmp_path, "tcp://127.0.0.1:1", last_id=0)
    with working_in(tmp_path):
        reader.read(page, tmp_path)
    assert len(reader.complaints) == 1
