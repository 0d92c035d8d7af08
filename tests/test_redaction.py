"""Secrets are in no text that is written, logged or displayed."""

import logging
import subprocess
import sys

import pytest

from remem_jax import checks, redaction

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:s3cr3t@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a@s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:a/s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:a#s3cr3t?@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:12/s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:it's s3cr3t@host/db", "postgresql://me:***@host/db"),
        ("at postgresql://me:it's-s3cr3t@host/db", "at postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=s3cr3t", "postgresql://me@host/db?password=***"),
        ("https://me:s3cr3t@host/weights/", "https://***@host/weights/"),
        ("https://s3cr3t@host/weights/", "https://***@host/weights/"),
        ("HTTPS://me:s3cr3t@host", "HTTPS://***@host"),
        ("https://host/w?token=s3cr3t&x=1", "https://host/w?***"),
        ("https://host/w?X-Amz-Signature=s3cr3t", "https://host/w?***"),
        ("https://host/w#access_token=s3cr3t", "https://host/w#***"),
        ("host=h password='s3cr3t one' dbname=d", "host=h password=*** dbname=d"),
        ("unknown arguments API_KEY=s3cr3t;", "unknown arguments API_KEY=***;"),
        (
            "Cannot fetch https://a:s3cr3t@h/x (no) nor postgresql://b:s3cr3t@g/y.",
            "Cannot fetch https://***@h/x (no) nor postgresql://b:***@g/y.",
        ),
    ],
)
def test_secrets_are_replaced_and_the_rest_is_unchanged(text: str, expected: str) -> None:
    assert redaction.without_secrets(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@host:5432/db?sslmode=require",
        "https://host:8443/weights@v2/a.npz",
        "sqlite:////home/me@work/study.db",
        "journal:/shared/trials",
        "augreg:Ti_16-i21k-300ep-lr_0.001",
        "me@host:/data and tokens=64, seed=3",
        "file:///folder/of@weights",
    ],
)
def test_a_text_without_secrets_is_unchanged(text: str) -> None:
    assert redaction.without_secrets(text) == text


def test_secrets_in_nested_settings_are_replaced() -> None:
    config = {
        "base": {"teacher": {"mirror": "https://me:s3cr3t@host/"}},
        "differs": [SECRET],
        "n": 1,
    }

    redacted = redaction.without_secrets(config)

    assert redacted == {
        "base": {"teacher": {"mirror": "https://***@host/"}},
        "differs": [SECRET],
        "n": 1,
    }


def test_an_error_for_the_user_has_no_secret() -> None:
    error = checks.SettingError("https://me:s3cr3t@host/x is not a local folder.")

    assert str(error) == "https://***@host/x is not a local folder."


def test_a_log_record_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    hook = sys.excepthook
    try:
        redaction.guard()
        try:
            raise OSError("at postgresql://me:s3cr3t@host/db")
        except OSError:
            logging.getLogger("other").exception("failed for %s", "https://me:s3cr3t@host/x")
    finally:
        logging.setLogRecordFactory(before)
        sys.excepthook = hook

    assert "failed for https://***@host/x" in caplog.text
    assert "OSError: at postgresql://me:***@host/db" in caplog.text
    assert SECRET not in caplog.text


def test_the_traceback_of_an_uncaught_exception_has_no_secret() -> None:
    code = (
        "from remem_jax import redaction; redaction.guard()\n"
        "raise OSError('https://me:s3' + 'cr3t@host/x')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "OSError: https://***@host/x" in done.stderr
    assert SECRET not in done.stderr
