"""DNS messages: read strictly, answered exactly, against an independent implementation."""

from __future__ import annotations

import socket
import struct

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.network import dns_wire
from tare.network.dns_wire import MalformedError, Query, answer, read

_LABELS = st.lists(
    st.binary(min_size=1, max_size=20).filter(lambda label: b"." not in label),
    min_size=1,
    max_size=6,
)


def asked(name: str, kind: str = "A", *, edns: int = 0) -> bytes:
    record = dnslib.DNSRecord.question(name, kind)
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=edns))
    return bytes(record.pack())


def code_of(message: bytes) -> int:
    with pytest.raises(MalformedError) as caught:
        read(message)
    return caught.value.code


@pytest.mark.parametrize("kind", ["A", "AAAA", "PTR", "MX", "TXT", "ANY", "HTTPS"])
def test_a_question_is_read_as_it_was_asked(kind: str) -> None:
    query = read(asked("Web.Example", kind))

    assert (query.name, query.type) == ("web.example", dnslib.QTYPE.reverse[kind])
    assert query.question == asked("Web.Example", kind)[12:]
    assert not query.edns


@given(_LABELS, st.integers(0, 65535))
def test_any_name_is_read_in_lower_case(labels: list[bytes], kind: int) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"

    query = read(struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, 1))

    assert query.name == b".".join(labels).lower().decode("latin-1")
    assert query.type == kind


def test_a_dot_within_a_label_is_no_border() -> None:
    message = struct.pack("!6H", 7, 0, 1, 0, 0, 0) + b"\x07web.net\0" + struct.pack("!HH", 1, 1)

    assert read(message).name == "web\\.net"


@pytest.mark.parametrize(("said", "held"), [(100, 512), (1232, 1232), (4096, 4096)])
def test_edns_says_what_the_client_takes(said: int, held: int) -> None:
    query = read(asked("web", edns=said))

    assert (query.edns, query.size) == (True, held)


@pytest.mark.attack("A43")
@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", -1),
        (b"\0" * 11, -1),
        (struct.pack("!6H", 1, 0x8000, 1, 0, 0, 0) + b"\0\0\1\0\1", -1),  # an answer
        (struct.pack("!6H", 1, 0x2800, 1, 0, 0, 0) + b"\0\0\1\0\1", dns_wire.NOT_IMPLEMENTED),
        (struct.pack("!6H", 1, 0, 0, 0, 0, 0), dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 2, 0, 0, 0) + b"\0\0\1\0\1" * 2, dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 1, 0, 0) + b"\0\0\1\0\1", dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x40" + b"a" * 64, dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x3fab", dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\3web\0\0", dns_wire.FORMAT_ERROR),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\1a" * 130 + b"\0\0\1\0\1", 1),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\0\0\1\0\3", dns_wire.REFUSED),  # CHAOS
    ],
    ids=range(13),
)
def test_what_is_no_plain_question_is_refused(message: bytes, code: int) -> None:
    assert code_of(message) == code


@pytest.mark.attack("A43")
@given(st.binary(max_size=600))
def test_noise_is_read_or_refused_and_nothing_else(message: bytes) -> None:
    try:
        query = read(message)
    except MalformedError as error:
        if error.code >= 0:
            assert len(dns_wire.refusal(message, error.code)) == 12
        return

    assert len(answer(query, [], limit=512)) <= 512


@given(st.lists(st.ip_addresses(), max_size=40))
def test_an_answer_is_what_another_implementation_reads(addresses: list[object]) -> None:
    records = [
        (dns_wire.AAAA if ":" in str(a) else dns_wire.A, a.packed)  # type: ignore[attr-defined]
        for a in addresses
    ]

    found = dnslib.DNSRecord.parse(
        answer(read(asked("web", "ANY", edns=1232)), records, limit=dns_wire.MAXIMUM)
    )

    shown = [
        socket.inet_pton(
            socket.AF_INET6 if ":" in str(one.rdata) else socket.AF_INET, str(one.rdata)
        )
        for one in found.rr
    ]
    assert shown == [data for _, data in records]
    assert all(str(one.rname) == "web." and one.ttl == dns_wire.TTL for one in found.rr)
    assert (found.header.qr, found.header.tc, found.header.rcode) == (1, 0, 0)
    assert [one.rtype for one in found.ar] == [41]


def test_too_long_an_answer_is_cut_at_a_record_and_marked() -> None:
    records = [(dns_wire.A, bytes((10, 0, 0, n))) for n in range(100)]

    content = answer(read(asked("web")), records, limit=512)
    found = dnslib.DNSRecord.parse(content)

    assert len(content) <= 512
    assert found.header.tc == 1
    assert len(found.rr) == found.header.a == (512 - 12 - 9) // 16


def test_names_and_reverse_names() -> None:
    name = dnslib.DNSLabel("4.3.2.1.in-addr.arpa")
    assert dns_wire.reversed_address(str(name).rstrip(".")) == "1.2.3.4"
    six = "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa"
    assert dns_wire.reversed_address(six) == "4321:0:1:2:3:4:567:89ab"
    for wrong in (
        "web",
        "1.2.3.in-addr.arpa",
        "x.3.2.1.in-addr.arpa",
        "1.ip6.arpa",
        "a\0.1.2.3.in-addr.arpa",
    ):
        assert dns_wire.reversed_address(wrong) is None

    query = read(asked("4.3.2.1.in-addr.arpa", "PTR"))
    found = answer(query, [(dns_wire.PTR, dns_wire.name_data("web.mynet"))], limit=512)
    assert str(dnslib.DNSRecord.parse(found).rr[0].rdata) == "web.mynet."


def test_only_the_answer_to_this_question_belongs_to_it() -> None:
    question = read(asked("Web.example")).question
    record = dnslib.DNSRecord.parse(asked("web.Example"))
    record.header.id = 99
    response = bytes(record.reply().pack())
    other = dnslib.DNSRecord.parse(asked("evil.example"))
    other.header.id = 99

    assert dns_wire.belongs(response, 99, question)
    assert not dns_wire.belongs(response, 98, question)
    assert not dns_wire.belongs(bytes(other.reply().pack()), 99, question)
    assert not dns_wire.belongs(asked("web.example"), 99, question)
    assert not dns_wire.belongs(b"", 99, question)


def test_a_response_code_is_told() -> None:
    query = Query(5, 0x100, "x", 1, asked("x")[12:])

    found = dnslib.DNSRecord.parse(answer(query, (), limit=512, code=dns_wire.NO_SUCH_NAME))

    assert dnslib.RCODE[found.header.rcode] == "NXDOMAIN"
    assert found.header.id == 5
