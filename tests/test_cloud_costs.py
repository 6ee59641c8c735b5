"""What machines cost: sums that can be done by hand."""

from __future__ import annotations

import datetime
import json
from typing import Any

import dask.config
import pytest

from envsync.errors import ConfigurationError
from envsync.runner.cloud.costs import Bill, Hired, duration, listed_price, money, summed
from envsync.runner.cloud.provider import Market, Price

LISTED = Price(amount=1.006, currency="USD", source="AWS price list", date="2026-11-01")
DISK = Price(amount=0.004, currency="USD", source="AWS price list", date="2026-11-01")


def hired(number: int = 1, **more: Any) -> Hired:
    usual = {"region": "north", "zone": "north-a", "type": "g5.xlarge", "price": LISTED, "disk": DISK}
    return Hired(id=f"m-{number}", **{**usual, **more})


def test_machines_cost_from_when_they_are_made_until_they_have_ended() -> None:
    bill = Bill((hired(1, begun=0.0), hired(2, begun=0.0, ended=1800.0)))
    assert bill.cost(0) == 0
    assert bill.cost(900) == pytest.approx(2 * 1.01 / 4)
    assert bill.cost(3600) == pytest.approx(1.01 * 1.5)
    assert bill.rate(900) == pytest.approx(2.02)
    assert bill.rate(3600) == pytest.approx(1.01)
    assert bill.currency == "USD"
    assert bill.sources == ("AWS price list, 2026-11-01",)
    assert bill.cost(-5) == 0  # a clock that was set back takes nothing off


def test_the_summary_is_one_line() -> None:
    eight = Bill(tuple(hired(number, begun=0.0) for number in range(8)))
    assert eight.summary(41 * 60) == "8 x g5.xlarge, 41 min, 5.52 USD"
    # one that was replaced was never there beside its replacement
    replaced = Bill((hired(1, ended=60.0), hired(2, begun=60.0, ended=120.0)))
    assert replaced.summary(9999) == "1 x g5.xlarge, 2 min, 0.0337 USD"
    mixed = Bill((hired(1), hired(2, type="m7i.large", market="spot", disk=None)))
    assert mixed.summary(7200) == "1 x g5.xlarge + 1 x m7i.large (spot), 2 h 00 min, 4.03 USD without disks"
    assert Bill().summary(5) == "no machines"


def test_what_nobody_knows_is_said_and_not_counted() -> None:
    unknown = hired(2, price=None)
    assert Bill((unknown,)).summary(60) == "1 x g5.xlarge, 1 min, price not known"
    assert (Bill((unknown,)).currency, Bill((unknown,)).unpriced) == ("", (unknown,))
    euros = hired(3, price=Price(amount=9.0, currency="EUR", source="x", date="2026-01-01"), disk=None)
    bill = Bill((hired(1), hired(4), euros))
    assert bill.unpriced == (euros,)
    assert bill.without_disk == (euros,)
    assert bill.cost(3600) == pytest.approx(2.02)
    assert "without 1 of 3 machines" in bill.summary(3600)


def test_a_bill_is_written_and_read_back() -> None:
    bill = Bill((hired(1, ended=5.5), hired(2, price=None, disk=None, market="spot")))
    assert Bill.from_list(json.loads(json.dumps(bill.to_list()))) == bill
    with pytest.raises((KeyError, TypeError, ValueError)):
        Bill.from_list([{"id": "m-1"}])


def test_bills_are_summed_up() -> None:
    noon = datetime.datetime(2026, 11, 1, 12).timestamp()
    two = Bill((hired(1, begun=noon, ended=noon + 86400), hired(2, begun=noon, price=None, disk=None)))
    entries = [("ada", two, noon + 86400), ("bob", Bill((hired(3, begun=noon),)), noon + 3600)]
    ada, bob = summed(entries)
    assert (ada.of, ada.machines, ada.unpriced, ada.without_disk) == ("ada", 2, 1, 1)
    assert ada.hours == pytest.approx(48)
    assert ada.cost == pytest.approx(24 * 1.01)
    assert bob.cost == pytest.approx(1.01)
    first, second = summed(entries, by_day=True)
    assert (first.of, second.of) == ("2026-11-01", "2026-11-02")
    assert first.cost + second.cost == pytest.approx(ada.cost + bob.cost)
    assert second.machines == 2
    (later,) = summed(entries, since=noon + 3600)
    assert later.cost == pytest.approx(23 * 1.01)


def test_times_and_amounts_are_for_people() -> None:
    assert [duration(seconds) for seconds in (12, 89, 3599, 11100, 200000)] == [
        *("12 s", "1 min", "1 h 00 min", "3 h 05 min", "2 d 7 h")
    ]
    assert (money(0, "USD"), money(5.519, "USD"), money(0.004, "EUR")) == (
        "0.00 USD",
        "5.52 USD",
        "0.0040 EUR",
    )


@pytest.mark.parametrize(
    ("region", "market", "amount"),
    [("north", "on-demand", 0.1), ("south", "on-demand", 0.2), ("south", "spot", 0.05)],
)
def test_the_users_own_table_has_a_date(region: str, market: Market, amount: float) -> None:
    mine = {
        "date": datetime.date(2026, 11, 1),  # as YAML has it
        "source": "our contract",
        "small": 0.1,
        "small spot": 0.05,
        "south": {"small": 0.2},
    }
    with dask.config.set({"envsync.cloud.prices": {"fake": mine}}):
        table = dask.config.get("envsync.cloud.prices")
    found = listed_price(table, "fake", region, "small", market)
    assert found == Price(amount=amount, currency="USD", source="our contract", date="2026-11-01")
    assert listed_price(table, "fake", region, "large", market) is None
    assert listed_price(table, "other", region, "small", market) is None
    assert listed_price(None, "fake", region, "small", market) is None


@pytest.mark.parametrize("wrong", [{"small": 0.1}, {"date": "2026-11-01", "small": "cheap"}, 5])
def test_a_table_that_makes_no_sense_says_what_to_write(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"envsync\.cloud\.prices") as told:
        listed_price({"fake": wrong}, "fake", "north", "small", "on-demand")
    assert told.value.hint
