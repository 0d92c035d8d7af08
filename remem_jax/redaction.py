"""Passwords and tokens, kept out of all that is written, logged or shown."""

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# A URL's user and password. A password that is not escaped may itself have an @, a / or a #, so
# that it ends at the last @.
_PASSWORD = re.compile(
    r"(?<![\w+.-])(?P<start>(?!https?:)[A-Za-z][\w+.-]*://[^\s:/?#@'\"]*):\S*@", re.IGNORECASE
)
# The same where a whole setting is a URL: with blanks in the password.
_WHOLE = re.compile(_PASSWORD.pattern.replace(r"\S*", r"(?!\s).*"), re.IGNORECASE | re.DOTALL)
# Of the web, where a user's name alone may be a token, and what a port is followed by is a path.
_WEB_USER = re.compile(
    r"(?P<start>https?://)(?:[^\s:/?#@]*:(?!\d{1,5}/)\S*@|[^\s/?#'\"]*@)", re.IGNORECASE
)
# What follows a web address: signatures and tokens go by many names.
_WEB_QUERY = re.compile(
    r"(?P<start>https?://[^\s?#'\"<>]*)(?P<mark>[?#])[^\s'\"<>),;]+", re.IGNORECASE
)
_NAMED = re.compile(
    r"(?P<start>[\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key)=)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s&;'\",)]+)",
    re.IGNORECASE,
)


def without_secrets(content: Any) -> Any:
    """A text, or JSON values with all their texts, where `***` stands for each secret.

    Secrets are the password of a URL, the user of a web address, what follows its `?` or `#`, and
    what is assigned to a name such as `password` or `token`. What has none is given back as it is.
    """
    if isinstance(content, str):
        return _text(content)
    if isinstance(content, Mapping):
        return {without_secrets(name): without_secrets(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_secrets(value) for value in content]
    return content


def _text(text: str) -> str:
    if "://" in text:
        text = _WHOLE.sub(rf"\g<start>:{HIDDEN}@", text, count=1) if _WHOLE.match(text) else text
        text = _PASSWORD.sub(rf"\g<start>:{HIDDEN}@", text)
        text = _WEB_USER.sub(rf"\g<start>{HIDDEN}@", text)
        text = _WEB_QUERY.sub(rf"\g<start>\g<mark>{HIDDEN}", text)
    return _NAMED.sub(rf"\g<start>{HIDDEN}", text) if "=" in text else text


def guard() -> None:
    """Keeps secrets out of every log record, and of the traceback that a process ends with."""
    make = logging.getLogRecordFactory()

    def guarded(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg, record.args = _text(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:  # As text, which formatters then take.
            record.exc_text = _text("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        sys.stderr.write(_text("".join(traceback.format_exception(kind, error, trace))))

    logging.setLogRecordFactory(guarded)
    sys.excepthook = show
