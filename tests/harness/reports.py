"""A report with everything in it that formats must survive, for the tests of this folder."""

from __future__ import annotations

from tare.audit.finding import Evidence, Fix, Item, Level, Report, Result, Standing

HOSTILE = "</script><b>\x1b[31m\x00\x07\u202e&\"'\ud800 ]]> line\nbreak"


def report() -> Report:
    """Two checks of workloads, one of a Dockerfile, one that has no object, one without items."""
    fail = Item(
        level=Level.FAIL,
        subject=HOSTILE,
        seen=f"seen {HOSTILE}",
        evidence=(Evidence("where", HOSTILE),),
    )
    waived = Item(
        level=Level.WARN, subject="web", seen="waived", standing=Standing.WAIVED, note="ok"
    )
    known = Item(level=Level.WARN, subject="db", seen="known", standing=Standing.KNOWN)
    fine = Item(level=Level.PASS, subject="good", seen="fine")
    told = Item(level=Level.INFO, subject="web", seen="told 12")
    look = Item(level=Level.NOTE, subject="web", seen="look")
    line = Item(level=Level.WARN, subject="a b/Dockerfile", seen="add", line=7)
    absent = Item(level=Level.INFO, seen="no swarm", standing=Standing.INAPPLICABLE)
    fix = Fix("chmod", "/etc/tare", "0777", "0755")
    mode = Item(level=Level.WARN, subject="/etc/tare", seen="mode", fix=fix)
    return Report(
        benchmark="1.2.0",
        host="host",
        engine="0.1.0",
        start_ns=1_700_000_000_000_000_000,
        end_ns=1_700_000_001_500_000_000,
        results=(
            Result(check="file-config-mode", id="3.6", items=(mode,)),
            Result(check="workload-privileged", id="5.4", items=(fail, fine)),
            Result(check="workload-memory", id="5.10", items=(waived, known)),
            Result(check="workload-needed-ports", id="5.8", items=(told, look)),
            Result(check="swarm-managers", id="7.2", items=(absent,)),
            Result(check="dockerfile-add", id="T.D.AddInsteadOfCopy", items=(line,)),
            Result(check="workload-pids", id="5.28", items=()),
        ),
        remarks=("a remark",),
    )
