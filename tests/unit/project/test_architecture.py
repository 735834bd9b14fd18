"""The arrows between modules point one way, and only named places do input and output.

Read from the source: what a module imports and calls, wherever in the module that stands.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.folders import PROJECT
from tests.support.sources import MODULES, PACKAGES, TREES

ZMQ_USERS = {
    "tallybus.common.bus.sockets",
    "tallybus.common.bus.monitor",
    "tallybus.common.security.curve",  # options of sockets
    "tallybus.common.bus.handshakes",  # of the bus's sockets
    "tallybus.common.security.doorkeeper",  # the socket that libzmq asks whom to let in
    "tallybus.client.sync",
    "tallybus.client.aio",
    "tallybus.client.wire",  # what these two share
    "tallybus.client.context",  # what all of a process share
    "tallybus.client.looks",  # sockets that only find out what is there
}
SERVICE_USERS = {
    "tallybus.embedded",
    "tallybus.supervisor",
    "tallybus.trials",
    "tallybus.cli.operate",  # serve, up
}
WRITER = "tallybus.common.files"
STREAMS = (
    "tallybus.common.service.startup"  # opens the null device and the standard streams, no file
)
# Beside every `core`, modules that cores are made of.
PURE = {
    "tallybus.client.access",
    "tallybus.common.bus.link",
    "tallybus.common.bus.frames",
    "tallybus.common.bus.messages",
    "tallybus.common.record",
    "tallybus.services.gateway.clients.access",
    "tallybus.services.gateway.connections.table",
    "tallybus.services.gateway.clients.quotas",
    "tallybus.services.gateway.pipeline.batches",
    "tallybus.services.gateway.pipeline.submissions",
    "tallybus.services.gateway.pipeline.terms",
    "tallybus.services.gateway.pipeline.work",
    "tallybus.services.transactor.functions.budget",
}
IMPURE = {
    "asyncio",
    "multiprocessing",
    "os",
    "select",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
    "tallybus.common.bus.sockets",
    "tallybus.common.files",
    "tallybus.common.security.doorkeeper",
}
CORES = "tallybus.common.service.core"
SHELL = "tallybus.common.service.shell"
SHELL_USERS = {"tallybus.common.service.runner", "tallybus.embedded"}  # besides the services
WRITING_OS = {
    "fallocate",
    "fdatasync",
    "fsync",
    "ftruncate",
    "link",
    "makedirs",
    "mkdir",
    "open",
    "posix_fallocate",
    "pwrite",
    "pwritev",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
    "write",
    "writev",
}
READING_FLAGS = {"O_RDONLY", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"}
WRITING_METHODS = {"write_bytes", "write_text", "touch", "tofile", "memmap", "copyfile", "rmtree"}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """What a module imports, as full names of modules where they are ours, with the line."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} has a relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def is_pure(name: str) -> bool:
    return name in PURE or name.endswith(".core")


def writes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Calls that make, change or remove files, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in WRITING_OS:
                    yield f"from os import {alias.name}", node.lineno
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open":
            if may_write(mode_of(node, 1)):
                yield "open", node.lineno
        elif isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if owner == "os" and function.attr == "open" and only_reads(node):
                continue
            if owner == "os" and function.attr in WRITING_OS:
                yield f"os.{function.attr}", node.lineno
            elif function.attr in WRITING_METHODS:
                yield f".{function.attr}", node.lineno
            elif function.attr == "open" and owner not in ("os", "io"):
                mode = mode_of(node, 0)
                if isinstance(mode, str) and set(mode) <= set("rwaxbt+") and may_write(mode):
                    yield ".open", node.lineno
            elif function.attr == "open" and owner == "io" and may_write(mode_of(node, 1)):
                yield "io.open", node.lineno


def mode_of(call: ast.Call, position: int) -> object:
    """The mode that `open` is called with; None when that is not written down."""
    given: ast.expr | None = call.args[position] if len(call.args) > position else None
    for keyword in call.keywords:
        if keyword.arg == "mode":
            given = keyword.value
    if given is None:
        return "r"
    return given.value if isinstance(given, ast.Constant) else None


def only_reads(call: ast.Call) -> bool:
    """`os.open` with flags that are written down and open for reading."""
    flags = call.args[1] if len(call.args) > 1 else None
    names = (
        [node.attr for node in ast.walk(flags) if isinstance(node, ast.Attribute)] if flags else []
    )
    return "O_RDONLY" in names and set(names) <= READING_FLAGS


def may_write(mode: object) -> bool:
    return not isinstance(mode, str) or bool(set(mode) & set("wax+"))


def test_all_modules_are_seen() -> None:
    assert {"tallybus", "tallybus.common.settings", "tallybus.services.wal"} <= set(MODULES)


FLOORS = {
    "": set(),  # the modules at the root: errors, logs, files, record and the like
    "kernels": {""},
    "wal": {"", "kernels"},
    "functions": {"", "wal"},
    "settings": {"", "functions"},
    "snapshot": {"", "kernels", "wal", "functions"},
    "security": {"", "functions", "settings"},
    "bus": {"", "functions", "settings", "security"},
    "view": {""},
    "metrics": {"", "settings", "bus", "view"},
    "service": {"", "settings", "security", "bus", "metrics"},
}
"""The packages of `common`, from the ground up, and what each may import besides itself."""


def floor_of(module: str) -> str | None:
    """The package of `common` that a module lies in, "" for its root; None: it lies elsewhere."""
    if not within(module, "tallybus.common"):
        return None
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and f"tallybus.common.{parts[2]}" in PACKAGES else ""


def test_every_package_of_common_has_its_floor() -> None:
    packages = {name.split(".")[2] for name in PACKAGES if name.startswith("tallybus.common.")}
    assert packages == set(FLOORS) - {""}


def test_every_package_of_common_says_what_it_may_import() -> None:
    for package, allowed in FLOORS.items():
        if not package:
            continue
        says = " ".join((ast.get_docstring(TREES[f"tallybus.common.{package}"]) or "").split())
        told = re.search(r"May import the root of `common`([^.]*)\.", says)
        assert told, f"common/{package}/__init__.py does not say what it may import"
        assert {"", *re.findall(r"`(\w+)`", told[1])} == allowed, package


def test_floors_rest_on_those_below() -> None:
    order = list(FLOORS)
    for package, allowed in FLOORS.items():
        assert all(order.index(each) < order.index(package) for each in allowed), package


def test_packages_of_common_import_what_their_floor_allows() -> None:
    """Also where that is only for a type, or inside of a function."""
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if (floor := floor_of(name)) is not None
        for target, line in imports(name)
        if (other := floor_of(target)) is not None and other not in FLOORS[floor] | {floor}
    ]
    assert wrong == []


def test_modules_import_each_other_in_no_circle() -> None:
    """Also where that is only for a type, or inside of a function."""
    wanted = {
        name: {target for target, _ in imports(name) if target in MODULES and target != name}
        for name in MODULES
    }
    while free := {name for name, targets in wanted.items() if not targets & wanted.keys()}:
        for name in free:
            del wanted[name]
    # What is left is in a circle, or imports what is.
    assert {name: sorted(targets & wanted.keys()) for name, targets in wanted.items()} == {}


def test_every_package_says_what_it_is_for() -> None:
    silent = [name for name in PACKAGES if not ast.get_docstring(TREES[name])]
    assert silent == []


def test_common_imports_nothing_else_of_ours() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if within(name, "tallybus.common")
        for target, line in imports(name)
        if within(target, "tallybus") and not within(target, "tallybus.common")
    ]
    assert wrong == []


def test_services_import_common_and_never_each_other() -> None:
    wrong = []
    for name in MODULES:
        if not within(name, "tallybus.services"):
            continue
        own = ".".join(name.split(".")[:3])
        wrong += [
            f"{name}:{line} imports {target}"
            for target, line in imports(name)
            if within(target, "tallybus")
            and not within(target, "tallybus.common")
            and not within(target, own)
        ]
    assert wrong == []


def test_few_public_modules_know_the_services() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if not within(name, "tallybus.services") and name not in SERVICE_USERS
        for target, line in imports(name)
        if within(target, "tallybus.services")
    ]
    assert wrong == []


def test_only_the_bus_and_the_clients_shells_import_zmq() -> None:
    wrong = [
        f"{name}:{line}"
        for name in MODULES
        if name not in ZMQ_USERS
        for target, line in imports(name)
        if within(target, "zmq")
    ]
    assert wrong == []


def test_cores_do_no_input_and_output() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if is_pure(name)
        for target, line in imports(name)
        if any(within(target, impure) for impure in IMPURE)
    ]
    assert wrong == []


def test_cores_know_of_a_service_what_cores_are_and_nothing_else() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if is_pure(name)
        for target, line in imports(name)
        if within(target, "tallybus.common.service") and target != CORES
    ]
    assert wrong == []


def test_the_parts_of_a_service_do_not_know_it() -> None:
    """Each can be made and tested without the others; services and who runs one know the whole."""
    wrong = [
        f"{name}:{line} imports {target}"
        for name in MODULES
        if name not in SHELL_USERS and not re.fullmatch(r"tallybus\.services\.\w+\.service", name)
        for target, line in imports(name)
        if target == SHELL
    ]
    assert wrong == []


def test_cores_open_no_files() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name in MODULES
        if is_pure(name)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("open", "print", "input")
    ]
    assert wrong == []


def test_only_one_module_writes_to_disk() -> None:
    wrong = [
        f"{name}:{line} calls {what}"
        for name in MODULES
        if within(name, "tallybus.common") or within(name, "tallybus.services")
        if name not in (WRITER, STREAMS)
        for what, line in writes(TREES[name])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'wb')",
        "open(path, mode='a')",
        "open(path, mode)",
        "path.open('r+b')",
        "io.open(path, 'x')",
        "os.open(path, flags)",
        "os.open(path, os.O_RDWR | os.O_CLOEXEC)",
        "os.replace(a, b)",
        "from os import unlink",
        "Path(x).write_text('')",
        "array.tofile(path)",
    ],
)
def test_writing_calls_are_recognised(source: str) -> None:
    assert list(writes(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "Log.open(folder)",
        "Log.open('data')",
        "text.replace('a', 'b')",
        "os.open(path, os.O_RDONLY | os.O_CLOEXEC)",
        "os.getpid()",
    ],
)
def test_other_calls_are_not_taken_for_writing(source: str) -> None:
    assert not list(writes(ast.parse(source)))


def test_clients_load_no_engine() -> None:
    program = """
import sys
import tallybus
from tallybus import AsyncClient, Client
engine = ("numba", "llvmlite", "wasmtime", "tallybus.services", "tallybus.embedded")
print([name for name in engine if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
