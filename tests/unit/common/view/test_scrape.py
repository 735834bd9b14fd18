"""Metrics as text, read by name."""

from __future__ import annotations

from tallybus.common.view.scrape import parse


def test_text_that_is_no_metric_of_ours_is_passed_over() -> None:
    text = (
        "# tallybus_x 1\nprocess_cpu_seconds_total 3\ntallybus_bad x\ntallybus_\n\n"
        'tallybus_a{name="b \\"c\\" {d}, \\\\n\\n"} 2.5 1700000\n'
    )
    found = parse(text, 1)
    assert found.values == {"tallybus_a": [({"name": 'b "c" {d}, \\n\n'}, 2.5)]}
    assert (found.one("tallybus_a"), found.one("tallybus_none")) == (2.5, None)
    assert found.by("tallybus_a", "name") == {'b "c" {d}, \\n\n': 2.5}
