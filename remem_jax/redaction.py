"""Removes passwords and tokens from everything that is written, logged or displayed."""

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# User and password of a URL. A password that is not escaped may contain @, / or #, so it ends at
# the last @.
_PASSWORD = re.compile(
    r"(?<![\w+.-])(?P<start>(?!https?:)[A-Za-z][\w+.-]*://[^\s:/?#@'\"]*):\S*@", re.IGNORECASE
)
# The same if the whole text is a URL: then a password may contain blanks.
_WHOLE = re.compile(_PASSWORD.pattern.replace(r"\S*", r"(?!\s).*"), re.IGNORECASE | re.DOTALL)
# User of a web address, who may be a token without a password; a path may follow a port.
_WEB_USER = re.compile(
    r"(?P<start>https?://)(?:[^\s:/?#@]*:(?!\d{1,5}/)\S*@|[^\s/?#'\"]*@)", re.IGNORECASE
)
# Query and fragment of a web address, since signatures and tokens have many names.
_WEB_QUERY = re.compile(
    r"(?P<start>https?://[^\s?#'\"<>]*)(?P<mark>[?#])[^\s'\"<>),;]+", re.IGNORECASE
)
_NAMED = re.compile(
    r"(?P<start>[\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key)=)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s&;'\",)]+)",
    re.IGNORECASE,
)


def without_secrets(content: Any) -> Any:
    """Replaces each secret by `***` in a text, or in all texts of JSON values.

    Secrets are the password of a URL, the user, query and fragment of a web address, and values
    assigned to a name such as `password` or `token`. Other content is returned unchanged.
    """
    if isinstance(content, str):
        return _text(content)
    if isinstance(content, Mapping):
        return {without_secrets(name): without_secrets(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_secrets(value) for value in content]
    return content


def may_have_secrets(text: str) -> bool:
    """Returns False if a text, or any JSON values that were written to it, have no secrets."""
    return "://" in text or "=" in text


def _text(text: str) -> str:
    if "://" in text:
        text = _WHOLE.sub(rf"\g<start>:{HIDDEN}@", text, count=1) if _WHOLE.match(text) else text
        text = _PASSWORD.sub(rf"\g<start>:{HIDDEN}@", text)
        text = _WEB_USER.sub(rf"\g<start>{HIDDEN}@", text)
        text = _WEB_QUERY.sub(rf"\g<start>\g<mark>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<start>{HIDDEN}", text) if "=" in text else text


def guard() -> None:
    """Removes secrets from all log records and from the traceback of an uncaught exception."""
    make = logging.getLogRecordFactory()

    def guarded(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg, record.args = _text(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:  # Formatters use this text if it is set.
            record.exc_text = _text("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        sys.stderr.write(_text("".join(traceback.format_exception(kind, error, trace))))

    logging.setLogRecordFactory(guarded)
    sys.excepthook = show
