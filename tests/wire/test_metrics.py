"""The text that Prometheus reads: its grammar, whatever a container is called."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from tare.model.record import NetworkCount, PressureShare, Record, Sample
from tare.model.spec import ContainerSpec, ProcessSpec
from tare.model.state import State
from tare.wire import metrics

_LABEL = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
_LINE = re.compile(rf"tare_[a-z_]+(?:\{{{_LABEL}(?:,{_LABEL})*\}})? -?[0-9.e+-]+")
_COMMENT = re.compile(r"# (?:HELP|TYPE) tare_[a-z_]+ .+")


def record(name: str = "web", image: str = "i", state: State = State.RUNNING) -> Record:
    spec = ContainerSpec(image=image, image_id="x", process=ProcessSpec(args=("a",)))
    return Record(id="a" * 64, name=name, spec=spec, created_ns=1, state=state, started_ns=10**9)


SAMPLE = Sample(
    read_ns=1,
    cpu_ns=1_500_000_000,
    memory=100,
    cache=40,
    networks={"eth0": NetworkCount(rx_bytes=7, tx_bytes=8)},
    pressure={"cpu": PressureShare(some_us=2_000_000)},
)


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_line_is_of_the_grammar_whatever_the_names(name: str, image: str) -> None:
    found = record(name, image)

    text = metrics.render([found], [(found, SAMPLE)], {"tare_volumes": 3})

    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        assert (_COMMENT if line.startswith("#") else _LINE).fullmatch(line), line


def test_values_are_in_base_units_and_each_metric_stands_once() -> None:
    found = record()
    ended = record("gone", state=State.EXITED)

    text = metrics.render([found, ended], [(found, SAMPLE)], {})

    labels = '{id="aaaaaaaaaaaa",name="web",image="i"}'
    assert f"tare_container_cpu_seconds_total{labels} 1.5\n" in text
    assert 'resource="cpu"} 2.0\n' in text
    assert 'interface="eth0"} 7\n' in text
    assert 'tare_containers{state="exited"} 1\n' in text
    types = re.findall(r"# TYPE (\S+)", text)
    assert len(types) == len(set(types))


def test_five_hundred_containers_are_one_pass() -> None:
    many = [record(f"c{number}") for number in range(500)]
    began = time.process_time()

    text = metrics.render(many, [(one, SAMPLE) for one in many], {})

    assert text.count("tare_container_pids{") == 500
    assert time.process_time() - began < 5  # 30 ms here: generous, for it is a bound on a square
