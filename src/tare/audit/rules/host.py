"""Section 1 of the CIS Docker Benchmark, and tare's hardening facts (T.1). Pure data."""

from __future__ import annotations

from functools import partial
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check, cis

_cis = partial(cis, Scope.HOST)
_own = partial(cis, Scope.HOST, level=0)

_WATCH: Final = "Add a watch and load it: echo '-w PATH -p rwxa -k tare' " \
    ">>/etc/audit/rules.d/tare.rules && augenrules --load"  # fmt: skip
_AUDITED: Final = "Without a record nobody can tell afterwards who changed it, or when."

CHECKS: Final[tuple[Check, ...]] = (
    _cis(
        "1.1.1 1.2.1", "host-hardened",
        "Ensure the container host has been Hardened",
        "Containers share the host's kernel: a hole in the host is a hole in each of them.",
        "Work through the findings T.1, and through a benchmark of your distribution.",
        scored=False,
    ),
    _cis(
        "1.1.2 1.2.2", "host-engine-current",
        "Ensure Docker is up to date",
        "Corrections of security holes reach only those who install them.",
        "Update tare, the kernel, QEMU and Python as your distribution offers it.",
        scored=False,
    ),
    _cis(
        "1.2.1 1.1.1", "host-partition",
        "Ensure a separate partition for containers has been created",
        "Images and containers that fill the root file system stop the whole host.",
        "Mount a file system of its own on the engine's state directory, or set a bound: "
        "tare budget set --disk SIZE.",
    ),
    _cis(
        "1.2.2 1.1.2", "host-trusted-users",
        "Ensure only trusted users are allowed to control Docker daemon",
        "Who may use the engine's socket can become root: a container may mount the host.",
        "Take users out of the socket's group (gpasswd -d USER GROUP); name those you trust with "
        "--trusted-users. Give others an engine of their own (rootless).",
    ),
    _cis(
        "1.2.3 1.1.3", "host-audit-daemon",
        "Ensure auditing is configured for the Docker daemon",
        _AUDITED, _WATCH,
    ),
    _cis(
        "- 1.1.4", "host-audit-run",
        "Ensure auditing is configured for Docker files and directories - /run/containerd",
        _AUDITED, _WATCH,
    ),
    _cis(
        "1.2.4 1.1.5", "host-audit-state",
        "Ensure auditing is configured for Docker files and directories - /var/lib/docker",
        _AUDITED, _WATCH,
    ),
    _cis(
        "1.2.5 1.1.6", "host-audit-config",
        "Ensure auditing is configured for Docker files and directories - /etc/docker",
        _AUDITED, _WATCH,
    ),
    _cis(
        "1.2.6 1.1.7", "host-audit-service",
        "Ensure auditing is configured for Docker files and directories - docker.service",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "- 1.1.8", "host-audit-engine-socket",
        "Ensure auditing is configured for Docker files and directories - containerd.sock",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "1.2.7 1.1.9", "host-audit-socket",
        "Ensure auditing is configured for Docker files and directories - docker.socket",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "1.2.8 1.1.10", "host-audit-default",
        "Ensure auditing is configured for Docker files and directories - /etc/default/docker",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "1.2.10 1.1.11", "host-audit-config-file",
        "Ensure auditing is configured for Docker files and directories - "
        "/etc/docker/daemon.json",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "- 1.1.12", "host-audit-containerd-config",
        "Ensure auditing is configured for Docker files and directories - "
        "/etc/containerd/config.toml",
        _AUDITED, "Nothing: tare has no containerd.", level=2,
    ),
    _cis(
        "1.2.9 1.1.13", "host-audit-sysconfig",
        "Ensure auditing is configured for Docker files and directories - /etc/sysconfig/docker",
        _AUDITED, _WATCH, level=2,
    ),
    _cis(
        "1.2.11 1.1.14", "host-audit-interpreter",
        "Ensure auditing is configured for Docker files and directories - /usr/bin/containerd",
        "tare has no containerd; what runs it is the Python interpreter. " + _AUDITED,
        _WATCH, level=2,
    ),
    _cis(
        "- 1.1.15", "host-audit-shim",
        "Ensure auditing is configured for Docker files and directories - containerd-shim",
        _AUDITED, "Nothing: tare has no shim.", level=2,
    ),
    _cis(
        "- 1.1.16", "host-audit-shim-v1",
        "Ensure auditing is configured for Docker files and directories - "
        "containerd-shim-runc-v1",
        _AUDITED, "Nothing: tare has no shim.", level=2,
    ),
    _cis(
        "- 1.1.17", "host-audit-shim-v2",
        "Ensure auditing is configured for Docker files and directories - "
        "containerd-shim-runc-v2",
        _AUDITED, "Nothing: tare has no shim.", level=2,
    ),
    _cis(
        "1.2.12 1.1.18", "host-audit-runtime",
        "Ensure auditing is configured for Docker files and directories - /usr/sbin/runc",
        "tare has no runc; what starts machines is QEMU. " + _AUDITED,
        _WATCH, level=2,
    ),
    _own(
        "T.1.1", "host-kernel-addresses",
        "Ensure that the kernel hides its addresses and its log",
        "Addresses of the kernel are what an exploit needs first.",
        "sysctl kernel.kptr_restrict=1 kernel.dmesg_restrict=1 kernel.perf_event_paranoid=2, and "
        "in /etc/sysctl.d for the next boot.",
    ),
    _own(
        "T.1.2", "host-bpf",
        "Ensure that unprivileged users cannot load BPF programs",
        "The verifier of BPF has been the way to root several times.",
        "sysctl kernel.unprivileged_bpf_disabled=1 net.core.bpf_jit_harden=1",
    ),
    _own(
        "T.1.3", "host-links",
        "Ensure that links and FIFOs in shared directories are protected",
        "A link laid in /tmp makes a program of root write where its owner wants.",
        "sysctl fs.protected_symlinks=1 fs.protected_hardlinks=1 fs.protected_fifos=1 "
        "fs.protected_regular=1",
    ),
    _own(
        "T.1.4", "host-memory",
        "Ensure that addresses are random and low memory cannot be mapped",
        "Exploits of memory errors need to know where things are.",
        "sysctl kernel.randomize_va_space=2 vm.mmap_min_addr=65536 "
        "vm.unprivileged_userfaultfd=0",
    ),
    _own(
        "T.1.5", "host-ptrace",
        "Ensure that processes cannot trace others of their user",
        "One program that was taken over reads the secrets of all others of that user.",
        "sysctl kernel.yama.ptrace_scope=1",
        scored=False,
    ),
    _own(
        "T.1.6", "host-kexec",
        "Ensure that the running kernel cannot be replaced",
        "With kexec root of the host (or who became it) boots a kernel without any walls.",
        "sysctl kernel.kexec_load_disabled=1 kernel.sysrq=0",
        scored=False,
    ),
    _own(
        "T.1.7", "host-io-uring",
        "Ensure that io_uring is limited to those who need it",
        "io_uring has had more holes than any other system call, and containers of tare do not "
        "get it anyway.",
        "sysctl kernel.io_uring_disabled=1",
        scored=False,
    ),
    _own(
        "T.1.8", "host-network-stack",
        "Ensure that the host's network refuses redirects, source routes and spoofed addresses",
        "Who shares a network with the host could otherwise bend its routes.",
        "sysctl net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.all.accept_source_route=0 "
        "net.ipv4.conf.all.rp_filter=2 net.ipv4.tcp_syncookies=1 "
        "net.ipv4.icmp_echo_ignore_broadcasts=1",
    ),
    _own(
        "T.1.9", "host-cpu",
        "Ensure that the processor's known holes are mitigated",
        "Through them one container reads the memory of another.",
        "Boot without mitigations=off, and install the processor's microcode.",
    ),
    _own(
        "T.1.10", "host-mount-options",
        "Ensure that directories that everybody may write are mounted without setuid and devices",
        "A setuid program or a device that is laid there gives its owner's rights away.",
        "Mount /tmp, /var/tmp and /dev/shm with nosuid,nodev (see mount(8)).",
        scored=False,
    ),
    _own(
        "T.1.11", "host-file-modes",
        "Ensure that the files of accounts and of the boot belong to root",
        "Who can write them is root at the next login or boot; who can read shadow guesses "
        "passwords.",
        "chmod and chown them; `tare audit host --fix` shows how.",
    ),
    _own(
        "T.1.12", "host-accounts",
        "Ensure that root is the only account with user id 0, and that none is without a password",
        "An account without a password is open to everybody who reaches a login.",
        "Lock it: passwd -l USER; give other accounts ids of their own.",
    ),
    _own(
        "T.1.13", "host-time",
        "Ensure that the host's clock is synchronised",
        "Certificates, signatures and logs are judged by the clock.",
        "Install and start chrony or systemd-timesyncd.",
    ),
    _own(
        "T.1.14", "host-security-modules",
        "Ensure that a security module confines programs",
        "AppArmor or SELinux holds where a process has become root.",
        "Boot with apparmor=1 security=apparmor, or use a distribution with SELinux.",
        scored=False,
    ),
    _own(
        "T.1.15", "host-updates",
        "Ensure that security updates are installed, and that no restart waits",
        "A correction that waits for a restart does not help.",
        "apt install unattended-upgrades; restart when /run/reboot-required is there.",
        scored=False,
    ),
    _own(
        "T.1.16", "host-core-dumps",
        "Ensure that core dumps of set-id programs are not written",
        "The memory of a program that had root's rights would lie in a file.",
        "sysctl fs.suid_dumpable=0",
    ),
    _own(
        "T.1.17", "host-modules",
        "Ensure that rarely used protocols of the kernel are not loaded",
        "Holes in protocols that nobody uses are found by those who look for holes.",
        "Write `install NAME /bin/false` for each into a file in /etc/modprobe.d.",
        scored=False,
    ),
)  # fmt: skip
