"""Counters of ours as families of metrics of Prometheus's own library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from gradwire.server.metrics.histogram import Histogram

Labels = Sequence[str]


def counter(name: str, about: str, value: float) -> CounterMetricFamily:
    """``name``: without ``_total``, which is added to it."""
    return CounterMetricFamily(name, about, value=value)


def counters(name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> CounterMetricFamily:
    """One for each combination of the labels' values."""
    family = CounterMetricFamily(name, about, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def by(name: str, about: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """As `counters`, of one label."""
    return counters(name, about, [label], [([key], value) for key, value in list(values.items())])


def gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)


def gauges(name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> GaugeMetricFamily:
    """One for each combination of the labels' values."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def histograms(
    name: str, about: str, labels: Labels, values: Iterable[tuple[Labels, Histogram]]
) -> HistogramMetricFamily:
    """One for each combination of the labels' values; none where there are no labels."""
    family = HistogramMetricFamily(name, about, labels=labels)
    for key, histogram in values:
        counts = list(accumulate(histogram.counts.copy()))
        names = [*(f"{bound:.12g}" for bound in histogram.bounds), "+Inf"]
        family.add_metric(key, list(zip(names, counts, strict=True)), sum_value=histogram.total)
    return family
