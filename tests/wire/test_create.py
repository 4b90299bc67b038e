"""Create bodies to specifications: defaults merged as Docker does, nonsense refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import InvalidError, TareError, UnsupportedError
from tare.model.oci import ImageConfig
from tare.model.spec import ContainerSpec, HealthCheck, Mount, MountKind, SecurityProfile
from tare.wire import body, container, create
from tare.wire.body import read

_IMAGE = ImageConfig(
    architecture="amd64",
    os="linux",
    entrypoint=("/entry",),
    cmd=("serve",),
    env=("PATH=/bin", "LANG=C"),
    user="app",
    cwd="/srv",
    labels={"a": "image", "b": "image"},
    volumes=("/data",),
    exposed_ports=("80/tcp",),
    stop_signal="SIGQUIT",
    health=HealthCheck(test=("CMD", "check"), interval_ns=10**9),
)
_ID = "sha256:" + "0" * 64


def made(given_: object, image: ImageConfig = _IMAGE) -> ContainerSpec:
    return create.create(read(body.CREATE, msgspec.json.encode(given_)), _ID, image)[0]


def host(**given_: object) -> ContainerSpec:
    return made({"Image": "x", "HostConfig": given_})


def refused(given_: object, sentence: str | None = None) -> None:
    with pytest.raises(InvalidError, match=sentence):
        made(given_)


def test_nothing_asked_is_the_image_itself() -> None:
    spec = made({"Image": "x", "HostConfig": {}})

    assert spec.process.args == ("/entry", "serve")
    assert spec.process.env == ("PATH=/bin", "LANG=C")
    assert (spec.process.user, spec.process.cwd) == ("app", "/srv")
    assert spec.labels == {"a": "image", "b": "image"}
    assert spec.volumes == ("/data",)
    assert spec.stop_signal == "SIGQUIT"
    assert spec.health == _IMAGE.health
    assert spec.resources.memory is None


def test_null_is_not_given() -> None:
    nulls = dict.fromkeys(("Env", "Cmd", "Entrypoint", "Labels", "Volumes", "HostConfig"))

    assert made({"Image": "x", **nulls}) == made({"Image": "x"})


def test_unknown_fields_are_ignored() -> None:
    assert made({"Image": "x", "Odd": 1, "HostConfig": {"Odder": []}}) == made({"Image": "x"})


def test_own_command_keeps_the_images_entrypoint() -> None:
    assert made({"Cmd": ["other"]}).process.args == ("/entry", "other")


def test_own_entrypoint_drops_the_images_command() -> None:
    spec = made({"Entrypoint": "/mine"})

    assert (spec.process.args, spec.command) == (("/mine",), None)


def test_empty_entrypoint_means_none() -> None:
    assert made({"Entrypoint": [""], "Cmd": ["ls"]}).process.args == ("ls",)


def test_no_command_at_all_is_refused() -> None:
    with pytest.raises(InvalidError, match="no command specified"):
        made({"Image": "x"}, ImageConfig(architecture="amd64", os="linux"))


def test_environment_is_merged_by_name() -> None:
    spec = made({"Env": ["LANG=de", "EMPTY=", "PATH"]})

    assert spec.process.env == ("LANG=de", "EMPTY=")


def test_labels_are_united() -> None:
    assert made({"Labels": {"b": "mine"}}).labels == {"a": "image", "b": "mine"}


def test_health_check_without_a_test_changes_the_images_times() -> None:
    health = made({"Healthcheck": {"Retries": 7}}).health

    assert health is not None
    assert (health.test, health.interval_ns, health.retries) == (("CMD", "check"), 10**9, 7)


def test_limits_are_numbers() -> None:
    limits = host(Memory=64 << 20, NanoCpus=10**9, PidsLimit=-1, MemorySwap=-1).resources

    assert (limits.memory, limits.nano_cpus) == (64 << 20, 10**9)
    assert (limits.pids, limits.memory_swap) == (-1, -1)


def test_a_pids_limit_of_0_is_what_clients_send_for_none() -> None:
    assert host(PidsLimit=0).resources.pids is None


def test_docker_clients_systempaths_are_unconfined_paths() -> None:
    assert host(MaskedPaths=[], ReadonlyPaths=[]).security.unconfined_paths


def test_hardened_profile_has_a_read_only_root() -> None:
    option = ["tare.profile=hardened"]

    assert host(SecurityOpt=option, ReadonlyRootfs=False).read_only
    assert not host(SecurityOpt=[*option, "tare.read-only=false"]).read_only
    assert host(SecurityOpt=option).security.profile is SecurityProfile.HARDENED


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no-new-privileges", True),
        ("no-new-privileges:true", True),
        ("no-new-privileges=false", False),
    ],
)
def test_no_new_privileges_forms(text: str, wanted: bool) -> None:
    assert host(SecurityOpt=[text]).security.no_new_privileges is wanted


def test_absent_security_module_is_a_warning() -> None:
    asked = read(body.CREATE, b'{"HostConfig":{"SecurityOpt":["label=type:x","apparmor=p"]}}')

    warnings = create.create(asked, _ID, _IMAGE)[1]

    assert len(warnings) == 2


@pytest.mark.attack("A10")
def test_capability_names_are_normalised_or_refused() -> None:
    spec = host(CapAdd=["cap_net_admin", "SYS_TIME"], CapDrop=["all"])

    assert spec.security.cap_add == ("NET_ADMIN", "SYS_TIME")
    assert spec.security.cap_drop == ("ALL",)
    refused({"HostConfig": {"CapAdd": ["NET_EVERYTHING"]}}, "capability")


@pytest.mark.attack("A11")
@pytest.mark.parametrize(
    "user",
    [
        "4294967295", "4294967296", "-1", "99999999999", " 1000", "1000 ", "٣", "²", "a\nb",
        "a\0b", "a:b:c", ":", "1000:-5", "a/b", "+1", "1\u20281",
    ],
)  # fmt: skip
def test_user_that_a_lax_parser_would_take_for_another_is_refused(user: str) -> None:
    refused({"User": user}, "invalid user")


@pytest.mark.attack("A11")
@pytest.mark.parametrize("user", ["0", "1000:0", "www-data", "4294967294", "0x0", "app:staff"])
def test_user_by_name_or_id_is_kept(user: str) -> None:
    assert made({"User": user}).process.user == user


@pytest.mark.attack("A35")
@pytest.mark.parametrize(
    "given_",
    [
        {"StopSignal": "99"},
        {"StopSignal": "SIGNONE"},
        {"StopSignal": "٩"},
        {"Healthcheck": {"Interval": -1}},
        {"Healthcheck": {"Interval": 999}},
        {"Healthcheck": {"Test": ["SH", "x"]}},
        {"Hostname": "a\nb"},
        {"Hostname": "x" * 70},
        {"ExposedPorts": {"x/../": {}}},
        {"ExposedPorts": {"70000": {}}},
        {"Cmd": ["a\0b"]},
        {"Env": ["A=\0"]},
        {"Env": ["=x"]},
        {"WorkingDir": "relative"},
        {"Volumes": {"/../..": {}}},
        {"Volumes": {"rel": {}}},
        {"HostConfig": {"Binds": ["/a:/b:rw,ro"]}},
        {"HostConfig": {"Memory": 1}},
        {"HostConfig": {"Memory": -5}},
        {"HostConfig": {"MemorySwap": 64 << 20}},
        {"HostConfig": {"Memory": 64 << 20, "MemorySwap": 32 << 20}},
        {"HostConfig": {"NanoCpus": 10**15}},
        {"HostConfig": {"NanoCpus": 10**9, "CpuQuota": 5000}},
        {"HostConfig": {"CpuPeriod": 5}},
        {"HostConfig": {"CpusetCpus": "0-"}},
        {"HostConfig": {"Memory": "64m"}},
        {"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": 4}]}},
        {"HostConfig": {"Ulimits": [{"Name": "odd", "Soft": 1, "Hard": 1}]}},
        {"HostConfig": {"Devices": [{"PathOnHost": "/dev/fuse", "CgroupPermissions": "x"}]}},
        {"HostConfig": {"DeviceCgroupRules": ["c *:* rwx"]}},
        {"HostConfig": {"RestartPolicy": {"Name": "sometimes"}}},
        {"HostConfig": {"RestartPolicy": {"Name": "always"}, "AutoRemove": True}},
        {"HostConfig": {"LogConfig": {"Type": "syslog"}}},
        {"HostConfig": {"LogConfig": {"Config": {"odd": "1"}}}},
        {"HostConfig": {"SecurityOpt": ["seccomp=/etc/passwd"]}},
        {"HostConfig": {"SecurityOpt": ["odd=1"]}},
        {"HostConfig": {"IpcMode": "container:"}},
        {"HostConfig": {"UsernsMode": "auto:size=x"}},
        {"HostConfig": {"OomScoreAdj": 2000}},
        {"HostConfig": {"Sysctls": {"a b": "1"}}},
        {"HostConfig": {"Dns": ["dns.example"]}},
        {"HostConfig": {"ExtraHosts": ["a"]}},
        {"HostConfig": {"ShmSize": -1}},
        {"HostConfig": {"Runtime": "kata"}},
    ],
    ids=str,
)
def test_value_that_makes_no_sense_is_refused(given_: dict[str, object]) -> None:
    refused({"Image": "x", **given_})


def test_a_layers_size_is_read_as_other_sizes_are() -> None:
    assert host(StorageOpt={"size": "1.5g"}).storage_size == 3 << 29
    assert host(StorageOpt={}).storage_size == 0


@pytest.mark.parametrize(
    "given_",
    [
        {"StorageOpt": {"fs": "xfs"}},
        {"DeviceRequests": [{"Driver": "nvidia"}]},
    ],
    ids=str,
)
def test_what_is_not_there_yet_is_unsupported(given_: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError):
        host(**given_)


def test_anonymous_volumes_join_those_of_the_image() -> None:
    spec = host(Binds=["/cache", "/host:/data"], VolumesFrom=["web:ro"])

    assert spec.volumes == ("/data",)  # of the image; whether it is taken the engine sees
    assert spec.volumes_from == ("web:ro",)
    assert spec.mounts == (
        Mount(kind=MountKind.VOLUME, target="/cache", create_source=True, anonymous=True),
        Mount(kind=MountKind.BIND, source="/host", target="/data", create_source=True),
    )


@pytest.mark.parametrize("text", ["", ":ro", "../x", "a:bogus", "a b"])
def test_volumes_from_that_names_no_container_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="volumes-from"):
        host(VolumesFrom=[text])


@pytest.mark.parametrize("name", ["/web", "a.b-c_1", "", "0a"])
def test_good_container_name(name: str) -> None:
    assert create.container_name(name) == name.removeprefix("/")


@pytest.mark.parametrize("name", ["a", "-a", "a b", "a/b", "ä1", "a\n", "x" * 300, "//a"])
def test_bad_container_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        create.container_name(name)


def test_host_config_read_back_gives_the_same_specification() -> None:
    asked = {
        "Image": "x",
        "Cmd": ["a", "b c"],
        "Tty": True,
        "Healthcheck": {"Test": ["CMD-SHELL", "true"]},
        "HostConfig": {
            "Memory": 64 << 20,
            "MemorySwap": 128 << 20,
            "NanoCpus": 5 * 10**8,
            "PidsLimit": 50,
            "Binds": ["/a:/b:ro,rshared"],
            "Mounts": [{"Type": "bind", "Source": "/c", "Target": "/d"}],
            "Tmpfs": {"/run": "size=1048576,mode=755"},
            "CapAdd": ["NET_ADMIN"],
            "SecurityOpt": ["no-new-privileges"],
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
            "BlkioDeviceReadBps": [{"Path": "/dev/vda", "Rate": 5}],
            "LogConfig": {"Type": "local", "Config": {"max-size": "1m"}},
            "Devices": [{"PathOnHost": "/dev/fuse"}],
            "Init": True,
            "ShmSize": 1 << 20,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "NetworkMode": "bridge",
            "NetworkRate": 1 << 20,
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
            "PublishAllPorts": True,
            "Sysctls": {"net.core.somaxconn": "1"},
        },
    }
    spec = made(asked)

    again = made({**asked, "HostConfig": container.host_config(spec)})

    assert again == spec


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
_FIELDS = sorted(field.encode_name for field in msgspec.structs.fields(body.CreateBody))
_HOST_FIELDS = sorted(field.encode_name for field in msgspec.structs.fields(body.HostConfig))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4),
    st.dictionaries(st.sampled_from(_HOST_FIELDS), _JSON, max_size=4),
)
def test_any_body_is_a_specification_or_a_tare_error(
    top: dict[str, object], below: dict[str, object]
) -> None:
    try:
        made({**top, "HostConfig": below})
    except TareError as error:
        assert error.http_status in (400, 501)


@pytest.mark.parametrize("isolation", ["hyperv", "process"])
def test_another_isolation_than_there_is_is_refused_and_never_weakened(isolation: str) -> None:
    with pytest.raises(InvalidError, match="invalid isolation"):
        host(Isolation=isolation)


@pytest.mark.parametrize(
    ("wish", "isolation"),
    [
        ({}, "container"),
        ({"Isolation": "container", "Runtime": "runc"}, "container"),
        ({"Isolation": "vm"}, "vm"),
        ({"Runtime": "tare-vm"}, "vm"),
    ],
)
def test_a_machine_is_asked_for_by_isolation_or_runtime(
    wish: dict[str, object], isolation: str
) -> None:
    assert host(**wish).isolation == isolation


def test_a_runtime_that_contradicts_the_isolation_is_refused() -> None:
    with pytest.raises(InvalidError, match="contradicts"):
        host(Isolation="container", Runtime="tare-vm")
