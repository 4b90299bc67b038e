"""tare's client and Docker's, side by side against one fake engine: same requests, same words."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest

from client.conftest import Docker, Said, Tare
from fakes.engine_http import ID, IMAGE, Answer, FakeEngine

_DEFAULTS = {
    "MemorySwappiness": -1,
    "NetworkMode": "default",
}


def _stripped(value: object, key: str = "") -> object:
    """Without what says nothing: nulls, zeros, empty values and Docker's own defaults."""
    if isinstance(value, dict):
        inner = {k: _stripped(v, k) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v not in (None, "", 0, False, [], {}, [0, 0])}
    if key in ("Env", "Binds"):
        return sorted(map(str, value)) if isinstance(value, list) else value  # a Go map's order
    if isinstance(value, list):
        return [_stripped(each) for each in value]
    if key in _DEFAULTS and value == _DEFAULTS[key]:
        return None
    return value


def _body(engine: FakeEngine) -> object:
    request = engine.of("POST", "/containers/create")[-1]
    body = request.json()
    host = body.get("HostConfig")
    if isinstance(host, dict):
        # Docker writes its default policy out.
        if host.get("RestartPolicy") == {"Name": "no", "MaximumRetryCount": 0}:
            del host["RestartPolicy"]
        if host.get("LogConfig") == {"Type": "", "Config": {}}:
            del host["LogConfig"]
    networks = body.get("NetworkingConfig")
    if isinstance(networks, dict) and not _stripped(networks.get("EndpointsConfig", {})):
        del body["NetworkingConfig"]
    return _stripped(body), request.query.get("name", "")


CREATES = """
create debian
create debian sh -c "echo hi" --rm
create -i debian
create -it debian sh
create -a stdout debian
create -a stdin -a stderr -i debian
create -m 1g --memory-swap 2g --memory-reservation 512m --memory-swappiness 10 debian
create --memory-swap -1 -m 64MiB debian
create --cpus 1.5 --cpu-shares 512 --cpuset-cpus 0-1 --cpuset-mems 0 debian
create --cpu-period 100000 --cpu-quota 50000 -c 2 debian
create --pids-limit 100 --oom-kill-disable --oom-score-adj 500 debian
create --pids-limit -1 debian
create --blkio-weight 300 --blkio-weight-device /dev/sda:500 debian
create --device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2mb debian
create --device-read-iops /dev/sda:100 --device-write-iops /dev/sda:200 debian
create --ulimit nofile=1024:2048 --ulimit core=0 debian
create --device /dev/null --device /dev/zero:/dev/nil --device /dev/null:r debian
create --device /dev/full:/dev/voll:rw --device-cgroup-rule "c 1:3 rwm" debian
create --device vendor.com/class=name debian
create -e A=b -e HOME -e NOT_SET_ANYWHERE -e EMPTY= debian
create --env-file ENVFILE -e Z=1 debian
create --label-file LABELFILE -l z=1 -l only debian
create --hostname h --domainname d -u 1000:1000 -w /tmp debian
create --entrypoint /bin/sh debian -c ls
create --entrypoint "" debian ls
create --entrypoint= debian ls
create -v /a:/b -v /c:/d:ro -v /anon -v name:/n debian
create -v ./rel:/b debian
create --tmpfs /run --tmpfs /tmp:rw,size=64m debian
create --mount type=bind,source=/a,target=/b,readonly debian
create --mount type=bind,src=/a,dst=/b,bind-propagation=rslave,ro=false debian
create --mount type=bind,src=./rel,dst=/b debian
create --mount "type=tmpfs,destination=/t,tmpfs-size=64m,tmpfs-mode=1770" debian
create --mount "type=volume,source=v,target=/v,volume-nocopy,volume-subpath=x" debian
create --mount "source=v,target=/v,volume-driver=local,volume-opt=o=b,volume-label=a" debian
create --mount '"type=bind","source=/a,b",target=/b' debian
create --mount type=bind,source=/a,target=/b,bind-recursive=disabled debian
create --mount type=bind,source=/a,target=/b,readonly,bind-recursive=writable debian
create --mount type=bind,src=/a,dst=/b,ro,bind-recursive=readonly,bind-propagation=rprivate debian
create --mount source=v,target=/v debian
create --cap-add NET_RAW --cap-drop ALL --privileged debian
create --security-opt no-new-privileges --security-opt seccomp=unconfined debian
create --security-opt seccomp=PROFILE debian
create --security-opt systempaths=unconfined debian
create --security-opt apparmor=unconfined --security-opt label=disable debian
create --read-only --init --shm-size 128m --group-add 10 --group-add audio debian
create --ipc host --pid host --uts host --userns host --cgroupns host debian
create --pid container:x --ipc container:y debian
create --network none debian
create --network host debian
create --net container:abc debian
create --sysctl net.core.somaxconn=256 debian
create --annotation k=v debian
create --log-driver local --log-opt max-size=1m --log-opt max-file=3 debian
create --restart always debian
create --restart on-failure:5 debian
create --restart unless-stopped debian
create --rm --stop-signal INT --stop-timeout 3 debian
create --stop-timeout 0 debian
create --health-cmd "curl x" --health-interval 5s --health-timeout 1m30s --health-retries 4 debian
create --health-cmd true --health-start-period 1500ms --health-start-interval 2s debian
create --no-healthcheck debian
create --add-host a:1.2.3.4 --add-host b=::1 --dns 1.1.1.1 --dns-search x --dns-opt ndots:2 debian
create -p 80 -p 8080:80 -p 127.0.0.1:53:53/udp --expose 443 -P debian
create -p 8000-8002:9000-9002 -p [::1]:80:81 --expose 10-12/udp debian
create --volumes-from x:ro --volume-driver local --cgroup-parent /p --runtime runc debian
create --storage-opt size=10G --link a:b --isolation default debian
create --name web debian
create --ip 10.0.0.2 --network n --network-alias al --mac-address 92:d0:c6:0a:29:33 debian
run -d debian sleep 1
run -dit debian sh
run -itd --name x -m=64m debian
""".strip().splitlines()


@pytest.mark.parametrize("line", CREATES)
def test_the_create_request_is_dockers(
    line: str, tare: Tare, docker: Docker, engine: FakeEngine, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "env").write_text("# comment\nA=1\n\n  B=two words\nHOME\nMISSING_ONE\nC='q'\n")
    (tmp_path / "labels").write_text("x=1\ny\n")
    (tmp_path / "profile").write_text('{ "defaultAction" : "SCMP_ACT_ALLOW" }\n')
    for name in ("ENVFILE", "LABELFILE", "PROFILE"):
        real = {"ENVFILE": "env", "LABELFILE": "labels", "PROFILE": "profile"}[name]
        line = line.replace(name, str(tmp_path / real))
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    engine.answers["POST /containers/create"] = Answer(201, {"Id": ID, "Warnings": []})
    engine.answers[f"POST /containers/{ID}/start"] = Answer(204)
    engine.answers[f"POST /containers/{ID}/wait"] = Answer(200, {"StatusCode": 0})

    ours = tare(*shlex.split(line))
    assert ours.code == 0, ours.err
    asked = _body(engine)
    theirs = docker(*shlex.split(line))

    assert theirs.code == 0, theirs.err
    assert asked == _body(engine)
    assert ours.out == theirs.out


_NOW = int(time.time())
CONTAINERS = [
    {
        "Id": ID, "Names": ["/web", "/other/web"], "Image": "debian:bookworm", "ImageID": IMAGE,
        "Command": "sh -c 'while true; do sleep 1; done'", "Created": _NOW - 7300,
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                  {"PrivatePort": 443, "Type": "tcp"}],
        "Labels": {"b": "2", "a": "1"}, "State": "running", "Status": "Up 2 hours",
        "HostConfig": {"NetworkMode": "none"}, "SizeRw": 12345, "SizeRootFs": 123456789,
        "NetworkSettings": {"Networks": {"none": {}}},
        "Mounts": [{"Type": "bind", "Source": "/a/very/long/path/name", "Destination": "/d"}],
    },
    {
        "Id": "b" * 64, "Names": ["/plain"], "Image": IMAGE, "ImageID": IMAGE, "Command": "true",
        "Created": _NOW - 40 * 86400, "Ports": [], "Labels": {}, "State": "exited",
        "Status": "Exited (0) 5 weeks ago", "HostConfig": {}, "NetworkSettings": {}, "Mounts": [],
    },
]  # fmt: skip
IMAGES = [
    {"Id": IMAGE, "RepoTags": ["debian:bookworm", "debian:12"], "RepoDigests": [],
     "Created": _NOW - 3 * 86400, "Size": 116_512_345, "SharedSize": -1, "Containers": -1,
     "Labels": {}, "ParentId": ""},
    {"Id": "sha256:" + "cd" * 32, "RepoTags": [], "RepoDigests": [], "Created": _NOW - 90,
     "Size": 999, "SharedSize": -1, "Containers": -1, "Labels": None, "ParentId": ""},
]  # fmt: skip
DETAILS = {
    "Id": ID, "Created": "2026-01-02T03:04:05.678Z", "Path": "sh", "Args": ["-c", "x"],
    "State": {"Status": "exited", "Running": False, "ExitCode": 3, "Pid": 0},
    "Name": "/web", "RestartCount": 0,
    "Config": {"Env": ["A=1", "B=2"], "Cmd": ["sh", "-c", "x"], "Tty": False, "OpenStdin": True,
               "Labels": {"a": "1", "z": "9"}, "Entrypoint": None, "Image": "debian"},
    "HostConfig": {"Memory": 67108864, "AutoRemove": False}, "Mounts": [],
    "NetworkSettings": {"Networks": {"none": {"IPAddress": ""}}},
}  # fmt: skip
HISTORY = [
    {"Id": IMAGE, "Created": _NOW - 500, "CreatedBy": "sh -c " + "x" * 60, "Tags": ["a:b"],
     "Size": 1234, "Comment": "made"},
    {"Id": "<missing>", "Created": _NOW - 5000, "CreatedBy": "base", "Tags": None, "Size": 0,
     "Comment": ""},
]  # fmt: skip

SHOWN = """
ps
ps -a
ps -q
ps -aq --no-trunc
ps --no-trunc
ps -s
ps --format json
ps --format "{{.ID}} {{.Names}} {{.Status}}"
ps --format "table {{.Names}}\\t{{.Image}}\\t{{.State}}"
ps --format "table {{.ID}}\\t{{.Size}}"
ps --format "{{.Names}}: {{.Label \\"a\\"}} {{.Labels}} {{.Mounts}} {{.Networks}} {{.LocalVolumes}}"
ps --format "{{json .Ports}} {{.CreatedAt}} {{.Command}}"
ps --format "{{upper .Names}} {{len .Names}} {{if eq .State \\"running\\"}}yes{{else}}no{{end}}"
ps -n 3
ps -l
images
images -a
images -q
images --no-trunc
images --digests
images --format "{{.Repository}}:{{.Tag}} {{.Size}} {{.ID}}"
images --format "table {{.Repository}}\\t{{.Tag}}"
image ls --format json
inspect web
inspect -f "{{.State.Status}} {{.State.ExitCode}} {{.Config.Cmd}}" web
inspect -f "{{json .Config.Labels}}" web
inspect -f "{{.Config.Labels}}" web
inspect -f "{{range .Config.Env}}[{{.}}]{{end}}" web
inspect -f "{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$e}}{{end}}" web
inspect -f "{{index .Config.Env 1}} {{len .Config.Env}}" web
inspect -f "{{with .Config.Image}}img={{.}}{{end}}" web
inspect -f "{{printf \\"%s-%d-%5.1f|%q\\" .Name 7 2.5 .Path}}" web
inspect -f "{{join .Config.Env \\",\\"}}" web
inspect -f "{{.HostConfig.Memory}} {{not .State.Running}}" web
inspect -f "{{index .Config.Labels \\"z\\"}}" web
inspect -f "{{ .Name -}} x {{- .Path }}" web
inspect -f "{{(index .Args 0) | printf \\"%s!\\"}}" web
inspect -f "{{split .Name \\"/\\"}} {{title .Path}} {{pad .Path 1 2}}|" web
inspect --type container web
history debian
history --no-trunc debian
history -q debian
history -H=false debian
diff web
rename web new
stop web
stop -t 3 -s INT web
kill web
kill -s USR1 web
restart web
pause web
unpause web
wait web
rm web
rm -fv web
rm nosuch
stop web nosuch
tag debian host:5000/x/y:z
rmi debian
top web
top web -o pid,cmd
update -m 1g --memory-swap -1 --cpus 2 --restart always web
container ls
container prune -f
image prune -af
events --until 1 --since 0
events --until 1 --since 0 --format json
events --until 1 --since 0 --format "{{.Type}} {{.Action}} {{.Actor.ID}}"
logs web
logs -t --tail 5 web
commit -m msg -a me -c "CMD x" web host:5000/repo:tag
port web
start web
exec web true
exec -e A=1 -w /tmp -u 1 web false
ps --filter name=web --filter status=exited
""".strip().splitlines()


def _canned(engine: FakeEngine) -> None:
    engine.answers.update({
        "GET /containers/json": Answer(200, CONTAINERS),
        "GET /images/json": Answer(200, IMAGES),
        "GET /containers/web/json": Answer(200, DETAILS),
        f"GET /containers/{ID}/json": Answer(200, DETAILS),
        "GET /images/debian/history": Answer(200, HISTORY),
        "GET /containers/web/changes": Answer(200, [
            {"Path": "/a", "Kind": 0}, {"Path": "/b", "Kind": 1}, {"Path": "/c", "Kind": 2}]),
        "DELETE /containers/web": Answer(204),
        "DELETE /images/debian": Answer(200, [{"Untagged": "debian:latest"}, {"Deleted": IMAGE}]),
        "POST /images/debian/tag": Answer(201),
        "GET /containers/web/top": Answer(200, {
            "Titles": ["PID", "USER", "COMMAND"], "Processes": [["1", "root", "sleep 1"]]}),
        "POST /containers/web/update": Answer(200, {"Warnings": []}),
        "POST /containers/web/wait": Answer(200, {"StatusCode": 7}),
        "POST /containers/prune": Answer(200, {"ContainersDeleted": ["a"], "SpaceReclaimed": 5000}),
        "POST /images/prune": Answer(200, {
            "ImagesDeleted": [{"Untagged": "x:y"}, {"Deleted": IMAGE}], "SpaceReclaimed": 5}),
        "GET /events": Answer(body=(
            b'{"status":"start","id":"abc","from":"debian","Type":"container","Action":"start",'
            b'"Actor":{"ID":"abc","Attributes":{"image":"debian","name":"x"}},"scope":"local",'
            b'"time":1700000000,"timeNano":1700000000123456789}\n')),
        "GET /containers/web/logs": Answer(
            body=b"\x01\0\0\0\0\0\0\x03hi\n\x02\0\0\0\0\0\0\x04err\n",
            headers={"Content-Type": "application/vnd.docker.multiplexed-stream"}),
        f"GET /containers/{ID}/logs": Answer(
            body=b"\x01\0\0\0\0\0\0\x03hi\n\x02\0\0\0\0\0\0\x04err\n"),
        "POST /commit": Answer(201, {"Id": IMAGE}),
        "POST /containers/web/exec": Answer(201, {"Id": "ex1"}),
        "POST /exec/ex1/start": Answer(stream=b"\x01\0\0\0\0\0\0\x03out"),
        "GET /exec/ex1/json": Answer(200, {"ExitCode": 4, "Running": False}),
        "DELETE /containers/nosuch": Answer(404, {"message": "No such container: nosuch"}),
        "POST /containers/nosuch/stop": Answer(404, {"message": "No such container: nosuch"}),
        "GET /info": Answer(200, {"OSType": "linux"}),
    })  # fmt: skip
    for verb in ("rename", "stop", "kill", "restart", "pause", "unpause", "start"):
        engine.answers[f"POST /containers/web/{verb}"] = Answer(204)


def _deeds(engine: FakeEngine) -> list[tuple[str, str, object, object]]:
    """What was asked that changes something, or asks for something by a query."""
    deeds = []
    for each in engine.asked:
        if each.path in ("/_ping", "/info") or each.path.endswith("web/json"):
            continue
        query = {k: v for k, v in each.query.items() if v not in ("", "0") and k != "ps_args"}
        body = _stripped(each.json()) if each.body.startswith(b"{") else None
        path = each.path.replace(ID, "web")
        deeds.append((each.method, path, query, body))
    engine.asked.clear()
    return sorted(deeds, key=str)  # Docker stops several at once


@pytest.mark.parametrize("line", SHOWN)
def test_words_requests_and_exit_code_are_dockers(
    line: str, tare: Tare, docker: Docker, engine: FakeEngine
) -> None:
    _canned(engine)
    words = shlex.split(line)

    ours, our_deeds = tare(*words), _deeds(engine)
    theirs, their_deeds = docker(*words), _deeds(engine)

    if words[-2:] == ["--format", "json"] and words[0] != "events":
        # Docker escapes < > & in these, and knows no order but the alphabet.
        ours, theirs = (
            Said(s.code, repr([json.loads(x) for x in s.out.splitlines()]), s.err)
            for s in (ours, theirs)
        )
    assert (ours.out, ours.code) == (theirs.out, theirs.code), ours.err + theirs.err
    assert bool(ours.err) == bool(theirs.err), ours.err + theirs.err
    assert our_deeds == their_deeds


WRONG = """
run
run --nosuch debian
run -m abc debian
run -m
run -e
run -e =x debian
run --cpus abc debian
run --detach=foo debian
run --health-interval 1 debian
run -v /a:/b:/c:/d debian
run -p abc debian
run --rm --restart always debian
run -d -a stdout debian
run --mount target= debian
run --mount type=bind,nokey=1 debian
run --ulimit nofile debian
run --security-opt nosuch debian
run --env-file /nonexistent debian
run --pid nosuch debian
run --memory-swappiness 200 debian
run --no-healthcheck --health-cmd x debian
run --pull sometimes debian
run --device-read-bps sda:1 debian
run --device a:b:c:d debian
run --add-host foo debian
create
create --nosuch
exec
exec web
exec --nosuch web true
ps --nosuch
ps foo
ps -f foo
ps -n abc
stop
stop -t abc web
rm
logs
logs --nosuch web
logs a b
info x
version x
image nosuch
nosuch
image
container
inspect
inspect --type nosuch web
cp a b
cp a:b c:d
cp a
cp "" a:/x
tag a
rename a
kill
commit
update web
history
load x
import
attach
start -a a b
""".strip().splitlines()


@pytest.mark.parametrize("line", WRONG)
def test_a_usage_error_exits_as_dockers(
    line: str, tare: Tare, docker: Docker, engine: FakeEngine
) -> None:
    ours: Said = tare(*shlex.split(line))

    theirs = docker(*shlex.split(line))

    assert ours.code == theirs.code, (ours.err, theirs.err)
    assert bool(ours.out) == bool(theirs.out)
    assert not engine.of("POST", "/containers/create")
