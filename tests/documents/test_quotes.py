"""What documents, help texts, messages, log lines and comments quote is there.

Commands, options, settings, variables, metrics, files, modules, names of the code, links,
decisions, numbers of statuses, exit codes. A quotation that fails here is wrong, or the name that
it quotes has changed: mend the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.documents import codes, commands, names, places
from tests.documents.commands import Complaint
from tests.documents.texts import Piece, documents, everything, of_markdown, of_python, relative

Check = Callable[[Piece], Iterator[Complaint]]
CHECKS: dict[str, Check] = {
    "commands": commands.complaints,
    "options": commands.option_complaints,
    "python -m": commands.module_complaints,
    "settings": names.setting_complaints,
    "variables": names.variable_complaints,
    "metrics": names.metric_complaints,
    "names of the code": names.name_complaints,
    "names in capitals": codes.capital_complaints,
    "files and folders": places.path_complaints,
    "modules": places.module_complaints,
    "what modules have": places.member_complaints,
    "units of systemd": places.unit_complaints,
    "decisions": places.decision_complaints,
    "exit codes": codes.exit_complaints,
    "numbers of statuses": codes.number_complaints,
}


def listed(complaints: list[Complaint]) -> str:
    return "".join(f"\n{complaint}" for complaint in complaints)


@pytest.mark.parametrize("quoted", CHECKS)
def test_what_is_quoted_is_there(quoted: str) -> None:
    complaints = [each for piece in everything() for each in CHECKS[quoted](piece)]
    assert not complaints, listed(complaints)


@pytest.mark.parametrize("page", documents(), ids=relative)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    complaints = list(places.link_complaints(page))
    assert not complaints, listed(complaints)


NO_DECISION = 999
"""There is no record of this number."""
WRONG_IN_PAGES = [
    ("commands", "run `tallybus ctl verify DIR`", "no such command"),
    ("commands", "then tallybus ctl verify tells more", "no such command"),
    ("commands", "`tallybus deposit 1`", "needs AMOUNT"),
    ("commands", "`tallybus deposit 1 5 6`", "takes no '6'"),
    ("commands", "`tallybus index --fast`", "no option --fast"),
    ("commands", "`tallybus deposit 1 5 --wait never`", "--wait never"),
    ("commands", "`tallybus up --set gateway.portal=1`", "no setting gateway.portal"),
    ("commands", "`tallybus up --set bus.base_port=eighty`", "--set bus.base_port=eighty"),
    ("commands", "`sudo -u me tallybus function forget x`", "no such command"),
    ("commands", "```sh\ntallybus index --fast   # how far\n```", "no option --fast"),
    ("commands", "```console\n$ tallybus index --fast\n```", "no option --fast"),
    ("commands", "```sh\ntallybus call one 1 \\\n  --soon\n```", "no option --soon"),
    ("commands", "```sh\ncd / && tallybus up --quick && ls\n```", "no option --quick"),
    ("options", "give `--again-and-again`", "no command has an option"),
    ("python -m", "`python -m benchmarks.nothing`", "no such module"),
    ("python -m", "`python -m benchmarks.kernel --never`", "has no option --never"),
    ("settings", "set `gateway.portal`", "no setting gateway.portal"),
    ("settings", "```toml\n[gateway]\nportal = 1\n```", "no setting gateway.portal"),
    ("settings", "```toml\n[bus]\nbase_port = 0\n```", "bus.base_port"),
    ("settings", "```yaml\n# beside gateway.portal\n```", "no setting gateway.portal"),
    ("variables", "TALLYBUS_GATEWAY_PORTAL=1", "no variable"),
    ("metrics", "`tallybus_nothing_total`", "no metric tallybus_nothing_total"),
    ("metrics", '`tallybus_index{colour="red"}`', "no label colour"),
    ("names of the code", "`LedgerOfSomebody.open()`", "LedgerOfSomebody"),
    ("names of the code", "`get_everything`", "get_everything"),
    ("names in capitals", "ends as FUNNY_STATUS", "FUNNY_STATUS"),
    ("files and folders", "see common/nothing.py", "no common/nothing.py"),
    ("files and folders", "see docs/cli.md#no-such-heading", "no heading"),
    ("files and folders", "`deploy/systemd/*.cfg`", "no deploy/systemd/*.cfg"),
    ("modules", "`common.bus.nothing`", "no module"),
    ("what modules have", "in `nowhere.py`", "no file nowhere.py"),
    ("what modules have", "`link.Chain`", "no module link has a Chain"),
    ("units of systemd", "`systemctl start tallybus-cook.service`", "tallybus-cook.service"),
    ("units of systemd", "systemctl start tallybus.socket", "tallybus.socket"),
    ("decisions", f"as in ADR {NO_DECISION}", f"no ADR {NO_DECISION}"),
    ("exit codes", "the service ends with 66", "nothing ends with 66"),
    ("numbers of statuses", "`5 NOT_RUN`", "NOT_RUN is not 5"),
    ("numbers of statuses", "| 5 | `NOT_RUN` |", "NOT_RUN is not 5"),
]


@pytest.mark.parametrize(("quoted", "text", "expected"), WRONG_IN_PAGES)
def test_a_wrong_quotation_in_a_page_is_found(quoted: str, text: str, expected: str) -> None:
    complaints = [
        str(each) for piece in of_markdown(text, "docs/page.md") for each in CHECKS[quoted](piece)
    ]
    assert any(expected in each for each in complaints), complaints


WRONG_IN_CODE = [
    ("commands", 'raise Error(f"{path} is damaged: run tallybus ctl verify {path}")'),
    ("commands", '"""Help: `tallybus index --fast` is faster."""'),
    ("commands", 'advice = "Free space, then tallybus up --please"'),
    ("options", 'raise UsageError("--portal takes effect with --spawn alone")'),
    ("settings", 'log.warning("gateway.portal is set: %s", value)'),
    ("settings", "# bounded by `gateway.portal`\nx = 1"),
    ("variables", 'raise Error("TALLYBUS_PORTAL is set")'),
    ("metrics", '"""Counted in `tallybus_nothing_total`."""'),
    ("files and folders", '"""As docs/nothing.md says."""'),
    ("decisions", f"# ADR {NO_DECISION} says why\nx = 1"),
    ("what modules have", "# see `nowhere.py`\nx = 1"),
    ("exit codes", 'log.error("it ends with exit code 66")'),
]


@pytest.mark.parametrize(("quoted", "source"), WRONG_IN_CODE)
def test_a_wrong_quotation_in_code_is_found(quoted: str, source: str) -> None:
    pieces = list(of_python(source, "common/errors.py"))
    assert [each for piece in pieces for each in CHECKS[quoted](piece)]


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, `quoted`\n"
        "[a](gone.md) [b](#a-title-quoted) [c](#other) [d](page.md)\n"
        "[![e](gone.png)](page.md) `[f](in-code.md)`\n"
    )
    assert {each.what for each in places.link_complaints(page, tmp_path)} == {
        "the link gone.md leads nowhere",
        "the link #other: the page has no such heading",
        "the link gone.png leads nowhere",
    }


def test_all_that_the_project_says_is_looked_at() -> None:
    pieces = everything()
    looked_at = {piece.path for piece in pieces}
    assert {
        "README.md",
        "docs/cli.md",
        "examples/functions/README.md",
        "compose.yaml",
        "deploy/systemd/tallybus-wal.service",
        "scripts/up",
        "common/errors.py",
        "services/gateway/core.py",
        "tallybus/cli/__init__.py",
    } <= looked_at
    assert len(pieces) > 5_000
