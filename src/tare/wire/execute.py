"""``POST /containers/ID/exec`` and ``GET /exec/ID/json``. Pure."""

from __future__ import annotations

from tare.errors import InvalidError
from tare.model.record import ExecRecord
from tare.model.spec import ExecSpec, ProcessSpec
from tare.wire import values
from tare.wire.body import ExecBody, words
from tare.wire.detach import keys


def execute(body: ExecBody) -> ExecSpec:
    """The program asked for; what it leaves out is the container's own, filled in by the plan."""
    command = words(body.cmd)
    if not command:
        raise InvalidError("No exec command specified")
    for word in command:
        values.checked_text("command", word, limit=131_072)
    cwd = values.checked_text("working directory", body.working_dir or "", limit=4096)
    if cwd and not cwd.startswith("/"):
        raise InvalidError(
            f"the working directory '{cwd[:80]}' is invalid, it needs to be an absolute path"
        )
    if body.detach_keys:
        keys(body.detach_keys)
    return ExecSpec(
        process=ProcessSpec(
            args=command,
            env=values.environment(body.env),
            cwd=cwd,
            user=values.user(body.user or ""),
            tty=bool(body.tty),
            open_stdin=bool(body.attach_stdin),
            privileged=bool(body.privileged),
        ),
        attach_stdin=bool(body.attach_stdin),
        attach_stdout=bool(body.attach_stdout),
        attach_stderr=bool(body.attach_stderr),
        detach_keys=body.detach_keys or "",
    )


def inspect(record: ExecRecord) -> dict[str, object]:
    """``GET /exec/ID/json``."""
    process = record.spec.process
    return {
        "ID": record.id,
        "Running": record.running,
        "ExitCode": record.exit_code,
        "ProcessConfig": {
            "tty": process.tty,
            "entrypoint": process.args[0] if process.args else "",
            "arguments": list(process.args[1:]),
            "privileged": process.privileged,
            "user": process.user,
        },
        "OpenStdin": record.spec.attach_stdin,
        "OpenStderr": record.spec.attach_stderr,
        "OpenStdout": record.spec.attach_stdout,
        "CanRemove": record.exit_code is not None,
        "ContainerID": record.container,
        "DetachKeys": record.spec.detach_keys,
        "Pid": record.pid,
    }
