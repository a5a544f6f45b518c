"""Log lines as text or as JSON."""

from __future__ import annotations

import json
import logging
import time

import grpc

from gradwire.wire.printable import printable


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """One line, and the traceback where there is one: what others have named cannot add lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        return printable(super().formatMessage(record))


def is_news(record: logging.LogRecord) -> bool:
    """False where gRPC logs that an answer, or a status, did not reach a peer that has gone. It passes that over by
    itself, and calls it an error only where it has not noticed yet that the peer has gone."""
    error = record.exc_info[1] if record.exc_info else None
    unsent = isinstance(error, grpc.aio.InternalError) and str(error).startswith('Failed "execute_batch"')
    return not (unsent and record.name.startswith("grpc."))


def set_up_logging(log_format: str, level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    handler.addFilter(is_news)
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
