"""What a guest says of its processes is shown only as far as it is of the agreed form."""

from __future__ import annotations

import pytest

from tare.engine.guest_processes import parse


def test_processes_are_shown_without_the_kernel_s_threads_and_our_init() -> None:
    content = (
        b"1 0 0 4 100 init\n2 0 0 0 0 kthreadd\n9 2 0 0 0 kworker/0:1\n81 1 33 400 12345 httpd\n"
    )

    assert parse(content).processes == (("33", "81", "1", "00:02:03", "httpd"),)


@pytest.mark.attack("A50")
def test_a_guest_cannot_write_what_it_likes_on_the_terminal() -> None:
    evil = "5 1 0 4 9 \x1b[2Jx\n6 1 0 4 9 " + "n" * 4000 + "\n-1 1 0 4 9 a\n7 1 0 4 9\n\x00\xff\n"

    shown = parse(evil.encode("latin-1")).processes

    assert shown == (("0", "5", "1", "00:00:00", "?[2Jx"),)
