"""Section 5 of the CIS Docker Benchmark, and what tare adds on running workloads. Pure data."""

from __future__ import annotations

from functools import partial
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check, cis

_cis = partial(cis, Scope.WORKLOAD)

CHECKS: Final[tuple[Check, ...]] = (
    _cis(
        "5.1 5.2", "workload-apparmor",
        "Ensure that, if applicable, an AppArmor Profile is enabled",
        "A profile of the host's mandatory access control holds even where a process has become "
        "root and has kept a capability it should not have.",
        "Load a profile and name it: --security-opt apparmor=PROFILE; where the kernel has no "
        "AppArmor, nothing is to be done.",
    ),
    _cis(
        "5.2 5.3", "workload-selinux",
        "Ensure that, if applicable, SELinux security options are set",
        "A label of its own keeps a container from files of the host and of other containers, "
        "whatever their modes say.",
        "Run with --security-opt label=type:container_t on hosts whose SELinux enforces.",
        level=2,
    ),
    _cis(
        "5.3 5.4", "workload-capabilities",
        "Ensure Linux Kernel Capabilities are restricted within containers",
        "Each capability beyond the eleven that programs usually need opens a part of the kernel "
        "that was written for the host's administrator.",
        "Start from nothing: --cap-drop ALL --cap-add NAME for what the program needs.",
    ),
    _cis(
        "5.4 5.5", "workload-privileged",
        "Ensure that privileged containers are not used",
        "A privileged container has every capability, every device and no system call filter: its "
        "root is root of the host.",
        "Run without --privileged; give single devices (--device) and capabilities (--cap-add).",
    ),
    _cis(
        "5.5 5.6", "workload-sensitive-mounts",
        "Ensure sensitive host system directories are not mounted on containers",
        "Who can write the host's /etc, /usr, /boot or /dev decides what the host runs next.",
        "Mount the one file or directory that is needed, read-only (-v SOURCE:TARGET:ro), or use a "
        "volume.",
    ),
    _cis(
        "5.6 5.7", "workload-sshd",
        "Ensure sshd is not run within containers",
        "A second way in with keys and passwords of its own is one that nobody updates or audits.",
        "Take sshd out of the image; `tare exec` opens a shell when one is needed.",
    ),
    _cis(
        "5.7 5.8", "workload-privileged-ports",
        "Ensure privileged ports are not mapped within containers",
        "Ports below 1024 are those of the host's own services, which clients trust by number.",
        "Publish a port from 1024 on, or name the port that is meant with --allow-ports.",
    ),
    _cis(
        "5.8 5.9", "workload-needed-ports",
        "Ensure that only needed ports are open on the container",
        "A published port that the image does not declare, or that nothing listens on, is there by "
        "mistake and is the first thing a scan finds.",
        "Publish only what the image's EXPOSE names and clients need.",
        scored=False,
    ),
    _cis(
        "5.9 5.10", "workload-host-network",
        "Ensure the host's network namespace is not shared",
        "In the host's network a container reaches what listens on loopback only, sees all traffic "
        "of the host, and can take its ports.",
        "Run without --network host and publish single ports.",
    ),
    _cis(
        "5.10 5.11", "workload-memory",
        "Ensure that the memory usage for containers is limited",
        "Without a limit one container can take the memory of all others and of the host.",
        "Set --memory; `tare update --memory SIZE NAME` does it while it runs.",
    ),
    _cis(
        "5.11 5.12", "workload-cpu",
        "Ensure CPU priority is set appropriately on the container",
        "Without a share or a quota one busy container slows all others.",
        "Set --cpus or --cpu-shares; `tare update` does it while it runs.",
    ),
    _cis(
        "5.12 5.13", "workload-read-only",
        "Ensure that the container's root filesystem is mounted as read only",
        "What cannot be written cannot be changed by an intruder, and comes back the same at every "
        "start.",
        "Run with --read-only, and --tmpfs or volumes for what must be written.",
    ),
    _cis(
        "5.13 5.14", "workload-bound-address",
        "Ensure that incoming container traffic is bound to a specific host interface",
        "A port on all addresses is reachable from every network that the host is in, today's and "
        "tomorrow's.",
        "Name the address: -p 127.0.0.1:8080:80. tare's default is 127.0.0.1.",
    ),
    _cis(
        "5.14 5.15", "workload-restart",
        "Ensure that the 'on-failure' container restart policy is set to '5'",
        "A program that is started again for ever hides its failure, and a crash loop wears the "
        "host down.",
        "Run with --restart on-failure:5, or without a policy.",
    ),
    _cis(
        "5.15 5.16", "workload-host-pid",
        "Ensure the host's process namespace is not shared",
        "In the host's process namespace a container sees all processes with their arguments, and "
        "root in it can signal and trace them.",
        "Run without --pid host.",
    ),
    _cis(
        "5.16 5.17", "workload-host-ipc",
        "Ensure the host's IPC namespace is not shared",
        "Shared memory and semaphores of the host's programs can then be read and changed.",
        "Run without --ipc host; containers that belong together share with --ipc container:NAME.",
    ),
    _cis(
        "5.17 5.18", "workload-devices",
        "Ensure that host devices are not directly exposed to containers",
        "A disk's device is the disk, with all files and no permissions.",
        "Give no devices, or with the fewest rights: --device /dev/NAME:/dev/NAME:r.",
        scored=False,
    ),
    _cis(
        "5.18 5.19", "workload-ulimits",
        "Ensure that the default ulimit is overwritten at runtime if needed",
        "Limits on descriptors and core files bound what a program that went wrong can use up or "
        "spill.",
        "Set --ulimit NAME=SOFT:HARD where a program needs other limits than the engine's.",
        scored=False,
    ),
    _cis(
        "5.19 5.20", "workload-propagation",
        "Ensure mount propagation mode is not set to shared",
        "With shared propagation what a container mounts appears on the host.",
        "Leave the propagation of mounts at private, or use rslave.",
    ),
    _cis(
        "5.20 5.21", "workload-host-uts",
        "Ensure the host's UTS namespace is not shared",
        "Root in the container could then change the name of the host.",
        "Run without --uts host.",
    ),
    _cis(
        "5.21 5.22", "workload-seccomp",
        "Ensure the default seccomp profile is not Disabled",
        "The filter keeps several hundred rarely used system calls away from the program, and with "
        "them most of the kernel's holes.",
        "Run without --security-opt seccomp=unconfined; a profile of your own may allow more.",
    ),
    _cis(
        "5.22 5.23", "workload-exec-privileged",
        "Ensure that docker exec commands are not used with privileged option",
        "A privileged exec runs a program in the container with walls that the container was not "
        "given.",
        "Use `tare exec` without --privileged.",
        level=2,
    ),
    _cis(
        "5.23 5.24", "workload-exec-root",
        "Ensure that docker exec commands are not used with the user=root option",
        "Root in a container whose program is not root can change what that program was kept from.",
        "Use `tare exec` as the container's own user.",
        scored=False, level=2,
    ),
    _cis(
        "5.24 5.25", "workload-cgroup",
        "Ensure that cgroup usage is confirmed",
        "In a control group elsewhere the limits and the budget of the engine do not hold.",
        "Run without --cgroup-parent, or with one that was chosen on purpose.",
    ),
    _cis(
        "5.25 5.26", "workload-new-privileges",
        "Ensure that the container is restricted from acquiring additional privileges",
        "With the flag set, no setuid program and no file capability gives a process more than it "
        "has.",
        "Run without --security-opt no-new-privileges=false; it is on by default.",
    ),
    _cis(
        "5.26 5.27", "workload-health",
        "Ensure that container health is checked at runtime",
        "Without a check only the end of the process tells that a service has failed.",
        "Set --health-cmd, or HEALTHCHECK in the Dockerfile.",
    ),
    _cis(
        "5.27 5.28", "workload-latest-image",
        "Ensure that Docker commands always make use of the latest version of their image",
        "A container goes on with the image it was made from, also when its name has moved to one "
        "with corrections.",
        "Pull the image and make the container anew; a tag that never moves, or a digest, says "
        "which one is meant.",
        scored=False,
    ),
    _cis(
        "5.28 5.29", "workload-pids",
        "Ensure that the PIDs cgroup limit is used",
        "Without a limit a fork bomb in one container takes all process numbers of the host.",
        "Set --pids-limit; tare's default is 2048.",
    ),
    _cis(
        "5.29 5.30", "workload-default-bridge",
        "Ensure that Docker's default bridge 'docker0' is not used",
        "Strangers meet on the default network; containers that belong together have one of their "
        "own, where names resolve.",
        "Make a network (`tare network create NAME`) and run with --network NAME.",
        scored=False, level=2,
    ),
    _cis(
        "5.30 5.31", "workload-user-namespace",
        "Ensure that the host's user namespaces are not shared",
        "In the host's user namespace root in the container is root of the host, with only the "
        "other walls between them.",
        "Run without --userns host (and without --privileged, --network host, --pid host, which "
        "imply it).",
    ),
    _cis(
        "5.31 5.32", "workload-engine-socket",
        "Ensure that the Docker socket is not mounted inside any containers",
        "Who reaches the engine's socket can start a privileged container, and so has the host.",
        "Do not mount the socket of any engine, nor a directory that holds one.",
    ),
    _cis(
        "T.5.1", "workload-host-root",
        "Ensure that no process runs with the host's user id 0",
        "What the user inside is called does not matter; a process whose id on the host is 0 owns "
        "the host's files when it gets out.",
        "Run with a user namespace (the default), or with --user.",
        level=0,
    ),
    _cis(
        "T.5.2", "workload-masked-paths",
        "Ensure that the kernel's sensitive files stay hidden",
        "/proc/sysrq-trigger, /proc/sys, /sys/firmware and their like read out or steer the whole "
        "host, also from inside.",
        "Run without --security-opt systempaths=unconfined.",
        level=0,
    ),
    _cis(
        "T.5.3", "workload-pinned-image",
        "Ensure that containers name their image by digest or by a tag that is not latest",
        "What `latest` names changes from day to day; the same command then runs something else.",
        "Name a version or a digest: IMAGE:1.2 or IMAGE@sha256:...",
        scored=False, level=0, also="DL3007 DS-0001",
    ),
)  # fmt: skip
