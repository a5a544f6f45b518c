"""What a scrape shows of the server as a whole: read from the plain numbers of those who count, and shown by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from gradwire.server.access.identity import Identity
from gradwire.server.metrics.calls import MethodCounters
from gradwire.server.web.families import by, counter, counters, gauge, gauges, histograms
from gradwire.server.web.of_runs import of_runs
from gradwire.server.web.watched import Watched

_PROCESS = ProcessCollector(registry=None)
_METHOD = ["grpc_type", "grpc_service", "grpc_method"]


class Scrape:
    """One look at a server. Made on the event loop, where it takes what may be read only there; `collect` may take its
    time in a thread.

    Args:
        who: sees the metrics of single runs, of those that it may see; None: there are none of single runs.
    """

    def __init__(self, watched: Watched, who: Identity | None) -> None:
        self._watched = watched
        self._who = who
        self._lag_seconds = watched.loop_lag_seconds()
        self._unused_handshakes = watched.unused_handshakes()
        self._ready = not watched.unready()
        blocks = watched.registry.counters.blocks
        blocks.fold()
        self._oldest_seconds = blocks.oldest_seconds
        self._streams = len(blocks.watches)

    def collect(self) -> Iterator[Metric]:
        """All families, in the order in which they are shown."""
        yield from self._server()
        yield from self._calls()
        yield from self._steps()
        yield from self._storage()
        yield from self._access()
        if self._who is not None:
            yield from of_runs(self._watched.registry, self._who)
        yield from _PROCESS.collect()

    def _server(self) -> Iterator[Metric]:
        registry = self._watched.registry
        runs = registry.living()
        used, of_runs = registry.budget.used_bytes, sum(run.spec.memory_bytes for run in runs)
        kinds = [(["runs"], of_runs), (["other"], max(0, used - of_runs))]
        yield gauge("gradwire_ready", "Whether the server serves: 1, or 0 while it starts or drains.", self._ready)
        yield gauge("gradwire_runs", "Runs that can be served.", len(runs))
        yield gauge("gradwire_damaged_runs", "Stored runs that cannot be served.", registry.damaged_count)
        yield gauge("gradwire_streams", "Train streams that are open.", self._streams)
        counted = registry.counters
        yield gauge("gradwire_page_streams", "Event streams of the page that are open.", counted.page_streams)
        about = "Event streams of the page that were turned away, since there were as many as there may be."
        yield counter("gradwire_page_streams_refused", about, counted.page_streams_refused)
        about = "What is set aside, for runs, and for what else clients make the server hold."
        yield gauges("gradwire_memory_bytes", about, ["kind"], kinds)
        yield gauge("gradwire_memory_limit_bytes", "What may be set aside: --max-memory.", registry.budget.limit_bytes)
        about = "How late the event loop came to what was due, at most, in the last minute."
        yield gauge("gradwire_event_loop_lag_seconds", about, self._lag_seconds)

    def _calls(self) -> Iterator[Metric]:
        methods = list(self._watched.registry.counters.calls.methods)
        started = [(_labels(method), method.started) for method in methods]
        handled = [
            ([*_labels(method), code], count) for method in methods for code, count in list(method.handled.items())
        ]
        yield counters("grpc_server_started", "Calls that were begun.", _METHOD, started)
        yield counters("grpc_server_handled", "Calls that have ended, by status.", [*_METHOD, "grpc_code"], handled)
        about = "How long calls took, from their beginning to their end; streams are one call."
        times = [(_labels(method), method.seconds) for method in methods]
        yield histograms("grpc_server_handling_seconds", about, _METHOD, times)

    def _steps(self) -> Iterator[Metric]:
        blocks = self._watched.registry.counters.blocks
        shared = self._watched.registry.counters.contributions
        applied = blocks.steps - blocks.skipped_steps + shared.rounds
        yield counter("gradwire_steps", "Steps that were applied.", applied)
        yield counter("gradwire_skipped_steps", "Steps left out since a gradient was not finite.", blocks.skipped_steps)
        results = ("applied", "repeated", "refused", "abandoned")
        values = {result: getattr(blocks, result) for result in results}
        about = (
            "Blocks: applied; answered once more; refused; or left by a sender that was gone before they were whole."
        )
        yield by("gradwire_blocks", about, "result", values)
        about = "How long blocks took: until whole; until applied, without the disk; for the disk; until answered."
        phases = ("receive", "compute", "journal", "answer")
        times = [([phase], getattr(blocks, f"{phase}_seconds")) for phase in phases]
        yield histograms("gradwire_block_seconds", about, ["phase"], times)
        about = "What became of gradients that workers of shared runs have sent."
        yield by("gradwire_contributions", about, "outcome", shared.outcomes)
        rounds = {"applied": shared.rounds, "dropped": shared.dropped_rounds}
        yield by("gradwire_rounds", "Rounds of shared runs.", "result", rounds)
        shared_runs = (run.shared_workers for run in self._watched.registry.living())
        overdue = sum(workers is not None and workers.overdue_seconds > 0 for workers in shared_runs)
        yield gauge("gradwire_rounds_overdue", "Rounds past their deadline that have not closed.", overdue)
        about = "How long the block that has been under way longest has been so; 0: none is."
        yield gauge("gradwire_oldest_block_seconds", about, self._oldest_seconds)
        counts = self._watched.registry.counters.traffic.counts().items()
        about = "Values that were received and sent: in streams, in shared memory, in the messages of other calls."
        labels = ["direction", "encoding", "path"]
        yield counters("gradwire_bytes", about, labels, counts)

    def _storage(self) -> Iterator[Metric]:
        registry = self._watched.registry
        about = "Runs that went back to an earlier step: somebody asked, or the server had not stored what came later."
        yield by("gradwire_rolled_back", about, "cause", registry.counters.rolled_back)
        stored = registry.stored_runs
        if stored is None:
            return
        costs, flushes = stored.snapshotter.costs, stored.store.flush_seconds
        if flushes is not None:
            about = "How long the journal's transactions took to be on disk; several blocks share one."
            yield histograms("gradwire_journal_flush_seconds", about, [], [([], flushes)])
        yield histograms(
            "gradwire_snapshot_seconds", "How long snapshots took to be written.", [], [([], costs.seconds)]
        )
        yield counter("gradwire_snapshot_failures", "Snapshots that failed, and were put off.", costs.failures)
        try:
            disk = shutil.disk_usage(registry.config.data_dir)
        except OSError:  # it has been deleted: the journal says so to those who train
            return
        yield gauge("gradwire_disk_free_bytes", "Free on the disk of the data directory.", disk.free)
        yield gauge("gradwire_disk_size_bytes", "Of the disk of the data directory.", disk.total)

    def _access(self) -> Iterator[Metric]:
        watched = self._watched
        denied = watched.registry.counters.denied
        yield by("gradwire_denied", "Calls that were refused because of who called.", "reason", denied)
        if watched.gate is not None:
            about = "Whether the access file as it is now is not taken: 1, or 0."
            yield gauge("gradwire_access_file_refused", about, bool(watched.gate.error))
        if watched.audit is not None:
            yield counter("gradwire_audit_lines_lost", "Lines that the audit log lacks.", watched.audit.lost)
        certificates = watched.certificates
        if certificates is not None:
            about = "When the server's certificate ends, in seconds since 1970."
            expiry = certificates.now.expires.timestamp()
            yield gauge("gradwire_certificate_expiry_timestamp_seconds", about, expiry)
            about = "States of the certificate's files that were not good and not taken."
            yield counter("gradwire_certificate_refusals", about, certificates.refusals)
            about = "TLS connections that failed in their handshake, or that nobody used."
            yield counter("gradwire_unused_handshakes", about, self._unused_handshakes)


def _labels(method: MethodCounters) -> list[str]:
    return [method.kind, method.service, method.name]
