"""Figures for Prometheus. Each application has its own registry, so that several may live in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1, 2, 4, 8, 16, 32, 64, 128)
_FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 4, 8)


@dataclass(frozen=True)
class Moment:
    """A figure of the moment.

    Attributes:
        value: one, or several by what `label` names.
    """

    name: str
    meaning: str
    value: float | Mapping[str, float]
    label: str = ""


Gauges = Callable[[], Iterable[Moment]]


class Metrics:
    """What the server has done and is doing.

    Args:
        gauges: figures of the moment, asked for at every scrape.
    """

    def __init__(self, gauges: Gauges):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_Moment(gauges))
        self._requests = Counter(
            "chatterbox_requests", "Requests answered", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "chatterbox_request_seconds", "From a request to its last byte", buckets=_SECONDS, registry=self.registry
        )
        self._open = Gauge("chatterbox_requests_open", "Requests that are being answered", registry=self.registry)
        self._first = Histogram(
            "chatterbox_first_audio_seconds",
            "From a request to its first audio",
            ("way",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._factor = Histogram(
            "chatterbox_real_time_factor",
            "Seconds that a second of audio took",
            buckets=_FACTORS,
            registry=self.registry,
        )
        self._audio = Counter("chatterbox_audio_seconds", "Audio that was sent", registry=self.registry)
        self._underruns = Counter(
            "chatterbox_underruns", "Streams that a player at normal speed ran out of", registry=self.registry
        )
        self._failures = Counter(
            "chatterbox_failures", "Speech requests that failed", ("code",), registry=self.registry
        )

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A request is open within."""
        with self._open.track_inprogress():
            yield

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.observe(seconds)

    def first_audio(self, seconds: float, streamed: bool) -> None:
        """A request had its first audio after so many seconds."""
        self._first.labels("stream" if streamed else "whole").observe(seconds)

    def spoken(self, audio_seconds: float, seconds: float, underruns: int = 0) -> None:
        """A request was spoken to its end."""
        self._audio.inc(audio_seconds)
        if audio_seconds > 0:
            self._factor.observe(seconds / audio_seconds)
        self._underruns.inc(min(underruns, 1))

    def failed(self, code: str | None) -> None:
        """A speech request failed."""
        self._failures.labels(code or "unknown").inc()

    def page(self) -> bytes:
        """For Prometheus to read."""
        return generate_latest(self.registry)


class _Moment(Collector):
    """Gauges that are asked for when they are read."""

    def __init__(self, gauges: Gauges):
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks for no figures."""
        return ()

    def collect(self) -> Iterable[Metric]:
        for moment in self._gauges():
            labels = (moment.label,) if moment.label else ()
            family = GaugeMetricFamily(f"chatterbox_{moment.name}", moment.meaning, labels=labels)
            values = moment.value.items() if isinstance(moment.value, Mapping) else [("", moment.value)]
            for name, value in values:
                family.add_metric([name] if labels else [], value)
            yield family
