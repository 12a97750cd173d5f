"""The log of a server: a line for each request, with its id, and never what was asked or answered."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from datetime import datetime, timezone
from typing import Any, TextIO

LOG = logging.getLogger("adaptc.server")

_ID = re.compile(r"[\w.:-]{1,128}\Z", re.ASCII)
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\Z")


def request_id(given: str | None) -> str:
    """The id of a request: the client's, if it gave one that a log can hold, or a new one."""
    return given if given is not None and _ID.match(given) else uuid.uuid4().hex


def trace_id(traceparent: str | None) -> str | None:
    """The trace that a W3C `traceparent` names; None if there is none, or it is not of that form."""
    found = _TRACE.match(traceparent or "")
    return found[1] if found and set(found[1]) != {"0"} and set(found[2]) != {"0"} else None


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line to the log.

    Args:
        event: What happened.
        level: Of `logging`.
        **fields: What is known of it; None is left out.
    """
    LOG.log(level, event, extra={"fields": {name: value for name, value in fields.items() if value is not None}})


class JsonLines(logging.Formatter):
    """Each record as a JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """Each record as words on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")  # for who sits before it
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        text = f"{time} {record.getMessage()} {fields}".rstrip()
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def write_log(as_json: bool, to: TextIO = sys.stderr) -> None:
    """Have the server's log written, and with it whatever else this process logs."""
    handler = logging.StreamHandler(to)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.getLogger().handlers = [handler]  # what the web server and the event loop say is written so too
    LOG.setLevel(logging.INFO)
