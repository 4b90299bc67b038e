"""Who finds which name: by network, by link, and never across."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.network.dns_table import Client, Directory, Host, Table, Zone, decode, encode

_NAMES = st.text(min_size=1, max_size=12)
_ZONES = st.builds(
    Zone,
    id=_NAMES,
    name=_NAMES,
    device=_NAMES,
    listen=st.lists(_NAMES, max_size=2).map(tuple),
    forward=st.booleans(),
    hosts=st.lists(
        st.builds(
            Host,
            names=st.lists(_NAMES, min_size=1, max_size=3).map(tuple),
            addresses=st.lists(_NAMES, max_size=2).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)

FRONT = Zone(
    "f", "front", "br0", ("10.1.0.1",), True,
    (
        Host(("Web", "0123456789ab"), ("10.1.0.2", "fd00::2")),
        Host(("api", "backend"), ("10.1.0.3",)),
        Host(("api2", "backend"), ("10.1.0.4",)),
    ),
)  # fmt: skip
BACK = Zone("b", "back.net", "br1", ("10.2.0.1",), False, (Host(("db",), ("10.2.0.2",)),))
BOTH = Client(("10.1.0.3", "10.2.0.3"), ("f", "b"), {"store": "db"}, ("9.9.9.9",))
ONE = Client(("10.1.0.2",), ("f",))
DIRECTORY = Directory(Table((FRONT, BACK), (BOTH, ONE)))


@given(st.builds(Table, zones=st.lists(_ZONES, max_size=3).map(tuple)))
def test_a_table_is_read_as_it_was_written(table: Table) -> None:
    assert decode(encode(table)) == table


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"version":2}', b'{"version":1,"zones":[{}],"clients":[]}', b"7"],
)
def test_what_is_no_table_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode(content)


def test_a_client_finds_the_names_of_its_networks_only() -> None:
    assert DIRECTORY.find(BOTH, "db") == ["10.2.0.2"]
    assert DIRECTORY.find(ONE, "db") is None
    assert DIRECTORY.find(ONE, "web") == ["10.1.0.2", "fd00::2"]
    assert DIRECTORY.find(ONE, "0123456789ab") == ["10.1.0.2", "fd00::2"]


def test_those_who_share_an_alias_are_all_found() -> None:
    assert DIRECTORY.find(ONE, "backend") == ["10.1.0.3", "10.1.0.4"]


def test_a_name_may_name_its_network_too() -> None:
    assert DIRECTORY.find(BOTH, "db.back.net") == ["10.2.0.2"]
    assert DIRECTORY.find(BOTH, "web.front") is not None
    assert DIRECTORY.find(ONE, "db.back.net") is None
    assert DIRECTORY.find(ONE, "web.elsewhere") is None


def test_a_link_is_a_name_of_ones_own() -> None:
    assert DIRECTORY.find(BOTH, "store") == ["10.2.0.2"]
    assert DIRECTORY.find(ONE, "store") is None


def test_who_asks_is_known_by_network_and_address_together() -> None:
    assert DIRECTORY.client("f", "10.1.0.3") is BOTH
    assert DIRECTORY.client("b", "10.2.0.3") is BOTH
    stranger = DIRECTORY.client("f", "10.1.0.77")
    assert DIRECTORY.find(stranger, "web") and DIRECTORY.find(stranger, "db") is None


def test_addresses_are_named_for_those_who_may_know_them() -> None:
    assert DIRECTORY.reverse(BOTH, "10.2.0.2") == "db.back.net"
    assert DIRECTORY.reverse(ONE, "10.2.0.2") is None


def test_only_who_is_in_an_open_network_asks_the_world() -> None:
    assert DIRECTORY.forwards(BOTH)
    assert not DIRECTORY.forwards(Client(("10.2.0.9",), ("b",)))
