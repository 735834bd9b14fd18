"""What is done to the containers, and what must hold."""

from __future__ import annotations

import json
import random
import socket
import urllib.request
from pathlib import Path
from typing import Any

from tallybus.common.stages import STAGES
from tests.compose.dashboards import metrics_used
from tests.compose.engine import say
from tests.compose.stack import DEPLOYED_ORDER, METRICS_PORTS, Stack, check, until
from tests.support.bank_data import BankFile

ROWS = 20_000
"""Rows of the import under way while a service is killed."""
BATCH = 8
FIRST_OTHER = 100_000
"""Accounts of those imports; the bank's are below."""
OTHERS = 500
REFUSED = 6
"""Exit code of a command to which the ledger has refused access."""


class Scenario:
    """Goes through everything once, on one stack."""

    def __init__(self, stack: Stack, bank: BankFile, folder: Path) -> None:
        self.stack = stack
        self.bank = bank
        self.folder = folder
        self.expected = dict(bank.balances)

    def run(self) -> None:
        """All of it."""
        self.starts()
        self.is_confined()
        self.loads_the_bank()
        for service in DEPLOYED_ORDER:
            self.survives_a_kill(service)
        for service in DEPLOYED_ORDER:
            self.survives_a_restart(service)
        self.goes_on_without_the_snapshotter()
        self.tells_its_metrics()
        self.shows_its_page()
        self.stops_and_starts()

    def run_briefly(self) -> None:
        """Start, load, stop."""
        self.starts()
        self.loads_the_bank()
        self.stops_and_starts()

    def run_with_keys(self) -> None:
        """The same with keys, one kill each, and who is refused."""
        self.stack.key = self.stack.keys("create", "ops", "--role", "admin", "--out", "-")
        reader = self.stack.keys("create", "auditor", "--role", "read", "--out", "-")
        self.starts()
        self.loads_the_bank()
        for service in DEPLOYED_ORDER:
            self.survives_a_kill(service)
        self.refuses_strangers(reader)
        self.stops_and_starts()

    # -- steps -----------------------------------------------------------------------------------

    def starts(self) -> None:
        seconds = self.stack.up("--wait")
        say(f"{' + '.join(self.stack.files)}: five services healthy after {seconds:.1f} s")
        if "compose.tcp.yaml" in self.stack.files:
            sockets = self.stack.inside("wal", "sh", "-c", "ls /run/tallybus").split()
            check(not sockets, f"over tcp the run folder stays empty, it has {sockets}")

    def is_confined(self) -> None:
        for service in DEPLOYED_ORDER:
            state = self.stack.state(service)
            host = state["HostConfig"]
            check(host["ReadonlyRootfs"], f"{service}: the root file system is read-only")
            check(host["CapDrop"] == ["ALL"], f"{service}: has no capabilities")
            check(host["Memory"] > 0 and host["PidsLimit"] == 64, f"{service}: is limited")
            facts = self.stack.inside(
                service,
                *("sh", "-c"),
                "id -u; stat -c '%a %u' /run/tallybus; cat /proc/1/comm; touch /no 2>&1; "
                # What compiled something has loaded the compiler.
                "cat /proc/[0-9]*/maps | grep -c site-packages/numba/ || true",
            ).splitlines()
            check(facts[0] == "10001", f"{service}: is not root: {facts}")
            check(facts[1] == "700 10001", f"{service}: the run folder is its own: {facts}")
            check("init" in facts[2], f"{service}: process 1 is an init: {facts}")
            check("Read-only" in facts[3], f"{service}: can write to its root: {facts}")
            check(facts[4] == "0", f"{service}: compiled at its start: {facts}")
        refused = self.stack.inside("transactor", "sh", "-c", "touch /data/no 2>&1 || true")
        check("Read-only" in refused, "the transactor can write to the data folder")
        with socket.create_connection(("127.0.0.1", self.stack.port), 5) as connection:
            check(connection.recv(1) == b"\xff", "the published port speaks ZMTP")
        bound = self.stack.state("gateway")["HostConfig"]["PortBindings"]["5550/tcp"]
        check(bound[0]["HostIp"] == "127.0.0.1", f"published on loopback alone: {bound}")
        say("not root, read-only, no capabilities, limited, nothing compiled at the start")

    def loads_the_bank(self) -> None:
        told = self.stack.tallybus("import", "-", text=self.bank.path.read_text("utf-8"))
        check(told["applied"] == self.bank.rows, f"all {self.bank.rows} rows applied: {told}")
        self.balances_are_right()
        say(f"{self.bank.rows} rows of {len(self.bank.balances)} accounts: {told['seconds']:.2f} s")

    def balances_are_right(self) -> None:
        """As expected, account by account, and zero in sum."""
        index = self.stack.tallybus("index", "--timeout", "60")
        told = self.stack.tallybus(
            "balance",
            *("0", *map(str, self.expected)),
            *("--min-tx-id", str(index["sequenced"]), "--timeout", "60"),
        )
        found = {each["account"]: each["balance"] for each in told["balances"]}
        wrong = [account for account in self.expected if found[account] != self.expected[account]]
        check(not wrong, f"{len(wrong)} balances are wrong, the first of account {wrong[:1]}")
        check(told["sum"] == 0, f"balances sum to {told['sum']}")

    def survives_a_kill(self, service: str) -> None:
        """SIGKILL to the service during an import: the engine starts it again, nothing is lost."""
        csv = self._deposits(service)
        before = self.stack.tallybus("index")["committed"]
        started = self.stack.state(service)["State"]["StartedAt"]
        client = self.stack.importing("-", BATCH)
        assert client.stdin is not None
        client.stdin.write(csv)
        client.stdin.close()
        client.stdin = None
        until(
            "the import is under way",
            lambda: self.stack.tallybus("index", "--timeout", "60")["committed"] > before + BATCH,
        )
        # Children of the init, which is process 1: the service itself.
        self.stack.inside(
            service, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)", check=False
        )
        seconds = until(
            f"{service} is started again and ready",
            lambda: (
                self.stack.state(service)["State"]["StartedAt"] != started
                and self.stack.is_ready(service)
            ),
        )
        over = client.poll() is not None
        out, err = client.communicate(timeout=300)
        check(client.returncode == 0, f"the import ended with {client.returncode}: {err[-500:]}")
        told = json.loads(out)
        check(
            told["applied"] + told["duplicates"] == ROWS and not told["rejected"],
            f"every row counts once: {told}",
        )
        self.balances_are_right()
        say(
            f"{service} killed {'after' if over else 'during'} an import, ready again after "
            f"{seconds:.1f} s; balances right"
        )

    def _deposits(self, seed: str) -> str:
        """A CSV file of deposits to accounts beyond the bank's, which `expected` is told of."""
        chance = random.Random(f"{self.stack.name} {seed}")
        lines = ["kind,account,amount"]
        for _ in range(ROWS):
            account, amount = FIRST_OTHER + chance.randrange(OTHERS), chance.randint(1, 10**6)
            self.expected[account] = self.expected.get(account, 0) + amount
            lines.append(f"deposit,{account},{amount}")
        return "\n".join(lines) + "\n"

    def survives_a_restart(self, service: str) -> None:
        others = {each: self._started(each) for each in DEPLOYED_ORDER if each != service}
        self.stack.compose("restart", "--no-deps", service)
        seconds = until(f"{service} is ready again", lambda: self.stack.is_ready(service))
        check(
            others == {each: self._started(each) for each in others},
            f"only {service} was restarted",
        )
        self.balances_are_right()
        say(f"{service} restarted alone, ready {seconds:.1f} s after that; balances right")

    def _started(self, service: str) -> str:
        started: str = self.stack.state(service)["State"]["StartedAt"]
        return started

    def goes_on_without_the_snapshotter(self) -> None:
        others = {each: self._started(each) for each in DEPLOYED_ORDER if each != "snapshotter"}
        self.stack.compose("up", "--detach", "--no-build", "--scale", "snapshotter=0")
        check(not self.stack.state("snapshotter"), "the snapshotter's container is gone")
        account = FIRST_OTHER
        self.stack.tallybus("deposit", str(account), "5", "--wait", "committed")
        self.expected[account] = self.expected.get(account, 0) + 5
        until("the gateway says so", lambda: not self.stack.is_ready("gateway"), 30)
        self.stack.up("--wait")
        check(
            others == {each: self._started(each) for each in others},
            "the others ran on meanwhile",
        )
        self.balances_are_right()
        say("scaled to zero and back: commits meanwhile, /readyz of the gateway said no")

    def tells_its_metrics(self) -> None:
        self.stack.compose("restart", "--no-deps", "transactor")
        until("all are ready", lambda: all(map(self.stack.is_ready, DEPLOYED_ORDER)))
        for amount in range(1, 8):
            self.stack.tallybus("deposit", str(FIRST_OTHER), str(amount), "--wait", "snapshot")
            self.expected[FIRST_OTHER] += amount
        scraped = {service: self.stack.metrics(service) for service in METRICS_PORTS}
        index = self.stack.tallybus("index")
        for service, level in zip(
            STAGES,
            ("sequenced", "computed", "committed", "snapshot"),
            strict=True,
        ):
            value = scraped[service][f'tallybus_index{{stage="{service}"}}']
            check(value == index[level], f"index of the {service}: {value}, API: {index}")
        counted = sum(
            value
            for name, value in scraped["transactor"].items()
            if name.startswith("tallybus_transactions_total{")
        )
        check(counted == 7, f"7 transactions since the restart, counted {counted}")
        names = {name.partition("{")[0] for values in scraped.values() for name in values}
        # Told once there is a function.
        missing = {
            each for each in metrics_used() - names if not each.startswith("tallybus_function_")
        }
        check(not missing, f"the dashboards ask for what nobody tells: {sorted(missing)}")
        say(f"metrics: {sum(map(len, scraped.values()))} series; indexes and counts as the API's")

    def shows_its_page(self) -> None:
        address = f"http://127.0.0.1:{self.stack.page_port}"

        def get(path: str) -> dict[str, Any]:
            with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        index = self.stack.tallybus("index")
        rows = {"sequencer": "sequenced", "transactor": "computed", "wal": "committed"}

        def is_there() -> bool:
            stages = {each["stage"]: each for each in get("/api/report")["stages"]}
            return all(stages[stage]["index"] == index[level] for stage, level in rows.items())

        until("the page shows the API's indexes", is_there, 10)
        account = next(iter(self.expected))
        told = get(f"/api/balance?account={account}")
        check(int(told["balance"]) == self.expected[account], f"balance of {account}: {told}")
        bound = self.stack.state("gateway")["HostConfig"]["PortBindings"]["5580/tcp"]
        check(bound[0]["HostIp"] == "127.0.0.1", f"the page is on loopback alone: {bound}")
        say("the page shows the API's indexes and balances")

    def refuses_strangers(self, reader: str) -> None:
        """No key, a role that does not do, and a key that was revoked end with 6."""
        admin, self.stack.key = self.stack.key, ""
        check(self.stack.exit_code("index") == REFUSED, "without a key nobody gets in")
        self.stack.key = reader
        check(self.stack.exit_code("index") == 0, "the auditor may read")
        check(self.stack.exit_code("deposit", "1", "1") == REFUSED, "and not deposit")
        self.stack.keys("revoke", "auditor")
        until("the auditor gets in no more", lambda: self.stack.exit_code("index") == REFUSED, 10)
        self.stack.key = admin
        check(self.stack.exit_code("index") == 0, "ops may still do everything")
        listed = {
            each["name"]: each for each in json.loads(self.stack.keys("list", "--json"))["keys"]
        }
        check(set(listed) == {"ops", "auditor"}, f"two keys: {listed}")
        log = self.stack.compose("logs", "--no-log-prefix", "gateway")
        check("revoked" in log, "the gateway's log says who was refused")
        secrets = [
            line.split('"')[1]
            for line in (admin + reader).splitlines()
            if line.startswith("secret")
        ]
        check(bool(secrets) and not any(each in log for each in secrets), "no secret in the log")
        say("no key, a wrong role and a revoked key were refused with exit code 6, and logged")

    def stops_and_starts(self) -> None:
        self.stack.compose("stop")
        codes = {each: self.stack.state(each)["State"]["ExitCode"] for each in DEPLOYED_ORDER}
        check(not any(codes.values()), f"all end with exit code 0: {codes}")
        self.stack.up("--wait")
        self.balances_are_right()
        say("stopped with exit code 0 and started again; balances right")
        self.stack.remove()
