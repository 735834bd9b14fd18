"""Look-ups of the page in a browser: what is asked, and how answers and errors are shown."""

from __future__ import annotations

from tests.browser.browser import PHONE, Browser
from tests.browser.scripted import Json, Scripted, report
from tests.browser.states import fact, look_up, opened, transaction


def test_numbers_of_64_bits_are_shown_exactly(browser: Browser, scripted: Scripted) -> None:
    most = 2**64 - 1
    balance = {
        "account": str(most),
        "balance": "-9223372036854775808",
        "last_snapshot_tx_id": str(most),
    }
    scripted.answer("balance", most, 200, balance)
    scripted.answer("transaction", most, 200, transaction())
    opened(browser, scripted)
    look_up(browser, "balance", " 18,446,744,073,709,551,615 ")
    browser.wait_text("#balance-answer .found", "-9,223,372,036,854,775,808")
    assert "18,446,744,073,709,551,615" in browser.text("#balance-answer")
    look_up(browser, "transaction", "18'446'744'073'709'551'615")
    browser.wait_text("#transaction", "18,446,744,073,709,551,615")
    assert browser.text("#status") == "succeeded"
    assert fact(browser, "function") == "fee_transfer version 1, crc32c 4a2f1c3d"
    assert browser.texts("#transaction-answer .params span") == [
        *("-9,223,372,036,854,775,808", "9,223,372,036,854,775,807", "50"),
    ]
    assert fact(browser, "user_ref") == "18446744073709551615"
    assert browser.texts(".entries tbody tr > *") == [
        *("101", "9,223,372,036,854,775,807", ""),
        *("202", "", "9,223,372,036,854,775,807"),
    ]
    assert scripted.asked == [("balance", most), ("transaction", most)]


def test_what_is_no_number_is_not_asked(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    for typed in ("", "abc", "-1", "1.5", "1e3", "0x10", str(2**64), "1" * 40, "١٢"):
        look_up(browser, "balance", "0")
        browser.wait_text("#balance-answer", "there is no balance 0.")
        assert browser.attribute("#account", "aria-invalid") is None
        scripted.asked.clear()
        look_up(browser, "balance", typed)
        browser.wait_text(
            "#balance-answer", "Type a whole number from 0 to 18,446,744,073,709,551,615."
        )
        assert browser.attribute("#account", "aria-invalid") == "true"
        assert scripted.asked == [], typed


def test_errors_are_shown_in_the_words_of_the_gateway(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    for status in (400, 403, 404, 500, 503, 504):
        told = {"error": f"transaction {status} is not readable yet"}
        scripted.answer("transaction", status, status, told)
        look_up(browser, "transaction", str(status))
        browser.wait_text("#transaction-answer .problem", f"{told['error']}.")


def test_kinds_of_transactions_and_their_ends(browser: Browser, scripted: Scripted) -> None:
    plain: Json = {"function": None, "version": None, "crc32c": None, "params": []}
    answers = {
        1: transaction(kind="DEPOSIT", account="7", amount="1000", user_ref="0", **plain),
        2: transaction(
            kind="TRANSFER",
            status="INSUFFICIENT_FUNDS",
            stage="ERROR",
            source="7",
            target="8",
            amount="5000",
            entries=[],
            **plain,
        ),
        3: transaction(status="FUNCTION_128", stage="ERROR", params=[], entries=[]),
        4: transaction(kind="DEPOSIT", status="DUPLICATE", entries=[], duplicate_of="1", **plain),
    }
    for number, told in answers.items():
        scripted.answer("transaction", number, 200, told)
    opened(browser, scripted)
    look_up(browser, "transaction", "1")
    browser.wait(lambda: fact(browser, "kind") == "deposit", "a deposit")
    assert fact(browser, "account") == "7"
    assert fact(browser, "amount") == "1,000"
    assert fact(browser, "user_ref") == "none"
    assert fact(browser, "time") == "2026-03-01T09:30:00.123456789Z"
    assert fact(browser, "parameters") is None
    look_up(browser, "transaction", "2")
    browser.wait_text("#status", "insufficient funds")
    assert (fact(browser, "from"), fact(browser, "to")) == ("7", "8")
    assert "No entries: it moved nothing." in browser.text("#transaction-answer")
    look_up(browser, "transaction", "3")
    browser.wait_text("#status", "function 128")
    assert fact(browser, "parameters") == "none"
    look_up(browser, "transaction", "4")
    browser.wait_text("#status", "duplicate")
    browser.find("#transaction-answer a[href='#tx=1']").click()
    browser.wait_text("#status", "succeeded")
    assert fact(browser, "account") == "7", "the first of the two"


def test_a_new_question_makes_the_old_ones_answer_unwanted(
    browser: Browser, scripted: Scripted
) -> None:
    for account, balance in ((1, "111"), (2, "222")):
        told = {"account": str(account), "balance": balance, "last_snapshot_tx_id": "9"}
        scripted.answer("balance", account, 200, told)
    opened(browser, scripted)
    scripted.hold.clear()
    look_up(browser, "balance", "1")
    browser.wait(lambda: scripted.asked == [("balance", 1)], "the first is asked")
    assert browser.attribute("#balance-answer", "aria-busy") == "true"
    look_up(browser, "balance", "2")
    browser.wait(lambda: len(scripted.asked) == 2, "the second is asked")
    assert browser.attribute("#balance-answer", "aria-busy") == "true"
    assert browser.texts("#balance-answer .problem") == []
    scripted.hold.set()
    browser.wait_text("#balance-answer .found", "222")
    assert browser.attribute("#balance-answer", "aria-busy") is None


def test_an_address_with_a_question_asks_it(browser: Browser, scripted: Scripted) -> None:
    def seen() -> bool:
        return bool(
            browser.run(
                "const box = document.querySelector('#balance').getBoundingClientRect();"
                "return box.top >= 0 && box.bottom <= innerHeight"
            )
        )

    told = {"account": "101", "balance": "1000", "last_snapshot_tx_id": "0"}
    scripted.answer("balance", 101, 200, told)
    scripted.answer("transaction", 5, 200, transaction())
    browser.resize(*PHONE)
    browser.open(f"{scripted.url}#account=101")
    browser.wait_text("#balance-answer .found", "1,000")
    assert scripted.asked == [("balance", 101)]
    scripted.tell(report())  # what it draws moves the answer
    browser.wait(seen, "the answer is scrolled to")
    # A link asks, also when the address has its question already.
    for times in (1, 2):
        look_up(browser, "transaction", "5")
        browser.wait(lambda: browser.texts(".entries"), "the transaction")
        for _ in range(times):
            browser.find(".entries a[href='#account=101']").click()
            browser.wait(lambda: scripted.asked[-1] == ("balance", 101), "it is asked")
            scripted.asked.append(("seen", 0))
            browser.wait(seen, "the answer is scrolled to")
