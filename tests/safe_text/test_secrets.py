"""Secrets: an address with one is recognised, and messages, commands and logs have `***` in its place."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.safe_text.log_lines import SafeFormatter
from kdray.safe_text.secrets import has_secret, is_secret_name, mask_command, mask_secrets

PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=20)
"""Passwords of printable ASCII without spaces: these are what people put into addresses."""


@pytest.mark.parametrize(
    "address",
    [
        "http://anna:s3cret@host",
        "HTTP://anna:s3cret@host",
        "http:anna:s3cret@host",
        "http://anna:s3@cret@host",
        "http://anna:s3/cret@host",
        "http://anna:s3?cret@host",
        "http://anna:s3#cret@host",
        "https://s3cret@host",
        "https://host/x?api_key=s3cret",
        "https://host/x?s3cret",
        "https://host/#s3cret",
        "postgresql://anna:s3cret@host/kd",
        "postgresql://:s3cret@host/kd",
        "postgresql://anna:s3?cret@host/kd",
        "postgresql://anna:s3/cr@et@host/kd",
        "postgresql://anna:s3#cret@host/kd",
        "postgresql://anna@host/kd?password=s3cret",
        "postgresql://anna@host/kd?pass%77ord=s3cret",
        "postgresql://anna@host/kd?connect_timeout=2&sslpassword=s3cret",
        "mysql+pymysql://anna@host/kd?passwd=s3cret",
        "sqlite:////folder/x.db?key=s3cret",
        "oracle://anna/s3cret@host",
        "postgresql:////anna:s3cret@host/kd",
    ],
)
def test_an_address_with_a_secret_is_recognised_and_masked(address: str) -> None:
    assert has_secret(address)
    assert "s3cret" not in mask_secrets(address) or "://" not in address
    assert "cret@" not in mask_secrets(f"see {address}, then") or "://" not in address


@pytest.mark.parametrize(
    "address", ["postgresql://anna@host:s3cret/kd", "mysql://host:s3cret", "postgresql://a@h1:5432,h2:s3cret/kd"]
)
def test_a_port_that_is_no_number_may_be_a_password(address: str) -> None:
    assert has_secret(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.com/team/kd",
        "http://[::1]:5000",
        "databricks",
        "databricks://profile",
        "postgresql://anna@host:5432/kd",
        "postgresql+psycopg://anna@host/kd?connect_timeout=2&sslmode=require",
        "postgresql:///kd?host=/run/postgresql",
        "postgresql://anna@[::1]:5432/kd",
        "postgresql://anna@one:5432,two:5433/kd",
        "postgresql://anna@one,[fe80::1]",
        "postgresql://anna@host/kd:test",
        "mysql+pymysql://anna@host/kd?read_default_file=~/.my.cnf",
        "sqlite:////folder #1/anna@work/x:y.db",
        "sqlite:///relative.db?timeout=9",
    ],
)
def test_an_address_without_a_secret_is_not_refused(address: str) -> None:
    assert not has_secret(address)


@given(PASSWORDS, st.sampled_from(["http", "postgresql", "mysql+pymysql"]))
def test_any_password_before_a_host_is_recognised_and_masked(password: str, scheme: str) -> None:
    address = f"{scheme}://anna:{password}@host.example/db"
    assert has_secret(address)
    assert mask_secrets(f"could not reach {address} in time").startswith(f"could not reach {scheme}://***")
    assert password not in mask_secrets(address).partition("://***")[2]


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("https://me:p@ss/w@host/x?a=b)", "https://***@host/x?***)"),
        ("GET /x: Authorization: Bearer abc.def-123", "GET /x: Authorization: ***"),
        ("the header was Bearer abc.def-123", "the header was Bearer ***"),
        ("{'password': 'a b', 'user': 'anna'}", "{'password': '***', 'user': 'anna'}"),
        ("db_password=abc user=anna", "db_password=*** user=anna"),
        ("PGPASSWORD=abc PGUSER=anna GITHUBTOKEN=abc", "PGPASSWORD=*** PGUSER=anna GITHUBTOKEN=***"),
        ("tokens=5 tokenizer=bpe PGPASSFILE=/x", "tokens=5 tokenizer=bpe PGPASSFILE=/x"),
        ('"api_key": "abc", "sort_key": "x"', '"api_key": "***", "sort_key": "x"'),
        ("unexpected token: positive", "unexpected token: positive"),
        ("pad_token_id=0, RAY_AUTH_TOKEN_PATH=/x/y", "pad_token_id=0, RAY_AUTH_TOKEN_PATH=/x/y"),
        ("ledger postgresql://anna@host/kd: no answer", "ledger postgresql://anna@host/kd: no answer"),
        ("(mysql+pymysql://anna@host/kd?ssl_ca=x)", "(mysql+pymysql://anna@host/kd?ssl_ca=x)"),
        ("git+https://t0ken@host/x", "git+https://***@host/x"),
        ("ftp://t0ken@host/x", "ftp://***@host/x"),
        ("models:/films@champion (version 2)", "models:/films@champion (version 2)"),
        ("depth 2, T 3.1, latency 1.5 ms", "depth 2, T 3.1, latency 1.5 ms"),
    ],
)
def test_messages_lose_their_secrets_and_nothing_else(message: str, masked: str) -> None:
    assert mask_secrets(message) == masked


@pytest.mark.parametrize("part", ["a", "a.", "://", "@", "a=", "a='", "?)", 'token="\\', "Bearer ", "://u:p@h/?)) "])
def test_long_messages_are_masked_in_linear_time(part: str) -> None:
    """A worker's error may have megabytes, and whoever wrote the data chooses them."""
    start = time.process_time()
    mask_secrets(part * (200_000 // len(part)))
    assert time.process_time() - start < 10


def test_secrets_of_the_environment_are_masked_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "blau wal/9")
    monkeypatch.setenv("SOME_DATABASE", "postgresql://anna:gelbfisch@host/x")
    monkeypatch.setenv("PGPASSWORD", "rotkatze")
    masked = mask_secrets("tried 'blau wal/9', blau%20wal%2F9 and blau+wal%2F9 with gelbfisch, rotkatze")
    assert masked == "tried '***', *** and *** with ***, ***"


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        (["run", "--password", "a b", "--depth", "2"], ["run", "--password", "***", "--depth", "2"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--set", "tracking.token=a b"], ["--set", "tracking.token=***"]),
        (["--tracking-uri", "http://u:p s@h/x"], ["--tracking-uri", "http://***@h/x"]),
        (["--tracking-uri=http://u:ps@h/x?k=v w"], ["--tracking-uri=http://***@h/x?***"]),
        (["--tracking-uri", "http://127.0.0.1:5000"], ["--tracking-uri", "http://127.0.0.1:5000"]),
    ],
)
def test_command_lines_lose_their_secrets(arguments: list[str], masked: list[str]) -> None:
    assert mask_command(arguments) == masked


@pytest.mark.parametrize("name", ["db_password", "API-Key", "mlflow.trackingToken", "AWS_SECRET_ACCESS_KEY", "--token"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["sort_key", "AWS_ACCESS_KEY_ID", "tokenizer", "max_token_length", "author", "keys"])
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


def test_a_log_line_has_no_secret_no_control_character_and_no_second_record() -> None:
    try:
        raise OSError("http://u:s3cret@h\x1b[2J\n2026-01-01 00:00:00 INFO kdray: all is well")
    except OSError as error:
        record = logging.makeLogRecord({"name": "kdray", "msg": "failed: %s", "args": (error,)})
    line = SafeFormatter().format(record)
    assert "s3cret" not in line
    assert "\x1b" not in line
    assert "\\x1b[2J" in line
    assert "\n    2026-01-01" in line
