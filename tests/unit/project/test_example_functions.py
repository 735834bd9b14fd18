"""The example functions do what their pages say: each binary against the same rules in Python.

Every example is there in three languages, and all its binaries have one oracle.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter

import pytest
import wasmtime

from tallybus.common.record import Status
from tallybus.services.transactor.functions.module import ModuleLimits, parts
from tests.support.example_functions import (
    HALF,
    LANGUAGES,
    LARGEST,
    ORACLES,
    Sandbox,
    binary_path,
    drawn_call,
    expected,
)
from tests.support.folders import FUNCTION_EXAMPLES
from tests.support.trials import try_function

CALLS = 8000
BINARIES = [pytest.param(name, lang, id=f"{name}-{lang}") for name in ORACLES for lang in LANGUAGES]


@pytest.mark.parametrize(("name", "language"), BINARIES)
def test_every_binary_agrees_with_its_rules(name: str, language: str) -> None:
    rng = random.Random(f"{name} {CALLS}")  # the same calls for each language
    sandbox = Sandbox(binary_path(name, language).read_bytes())
    seen: Counter[int] = Counter()
    try:
        for _ in range(CALLS):
            params, balances = drawn_call(rng, name)
            wanted = expected(name, params, balances)
            assert sandbox.run(params, balances) == wanted, f"params {params} on {balances}"
            seen[wanted.status] += 1
    finally:
        sandbox.close()
    # The calls reach all that the rules tell apart.
    own = documented_statuses(name)
    assert set(own) <= set(seen)
    assert {Status.ACCOUNT_LIMIT_EXCEEDED, Status.BALANCE_OVERFLOW} <= set(seen)
    assert seen[Status.NONE] > CALLS // 20


@pytest.mark.parametrize(
    ("name", "params", "status", "moved"),
    [
        # The fee is rounded down, and the one who sends pays it on top.
        ("fee_transfer", (1, 2, 3, 1000, 50), 0, {1: -1005, 2: 1000, 3: 5}),
        ("fee_transfer", (1, 2, 3, 199, 50), 0, {1: -199, 2: 199}),
        ("fee_transfer", (1, 2, 3, 9_951, 50), 0, {1: -10_000, 2: 9_951, 3: 49}),
        ("fee_transfer", (1, 2, 3, 9_952, 50), 1, {}),
        ("fee_transfer", (1, 1, 1, 1000, 50), 0, {}),
        ("fee_transfer", (4, 2, 3, LARGEST, 10_000), 1, {}),
        ("fee_transfer", (4, 5, 3, HALF + 1, 10_000), 1, {}),
        ("fee_transfer", (4, 5, 3, HALF, 10_000), 0, {4: -2 * HALF, 5: HALF, 3: HALF}),
        ("escrow", (1, 6, 1, 400), 0, {1: -400, 6: 400}),
        ("escrow", (2, 7, 2, 300, 3, 250), 0, {7: -300, 2: 293, 3: 7}),
        ("escrow", (2, 7, 2, 300, 3, 10_000), 0, {7: -300, 3: 300}),
        ("escrow", (2, 7, 2, 501, 3, 250), 131, {}),
        ("escrow", (2, 7, 2, 300, 7, 250), 132, {}),
        ("escrow", (3, 7, 1, 500), 0, {7: -500, 1: 500}),
        ("escrow", (3, 7, 1, 500, 99, -1), 0, {7: -500, 1: 500}),
        ("loyalty", (1, 2, 5, 6, 1_999, 10), 0, {1: -1_999, 2: 1_999, 6: -199, 5: 199}),
        ("loyalty", (1, 2, 5, 6, 9, 10), 0, {1: -9, 2: 9}),
        ("loyalty", (1, 2, 1, 6, 100, 10), 130, {}),
        ("overdraft", (2, 1, 500, 500), 0, {2: -500, 1: 500}),
        ("overdraft", (2, 1, 501, 500), 130, {}),
        ("overdraft", (2, 1, LARGEST, LARGEST), 8, {}),
        ("overdraft", (2, 3, LARGEST, LARGEST), 0, {2: -LARGEST, 3: LARGEST}),
    ],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_of_the_pages(
    name: str, params: tuple[int, ...], status: int, moved: dict[int, int], language: str
) -> None:
    before = {1: 10_000, 4: LARGEST, 7: 500}
    call = try_function(binary_path(name, language).read_bytes(), params, before, max_accounts=8)
    changes: Counter[int] = Counter()
    for account, amount in call.entries:
        changes[account] += amount
    assert (call.status, call.trap) == (status, "")
    assert {account: change for account, change in changes.items() if change} == moved


@pytest.mark.parametrize(("name", "language"), BINARIES)
def test_no_binary_writes_state(name: str, language: str) -> None:
    """So that a ledger needs no fresh instance for each call."""
    one_page = ModuleLimits(memory_bytes=65_536, table_elements=0)
    facts = parts(binary_path(name, language).read_bytes(), one_page).facts
    assert not facts.writes_state
    assert sorted(facts.imports) == ["credit", "debit", "get_balance"]


@pytest.mark.parametrize("name", ORACLES)
def test_text_and_binary_agree(name: str) -> None:
    source = (FUNCTION_EXAMPLES / name / f"{name}.wat").read_text("utf-8")
    assert binary_path(name, "wat").read_bytes() == wasmtime.wat2wasm(source), (
        f"{name}.wat was changed after its binary was built; run scripts/build-examples"
    )


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("language", ["rust", "as"])
def test_compiled_binaries_are_of_these_sources(name: str, language: str) -> None:
    folder = FUNCTION_EXAMPLES / name
    lines = (folder / "built" / f"{name}.{language}.sha256").read_text("utf-8").splitlines()
    sums = [line.split("  ") for line in lines if not line.startswith("#")]
    files = {path: checksum for checksum, path in sums}
    sources = folder / ("rust" if language == "rust" else "assemblyscript")
    code = [path for path in sources.rglob("*") if path.suffix in (".rs", ".ts")]
    code = [path for path in code if not {"target", "node_modules"} & set(path.parts)]
    assert {path.relative_to(folder).as_posix() for path in code} <= set(files)
    assert f"built/{name}.{language}.wasm" in files
    for path, checksum in files.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == checksum, (
            f"{path} of {name} is not what its binary was built from; run scripts/build-examples"
        )


def documented_statuses(name: str) -> dict[int, str]:
    """Rows of the table of statuses in an example's page that are the function's own."""
    text = (FUNCTION_EXAMPLES / name / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    return {int(number): label for number, label in rows if int(number) >= 128}


@pytest.mark.parametrize("name", ORACLES)
def test_statuses_are_called_the_same_everywhere(name: str) -> None:
    documented = documented_statuses(name)
    assert documented
    assert set(documented) <= set(range(128, 256))
    folder = FUNCTION_EXAMPLES / name
    for source, pattern in (
        (folder / "rust" / "src" / "lib.rs", r"^const (\w+): i32 = (\d+);"),
        (folder / "assemblyscript" / "index.ts", r"^const (\w+) = (\d+);"),
    ):
        found = re.findall(pattern, source.read_text("utf-8"), re.MULTILINE)
        assert {int(number): label for label, number in found if int(number) >= 128} == documented
    head = (folder / f"{name}.wat").read_text("utf-8").partition("(module")[0]
    for number, label in documented.items():
        assert f"{number} {label}" in head


def test_every_example_is_tested() -> None:
    assert {path.parent.name for path in FUNCTION_EXAMPLES.glob("*/README.md")} == set(ORACLES)
    assert {path.name for path in FUNCTION_EXAMPLES.glob("*/built/*.wasm")} == {
        binary_path(name, language).name for name in ORACLES for language in LANGUAGES
    }
