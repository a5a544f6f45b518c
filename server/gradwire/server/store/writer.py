"""The thread that writes to the database. What is asked for meanwhile goes into one transaction: one flush for all."""

from __future__ import annotations

import errno
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gradwire.server.failpoints import failpoint
from gradwire.server.metrics.histogram import STEP_SECONDS, Histogram
from gradwire.wire.errors import GradwireError, StorageFailed, StorageFull

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH_BYTES = 64 * 2**20
"""A transaction takes no further work once it has this much."""

CHECKPOINT_BYTES = 16 * 2**20
"""The log is emptied when about this much is in it."""

_JOB_BYTES = 8192
"""What a job writes at least: the pages that it changes."""

_FULL = ("SQLITE_FULL",)
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITTEN = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE", "SQLITE_TOOBIG")
"""After these nothing has reached the database. After others, a failed flush above all, it cannot be known."""


@dataclass(eq=False)
class Transaction:
    """What the jobs of one transaction share."""

    database: sqlite3.Connection
    changes: dict[Any, Any] = field(default_factory=dict)
    """What later jobs of the transaction must see, and what holds once it is committed."""
    after: list[Callable[[], None]] = field(default_factory=list)
    """Called, in order, once it is committed."""


@dataclass(eq=False)
class _Job(Generic[T]):
    work: Callable[[Transaction], T]
    size_bytes: int
    future: Future[T]
    result: T | None = None


class Writer:
    """Does jobs, several in one transaction, in the order in which they came.

    Args:
        database: in autocommit mode; belongs to the thread from now on.
        committed: called after each transaction, before any future is done.
        check: called before and after a transaction is committed; raises OSError where what is written would be lost
            all the same.
    """

    def __init__(
        self, database: sqlite3.Connection, committed: Callable[[Transaction], None], check: Callable[[], None]
    ) -> None:
        self._check = check
        self._database = database
        self._committed = committed
        self._since_checkpoint = 0
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None
        self.transactions = 0
        self.flush_seconds = Histogram(STEP_SECONDS)
        """Of each transaction, from its commit until it was on disk."""
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="gradwire-journal", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Transaction], T], size_bytes: int = 0) -> Future[T]:
        """``work(transaction)`` inside a transaction; the future is done when that is on disk."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # nobody cancels it: what was asked for is done
        if self.closed:
            future.set_exception(StorageFailed("the server's store has been closed; nothing was applied"))
        else:
            self._jobs.put(_Job(work, size_bytes, future))
        return future

    def close(self) -> None:
        """Finishes what has been asked for, and closes the database."""
        self.closed = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            jobs: list[_Job[Any]] = []
            size = 0
            job = self._jobs.get()
            while True:
                if job is None:
                    stopping = True
                    break
                jobs.append(job)
                size += job.size_bytes
                if size >= BATCH_BYTES:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._do(jobs)
                self._since_checkpoint += sum(job.size_bytes + _JOB_BYTES for job in jobs)
                if self._since_checkpoint > CHECKPOINT_BYTES and self._broken is None:
                    self._checkpoint()
        self._database.close()

    def _checkpoint(self) -> None:
        """Moves what is in the log to the database, so that the log can begin anew. The log alone would do as well."""
        self._since_checkpoint = 0
        try:
            failpoint("journal.before-checkpoint")
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
            failpoint("journal.after-checkpoint")
        except (sqlite3.Error, OSError) as error:
            log.warning("the journal's log could not be moved to the database, and grows: %s", error)

    def _do(self, jobs: list[_Job[Any]]) -> None:
        if self._broken is not None:
            for job in jobs:
                job.future.set_exception(self._refusal(self._broken))
            return
        try:
            self._transact(jobs)
        except BaseException as error:
            if len(jobs) > 1 and self._broken is None:
                for job in jobs:  # each for itself, so that only those fail that must
                    self._do([job])
                return
            for job in jobs:
                job.future.set_exception(self._refusal(error))
            return
        for job in jobs:
            job.future.set_result(job.result)

    def _transact(self, jobs: list[_Job[Any]]) -> None:
        transaction = Transaction(self._database)
        committing = False
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for job in jobs:
                job.result = job.work(transaction)
            failpoint("journal.before-commit")
            self._check()  # nothing has been written so far, and that can be said
            committing = True
            failpoint("journal.commit")
            began = time.perf_counter()
            self._database.execute("COMMIT")
            self.flush_seconds.observe(time.perf_counter() - began)
            self._check()  # before anybody is told
        except BaseException as error:
            self._undo(error, committing)
            raise
        failpoint("journal.after-commit")
        self.transactions += 1
        self._committed(transaction)
        for call in transaction.after:
            try:
                call()
            except Exception:
                log.exception("after a transaction")

    def _undo(self, error: BaseException, committing: bool) -> None:
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as second:
            self._broken = second
        if committing and _name(error) not in _FULL + _NOT_WRITTEN:
            self._broken = error
        if self._broken is not None:
            log.error("the journal has failed and takes nothing more until the server is started anew: %s", error)

    def _refusal(self, error: BaseException) -> BaseException:
        if not isinstance(error, (sqlite3.Error, OSError)):
            return error
        # Once broken, nobody can say what is on disk of a block that was sent before and is sent again now.
        return refusal(error, applied=False if self._broken is None else None)


def refusal(error: sqlite3.Error | OSError, applied: bool | None = False) -> GradwireError:
    """A failure of the storage as the error table has it."""
    full = _name(error) in _FULL or (isinstance(error, OSError) and error.errno in _FULL_NUMBERS)
    if full:
        return StorageFull(f"the server's disk is full ({error}); nothing was applied", applied=applied)
    what = "nothing was applied" if applied is False else "whether this was kept is not known"
    return StorageFailed(f"the server could not write to its disk ({error}); {what}", applied=applied)


@contextmanager
def refusing() -> Iterator[None]:
    """Raises StorageFull or StorageFailed for an OSError in the body."""
    try:
        yield
    except OSError as error:
        raise refusal(error) from error


def _name(error: BaseException) -> str:
    """SQLite's name of an error; one that has none counts as the worst."""
    return getattr(error, "sqlite_errorname", "")
