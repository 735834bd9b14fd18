"""`docs/python.md` names all that is public, and its recipes run as they stand.

Its other examples are run by `tests/documents/test_examples.py`.
"""

import asyncio
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tallybus
import tallybus.common
from tallybus import AsyncClient, Client, Ledger, ServiceError, TallybusError
from tests.support.fake_gateway import REJECTED, FakeGateway, always
from tests.support.folders import DOCS

PAGE = (DOCS / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python(?: recipe=(\w+))?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = {recipe: source for recipe, source in BLOCKS if recipe}
# Of clients, and of a ledger on this machine's disk; the rest is of networks, processes, commands.
CAUGHT = re.compile(
    r"tallybus\.(errors|embedded|common\.(errors|files|log\w*|snapshot\w*|function\w*|replay))"
)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


@pytest.mark.parametrize("name", sorted(set(tallybus.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"`{name}\b", PAGE), f"docs/python.md lacks {name}"


@pytest.mark.parametrize("kind", [Client, AsyncClient, Ledger])
def test_every_method_is_documented(kind: type) -> None:
    methods = {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}
    missing = [name for name in methods if not re.search(rf"`(Ledger\.)?{name}\(", PAGE)]
    assert missing == []


def test_no_method_is_documented_that_is_not_there() -> None:
    documented = re.findall(r"^\| `(\w+)\(([^`]*)\)` \| ", PAGE, re.MULTILINE)
    operations = {"Deposit", "Withdrawal", "Transfer", "Function"}
    for name, arguments in documented:
        if name in operations | {"Client", "AsyncClient"}:
            continue
        called = getattr(Client, name, None) or getattr(tallybus, name)
        parameters = inspect.signature(called).parameters
        for argument in filter(None, re.split(r",\s*", arguments)):
            assert argument.partition("=")[0] in parameters, f"{name}({arguments})"


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(method).parameters
            theirs = inspect.signature(getattr(AsyncClient, name)).parameters
            assert list(ours) == list(theirs), name
            for parameter in ours.values():
                other = theirs[parameter.name]
                assert (parameter.kind, parameter.default) == (other.kind, other.default)
            if "timeout" in ours:
                assert ours["timeout"].kind is inspect.Parameter.KEYWORD_ONLY, name
            assert "level" not in ours, f"{name}: what a call waits for is called wait"


def errors() -> list[type[TallybusError]]:
    for module in pkgutil.iter_modules(tallybus.common.__path__, "tallybus.common."):
        importlib.import_module(module.name)
    found: list[type[TallybusError]] = []
    waiting: list[type[TallybusError]] = [TallybusError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return [kind for kind in found if kind.__module__.startswith("tallybus.")]


def test_every_error_that_a_caller_can_get_is_exported() -> None:
    kinds = errors()
    assert len(kinds) > 30
    for kind in kinds:
        if CAUGHT.fullmatch(kind.__module__):
            assert getattr(tallybus, kind.__name__, None) is kind, kind
    assert issubclass(ServiceError, TallybusError)


def recipe(name: str, monkeypatch: pytest.MonkeyPatch, **modules: Any) -> dict[str, Any]:
    """What a recipe defines, where these modules stand for the ones that are not installed."""
    for path, content in modules.items():
        module = ModuleType(path)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, path.replace("_", "."), module)
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(RECIPES[name], f"docs/python.md, {name}", "exec"), namespace)  # noqa: S102
    return namespace


class FakeApp:
    def __init__(self, lifespan: Callable[..., Any]) -> None:
        self.lifespan = lifespan
        self.state = SimpleNamespace()

    def post(self, path: str) -> Callable[[Any], Any]:
        return lambda function: function


class FakeHTTPException(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def test_the_recipe_for_fastapi(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(
        "fastapi",
        monkeypatch,
        fastapi={
            "FastAPI": FakeApp,
            "Header": lambda: None,
            "HTTPException": FakeHTTPException,
        },
    )
    monkeypatch.setenv("TALLYBUS_ENDPOINT", gateway.endpoint)

    async def main() -> None:
        async with made["lifespan"](made["app"]):
            transfer = made["transfer"]
            assert await transfer(1, 2, 30, "order 1") == {"tx_id": 1}
            assert await transfer(1, 2, 30, "order 1") == {"tx_id": 1}
            for amount, key, status in ((REJECTED, "order 2", 409), (0, "order 3", 422)):
                for _ in range(2):  # the same answer to the same question
                    with pytest.raises(FakeHTTPException) as caught:
                        await transfer(1, 2, amount, key)
                    assert caught.value.status == status
            gateway.script = always("invalid_request")
            with pytest.raises(FakeHTTPException) as caught:
                await transfer(1, 2, 5, "order 4")
            assert caught.value.status == 422

    asyncio.run(main())
    assert gateway.ledger.balances[2] == 30


def test_the_recipe_for_django(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(
        "django",
        monkeypatch,
        django={},
        django_http={"JsonResponse": lambda body, status: (status, body)},
    )
    monkeypatch.setenv("TALLYBUS_ENDPOINT", gateway.endpoint)

    def ask(key: str, amount: int) -> Any:
        post = {"source": "1", "target": "2", "amount": str(amount)}
        return made["transfer"](SimpleNamespace(headers={"Idempotency-Key": key}, POST=post))

    assert ask("order 1", 30) == (200, {"tx_id": 1, "status": "OK"})
    assert ask("order 1", 30) == (200, {"tx_id": 1, "status": "OK"})
    assert ask("order 2", REJECTED)[0] == 409
    assert ask("order 3", 0)[0] == 422
    made["ledger"]().close()


def test_the_recipe_for_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("pytest", monkeypatch, pytest={"fixture": lambda function: function})
    opened = made["ledger"](tmp_path)
    made["test_a_transfer_moves_money"](next(opened))
    assert next(opened, None) is None
