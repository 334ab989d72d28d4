"""Metrics as values: carried, summed, kept and written out."""

from __future__ import annotations

import math

import msgspec
import prometheus_client as prometheus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from engine.core.stats import Histogram, duration_buckets
from engine.errors import ProtocolError
from engine.metrics import (
    MAX_BYTES,
    MAX_FAMILIES,
    Exemplar,
    Family,
    Sample,
    Sources,
    add_labels,
    collect,
    counter,
    exposition,
    fold,
    gauge,
    histogram,
    histogram_samples,
    merge,
    merge_workers,
    pack,
    pack_sources,
    unpack,
    unpack_sources,
)
from engine.metrictext import render, render_open


def values(families: list[Family]) -> dict[str, float]:
    """Samples as ``name{label=text,...}``."""
    return {
        sample.name + "{" + ",".join(f"{key}={text}" for key, text in sorted(sample.labels.items())) + "}": sample.value
        for family in families
        for sample in family.samples
    }


def hits(value: float, **labels: str) -> Family:
    return counter("app_hits", "hits", [(labels, value)])


# --- out of a registry -----------------------------------------------------------------------------------------------


def registry() -> prometheus.CollectorRegistry:
    made = prometheus.CollectorRegistry()
    prometheus.Counter("jobs", "jobs done", ["kind"], registry=made).labels("a").inc(3)
    prometheus.Gauge("depth", "queue depth", registry=made).set(2)
    prometheus.Histogram("size", "sizes", buckets=(1, 10), registry=made).observe(5)
    prometheus.Summary("load", "loads", registry=made).observe(0.5)
    prometheus.Info("build", "build", registry=made).info({"version": "1"})
    prometheus.Gauge("process_depth", "the user's own, whatever it begins with", registry=made).set(1)
    prometheus.ProcessCollector(registry=made)
    prometheus.PlatformCollector(registry=made)
    prometheus.GCCollector(registry=made)
    return made


def test_collect_gives_the_users_metrics_and_nothing_of_the_interpreter() -> None:
    families = collect(registry())
    assert [(family.name, family.kind) for family in families] == [
        ("jobs", "counter"),
        ("depth", "gauge"),
        ("size", "histogram"),
        ("load", "summary"),
        ("build", "info"),
        ("process_depth", "gauge"),
    ]
    found = values(families)
    assert found["jobs_total{kind=a}"] == 3
    assert found["size_bucket{le=10.0}"] == 1
    assert found["load_sum{}"] == 0.5
    assert not [name for name in found if "_created" in name]


def test_what_a_registry_gives_is_written_as_the_registry_would() -> None:
    text = render(collect(registry())).decode()
    parsed = {family.name: family for family in text_string_to_metric_families(text)}
    assert parsed["jobs"].type == "counter"
    assert parsed["jobs"].samples[0].value == 3
    assert parsed["size"].type == "histogram"
    assert {sample.labels.get("le") for sample in parsed["size"].samples} == {"1.0", "10.0", "+Inf", None}


# --- bytes -----------------------------------------------------------------------------------------------------------

names = st.from_regex(r"\A[a-zA-Z_:][a-zA-Z0-9_:]{0,20}\Z")
label_names = st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_]{0,20}\Z")
floats = st.floats(allow_nan=False)
samples = st.builds(Sample, names, st.dictionaries(label_names, st.text(max_size=20), max_size=3), floats)
kinds = st.sampled_from(["counter", "gauge", "histogram", "summary", "unknown", "info", "stateset"])
some_families = st.lists(
    st.builds(Family, names, kinds, st.text(max_size=50), st.lists(samples, max_size=5)), max_size=5
)


@given(some_families)
def test_families_come_back_as_they_were_packed(families: list[Family]) -> None:
    assert unpack(pack(families)) == families


@given(some_families)
def test_whatever_was_unpacked_can_be_written_out(families: list[Family]) -> None:
    render(merge([unpack(pack(families))]))


@given(st.binary(max_size=200))
def test_any_bytes_are_families_or_a_protocol_error(data: bytes) -> None:
    try:
        unpack(data)
        unpack_sources(data)
    except ProtocolError:
        pass  # the other permitted outcome


def test_no_bytes_are_no_families() -> None:
    assert unpack(b"") == []


@pytest.mark.parametrize(
    "families",
    [
        [["no spaces", "gauge", "", []]],
        [["x\n", "gauge", "", []]],
        [["x", "thermometer", "", []]],
        [["x", "gauge", "", [["x", {"a-b": "c"}, 1.0]]]],
        [["x", "gauge", "", [["x y", {}, 1.0]]]],
        [["x", "gauge", "", [["x", {}, "1"]]]],
        [["x", "gauge", ""]],
        [["x", "gauge", "", []]] * (MAX_FAMILIES + 1),
        {"x": 1},
        7,
    ],
)
def test_malformed_families_are_refused(families: object) -> None:
    with pytest.raises(ProtocolError):
        unpack(msgspec.msgpack.encode(families))


def test_oversize_families_are_refused() -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        unpack(bytes(MAX_BYTES + 1))


def test_sources_come_back() -> None:
    sources = Sources(b"b", [("f", b"1")], [("stage", 2, b"3")], b"r")
    assert unpack_sources(pack_sources(sources)) == sources


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_merge_sums_what_has_the_same_name_and_labels() -> None:
    merged = merge([[hits(1, code="200"), gauge("depth", "", 1)], [hits(2, code="200")], [hits(4, code="500")]])
    assert values(merged) == {"app_hits_total{code=200}": 3, "app_hits_total{code=500}": 4, "depth{}": 1}


def test_merge_does_not_care_for_the_order_of_labels() -> None:
    one, other = hits(1, a="x", b="y"), hits(2, b="y", a="x")
    assert values(merge([[one], [other]])) == {"app_hits_total{a=x,b=y}": 3}


def test_merge_keeps_the_first_of_two_kinds() -> None:
    merged = merge([[gauge("x", "", 1)], [Family("x", "counter", "", [Sample("x_total", {}, 9)])]])
    assert values(merged) == {"x{}": 1}


def test_add_labels_keeps_a_label_of_the_same_name_aside() -> None:
    labelled = add_labels([gauge("x", "", 1, {"stage": "mine", "other": "o"})], stage="theirs")
    assert labelled[0].samples[0].labels == {"exported_stage": "mine", "other": "o", "stage": "theirs"}


def test_workers_are_summed_and_their_gauges_stay_apart() -> None:
    mine = [hits(1, kind="a"), gauge("depth", "", 5)]
    theirs = [hits(2, kind="a"), gauge("depth", "", 7)]
    assert values(merge_workers([("encode", 1, mine), ("encode", 2, theirs)])) == {
        "app_hits_total{kind=a}": 3,
        "depth{stage=encode,worker=1}": 5,
        "depth{stage=encode,worker=2}": 7,
    }


def test_sums_never_go_back_over_a_restart() -> None:
    one = Histogram([1.0])
    one.observe(0.5)
    last = [hits(5), gauge("depth", "", 3), histogram("size", "", [({}, one)])]
    retired = fold([], last)
    assert "depth{}" not in values(retired)
    retired = fold(retired, last)
    total = values(merge([retired, [hits(1)]]))
    assert total["app_hits_total{}"] == 11
    assert total["size_count{}"] == 2
    assert total["size_bucket{le=1.0}"] == 2


@given(st.lists(st.integers(0, 1000), max_size=6))
def test_folding_one_after_another_is_merging_them_all(counts: list[int]) -> None:
    retired: list[Family] = []
    for count in counts:
        retired = fold(retired, [hits(count)])
    assert values(retired) == values(merge([[hits(count)] for count in counts]))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_sums_all_processes_and_takes_its_own_numbers_fresh() -> None:
    sources = Sources(
        broker=pack([gauge("engine_queue", "waiting", 4, {"stage": "encode"})]),
        frontends=[("me", pack([hits(1)])), ("other", pack([hits(10)]))],
        workers=[("encode", 1, pack([hits(100)])), ("encode", 2, pack([hits(1000)]))],
        retired=pack([hits(10_000)]),
    )
    page = exposition(sources, "me", [hits(3)], "engine").decode()
    assert "app_hits_total 11113" in page
    assert 'engine_queue{stage="encode"} 4' in page
    assert "engine_broker_up 1" in page
    assert "engine_unreadable_sources 0" in page
    assert page.count("# TYPE app_hits_total counter") == 1


def test_the_page_without_a_broker_is_this_process_own() -> None:
    page = exposition(None, "me", [hits(3)], "ns").decode()
    assert "app_hits_total 3" in page
    assert "ns_broker_up 0" in page


def test_an_unreadable_process_costs_only_its_own_numbers() -> None:
    sources = Sources(b"\xc1", [("a", b"\xc1"), ("b", pack([hits(1)]))], [("s", 1, b"\xc1")], b"")
    page = exposition(sources, "me", [hits(3)], "engine").decode()
    assert "app_hits_total 4" in page
    assert "engine_unreadable_sources 3" in page


def test_the_page_says_what_prometheus_own_writer_would_say() -> None:
    made = registry()
    families = collect(made)
    wanted = {
        (family.name, family.type, sample.name, *sorted(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(prometheus.generate_latest(made).decode())
        for sample in family.samples
        if any(family.name in (known.name, f"{known.name}_info") for known in families)
    }
    found = {
        (family.name, family.type, sample.name, *sorted(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(render(families).decode())
        for sample in family.samples
    }
    assert found == wanted


def test_a_gauge_histogram_has_its_sums_apart() -> None:
    samples = [Sample("g_bucket", {"le": "+Inf"}, 2), Sample("g_gcount", {}, 2), Sample("g_gsum", {}, 3.5)]
    lines = render([Family("g", "gaugehistogram", "g", samples)]).decode().splitlines()
    assert "# TYPE g histogram" in lines
    assert lines.index("g_gcount 2") == lines.index("# TYPE g_gcount gauge") + 1
    assert lines.index("g_gsum 3.5") == lines.index("# TYPE g_gsum gauge") + 1


def test_whole_numbers_are_printed_whole() -> None:
    size = Histogram([1.0, 8.0])
    size.observe(3)
    size.observe(3)
    odd = [Sample("odd", {"n": str(n)}, value) for n, value in enumerate((math.inf, -math.inf, math.nan, 2.0**60, 0.5))]
    families = [hits(1_234_567.0), gauge("depth", "", 0), histogram("size", "", [({}, size)])]
    text = render([*families, Family("odd", "unknown", "", odd)]).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "app_hits_total 1234567",
        "depth 0",
        'size_bucket{le="1.0"} 0',
        'size_bucket{le="8.0"} 2',
        'size_bucket{le="+Inf"} 2',
        "size_count 2",
        "size_sum 6.0",
        'odd{n="0"} +Inf',
        'odd{n="1"} -Inf',
        'odd{n="2"} NaN',
        f'odd{{n="3"}} {2.0**60!r}',
        'odd{n="4"} 0.5',
    ]


def test_label_texts_survive_the_text_format() -> None:
    awkward = gauge("awkward", "a\\b\nc", 1, {"a": 'quote " back \\ line \n end'})
    text = render([awkward]).decode()
    parsed = next(iter(text_string_to_metric_families(text)))
    assert parsed.samples[0].labels["a"] == 'quote " back \\ line \n end'


# --- the page as OpenMetrics ------------------------------------------------------------------------------------------


def one_of_each_kind() -> list[Family]:
    """Of two processes, of which the second adds to a series of the first."""
    mine, theirs = Histogram([0.1, 1.0]), Histogram([0.1, 1.0])
    mine.observe_one(0.05, ("request_id", 'a "quoted" one'))
    mine.observe_one(7.0, ("trace_id", "0af7651916cd43dd8448eb211c80319c"))
    theirs.observe(3.0)
    apart = [Sample("g_bucket", {"le": "+Inf"}, 2), Sample("g_gcount", {}, 2), Sample("g_gsum", {}, 3.5)]
    return merge(
        [
            [*collect(registry()), histogram("d", 'its "times"', [({"at": "x"}, mine), ({"at": "y"}, mine)])],
            [histogram("d", "", [({"at": "x"}, theirs)]), hits(2, kind="a"), gauge("depth_of", "", math.nan)],
            [
                Family("g", "gaugehistogram", "", apart),
                Family("u", "unknown", "", [Sample("u", {}, 0.5)]),
                Family("s", "stateset", "", [Sample("s", {"s": "on"}, 1), Sample("s", {"s": "off"}, 0)]),
            ],
        ]
    )


def test_openmetrics_says_what_their_own_parser_reads() -> None:
    families = one_of_each_kind()
    page = render_open(families).decode()
    assert page.endswith("\n# EOF\n")
    parsed = {family.name: family for family in open_families(page)}
    assert {name: family.type for name, family in parsed.items()} == {one.name: one.kind for one in families}
    wanted = {(s.name, *sorted(s.labels.items()), s.value) for f in families for s in f.samples if s.value == s.value}
    found = {(s.name, *sorted(s.labels.items()), s.value) for f in parsed.values() for s in f.samples}
    assert wanted <= found
    assert parsed["d"].documentation == 'its "times"'
    told = {
        (s.labels["at"], s.labels["le"]): (s.exemplar.labels, s.exemplar.value)
        for s in parsed["d"].samples
        if s.exemplar
    }
    assert told == {
        (at, le): one
        for at in ("x", "y")
        for le, one in (
            ("0.1", ({"request_id": 'a "quoted" one'}, 0.05)),
            ("+Inf", ({"trace_id": "0af7651916cd43dd8448eb211c80319c"}, 7.0)),
        )
    }


@given(some_families)
def test_whatever_was_unpacked_can_be_written_as_openmetrics(families: list[Family]) -> None:
    page = render_open(merge([unpack(pack(families))])).decode()
    names = [line.split()[2] for line in page.split("\n") if line.startswith("# TYPE")]
    assert len(set(names)) == len(names)
    assert page.endswith("# EOF\n")


def test_a_family_whose_names_clash_costs_only_itself() -> None:
    size = Histogram([1.0])
    page = render_open([histogram("size", "", [({}, size)]), gauge("size_count", "", 1), gauge("other", "", 1)])
    assert [family.name for family in open_families(page.decode())] == ["size", "other"]


def test_an_exemplar_that_says_too_much_is_left_out() -> None:
    size = Histogram([1.0])
    size.observe_one(0.5, ("request_id", "x" * 118))
    assert b" # {" in render_open([histogram("size", "", [({}, size)])])
    size.observe_one(0.5, ("request_id", "x" * 119))
    assert b" # {" not in render_open([histogram("size", "", [({}, size)])])


def test_exemplars_travel_and_the_users_own_do() -> None:
    made = prometheus.CollectorRegistry()
    prometheus.Counter("jobs", "jobs done", registry=made).inc(1, {"trace_id": "t"})
    (family,) = unpack(pack(add_labels(collect(made), stage="a")))
    exemplar = family.samples[0].exemplar
    assert exemplar is not None
    assert exemplar.at is not None
    assert exemplar == Exemplar({"trace_id": "t"}, 1.0, exemplar.at)
    assert b'jobs_total{stage="a"} 1 # {trace_id="t"} 1.0 ' in render_open([family])
    assert b'jobs_total{stage="a"} 1\n' in render([family])  # the classic format has none


# --- instruments -----------------------------------------------------------------------------------------------------


def test_a_histogram_counts_as_prometheus_does() -> None:
    ours, theirs = Histogram([0.1, 1.0]), prometheus.Histogram("x", "", buckets=(0.1, 1.0), registry=None)
    for value in (0.0, 0.05, 0.1, 0.5, 1.0, 1.5, 100.0):
        ours.observe(value)
        theirs.observe(value)
    expected = {
        (sample.name, tuple(sample.labels.items())): sample.value
        for metric in theirs.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
    assert {(s.name, tuple(s.labels.items())): s.value for s in histogram_samples(ours, "x", {})} == expected


@pytest.mark.parametrize(("timeout_s", "count", "last"), [(3.0, 13, 4.096), (0.001, 1, 0.001), (0.0015, 2, 0.002)])
def test_duration_buckets_double_from_a_millisecond_past_the_timeout(timeout_s: float, count: int, last: float) -> None:
    buckets = duration_buckets(timeout_s)
    assert len(buckets) == count
    assert buckets[0] == 0.001
    assert math.isclose(buckets[-1], last)
