"""Variables put in at the time of a step: which instructions take them, and what comes out."""

from __future__ import annotations

import pytest

from tare.build.dockerfile import (
    Add,
    BindMount,
    CacheMount,
    Copy,
    DockerfileError,
    Env,
    Expose,
    InlineFile,
    Instruction,
    Label,
    Mount,
    Pair,
    Run,
    SecretMount,
    Sharing,
    SshMount,
    Stopsignal,
    TmpfsMount,
    User,
    Volume,
    Workdir,
    expand,
    parse,
)

ENVIRONMENT = {"a": "1", "dir": "/d", "two": "x y", "port": "80", "ports": "81 82/udp"}


def one(text: str, *, escape: str = "") -> Instruction:
    head = f"# escape={escape}\n" if escape else ""
    (instruction,) = parse(f"{head}FROM a\n{text}\n".encode()).stages[0].instructions
    return instruction


def expanded(text: str) -> Instruction:
    return expand(one(text), ENVIRONMENT)


def test_pairs_have_both_sides_expanded_by_the_environment_before() -> None:
    env, label = expanded('ENV a=2 b=$a c="$two" $a=z'), expanded("LABEL x '$a'")

    assert isinstance(env, Env)
    assert isinstance(label, Label)
    assert env.pairs == (Pair("a", "2"), Pair("b", "1"), Pair("c", "x y"), Pair("1", "z"))
    assert label.pairs == (Pair("x", "$a", legacy=True),)


def test_copy_and_add_expand_paths_owner_mode_and_checksum_and_no_patterns() -> None:
    copy = expanded("COPY --chown=$a:$a --chmod=$a --exclude=$a $dir/x ${two} $dir/")
    add = expanded("ADD --checksum=sha256:$a $a $dir")

    assert isinstance(copy, Copy)
    assert isinstance(add, Add)
    assert (copy.sources, copy.destination) == (("/d/x", "x y"), "/d/")
    assert (copy.chown, copy.chmod, copy.exclude) == ("1:1", "1", ("$a",))
    assert (add.checksum, add.sources, add.destination) == ("sha256:1", ("1",), "/d")


def test_files_in_the_dockerfile_expand_variables_and_keep_quotes() -> None:
    copy = expanded("COPY <<one <<'two' /\n'$a' \"$a\" \\$a\none\n$a\ntwo")

    assert isinstance(copy, Copy)
    assert copy.files == (InlineFile("one", "'1' \"1\" $a\n"), InlineFile("two", "$a\n"))


def test_single_words_expand() -> None:
    workdir, user = expanded("WORKDIR $dir/${a}"), expanded("USER $a:'$a'")
    volume, signal = expanded('VOLUME ["$dir", "/v"]'), expanded("STOPSIGNAL SIG${kind:-USR1}")

    assert isinstance(workdir, Workdir)
    assert isinstance(user, User)
    assert isinstance(volume, Volume)
    assert isinstance(signal, Stopsignal)
    assert workdir.path == "/d/1"
    assert user.user == "1:$a"
    assert volume.paths == ("/d", "/v")
    assert signal.signal == "SIGUSR1"


def test_ports_are_written_out() -> None:
    found = expanded("EXPOSE 90-92/UDP $port $ports 127.0.0.1:7:8 80")

    assert isinstance(found, Expose)
    assert found.ports == (
        "80/tcp", "81/tcp", "82/udp", "8/tcp", "90/udp", "91/udp", "92/udp",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["RUN $a", 'CMD ["$a"]', "ENTRYPOINT $a", 'SHELL ["$a"]'])
def test_what_a_shell_reads_keeps_its_text(text: str) -> None:
    assert expanded(text) == one(text)


def test_the_escape_character_of_the_file_counts() -> None:
    found = expand(one("WORKDIR c:\\$a`$a", escape="`"), ENVIRONMENT)

    assert isinstance(found, Workdir)
    assert found.path == "c:\\1$a"


def test_lines_stay() -> None:
    assert expanded("WORKDIR $a").lines == one("WORKDIR $a").lines


@pytest.mark.parametrize(
    ("flag", "mount"),
    [
        ("type=bind,source=$dir,target=/t", BindMount(target="/t", source="/d")),
        ("target=.", BindMount(target=".")),
        ("from=i,src=/s,dst=/t,rw",
         BindMount(target="/t", source="/s", from_name="i", readonly=False)),
        ("target=/t,readonly=false", BindMount(target="/t", readonly=False)),
        ("type=cache,target=$dir/c/", CacheMount(target="/d/c/", cache_id="/d/c")),
        (
            "type=cache,id=i,destination=/c,sharing=locked,mode=0700,uid=1,gid=2,from=x,source=s,ro",
            CacheMount(target="/c", cache_id="i", sharing=Sharing.LOCKED, mode=0o700, uid=1, gid=2,
                       from_name="x", source="s", readonly=True),
        ),
        ("type=tmpfs,target=/t", TmpfsMount(target="/t")),
        ("type=tmpfs,target=/t,size=1.5m", TmpfsMount(target="/t", size=3 << 19)),
        ("type=secret,id=s", SecretMount(secret_id="s", target="/run/secrets/s")),
        ("type=secret,target=/x/s,required",
         SecretMount(secret_id="s", target="/x/s", required=True)),
        ("type=secret,id=s,env=S", SecretMount(secret_id="s", variable="S")),
        ("type=secret,id=s,env=", SecretMount(secret_id="s", variable="s")),
        ("type=secret,src=s,env=S,target=/s,mode=440,uid=1",
         SecretMount(secret_id="s", variable="S", target="/s", mode=0o440, uid=1)),
        ("type=ssh", SshMount()),
        ("type=ssh,id=k,target=/s,required=true,gid=5",
         SshMount(agent_id="k", target="/s", required=True, gid=5)),
        ('"type=cache","target=/a,b"', CacheMount(target="/a,b", cache_id="/a,b")),
        ("TYPE=Cache,Target=/x", CacheMount(target="/x", cache_id="/x")),
    ],
)  # fmt: skip
def test_a_mount_reads_as(flag: str, mount: Mount) -> None:
    run = expanded(f"RUN --mount={flag} x" if '"' not in flag else f"RUN --mount='{flag}' x")

    assert isinstance(run, Run)
    assert run.mounts == (mount,)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("type=nfs,target=/x", 'unsupported mount type "nfs"'),
        ("type=cache,target=/x,sharing=lock", 'unsupported sharing value "lock"'),
        ("targt=/x", "unexpected key 'targt' in 'targt=/x' (did you mean target?)"),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("target=/x,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("target=/x,mode=700", 'mode not allowed for "bind" type mounts'),
        ("target=/x,sharing=shared", "invalid cache sharing set for bind mount"),
        ("type=cache,target=/x,mode=9", "invalid value 9 for mode"),
        ("type=cache,target=/x,uid=-1", "invalid value -1 for uid"),
        ("type=cache,target=/x,ro=maybe", "invalid value for ro: maybe"),
        ("type=tmpfs,target=/x,size=lots", "invalid value for size: lots"),
        ("type=secret", "one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=ssh,source=a", "ssh does not support source"),
        ('target=/x",a', 'bare " in non-quoted field'),
        ('"target=/x', 'missing " in quoted field'),
        (",".join(["ro"] * 65), "more than 64 options"),
    ],
)
def test_a_mount_is_refused_with(flag: str, reason: str) -> None:
    quoted = f"--mount='{flag}'" if '"' in flag else f"--mount={flag}"

    with pytest.raises(DockerfileError) as caught:
        one(f"RUN {quoted} x")

    assert reason in caught.value.reason


def test_a_mount_with_a_variable_is_found_wrong_at_its_step() -> None:
    run = one("RUN --mount=type=$kind,target=/x y")

    with pytest.raises(DockerfileError, match="unsupported mount type"):
        expand(run, {"kind": "nfs"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("USER ${who:?is needed}", "who: is needed"),
        ("ENV x='a", "matching single-quote"),
        ("STOPSIGNAL SIGFOO", "invalid signal: SIGFOO"),
        ("STOPSIGNAL 65", "invalid signal: 65"),
        ("VOLUME $nothing", "VOLUME specified can not be an empty string"),
        ("EXPOSE http", "invalid containerPort: http"),
        ("EXPOSE 1/x", "invalid proto: x"),
        ("EXPOSE /tcp", "no port specified"),
        ("EXPOSE 65536", "invalid containerPort: 65536"),
        ("EXPOSE 9-8", "invalid containerPort: 9-8"),
        ("EXPOSE x:80:80", "invalid IP address: x"),
        ("EXPOSE" + " 0-65535" * 4, "more ports than there are"),
        ("EXPOSE 1-2:5-8", "invalid ranges specified"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_where_it_stands(text: str, reason: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        expanded(text)

    assert reason in caught.value.reason
    assert caught.value.lines.first == 2
