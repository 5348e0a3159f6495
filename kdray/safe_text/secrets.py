"""Finds passwords and tokens in addresses, commands and messages, and replaces them with `***`.

A secret is found by where it stands: before the `@` or after the `?` or `#` of an address, behind a name such as
`password` or `api_key`, in a header for authorisation, or as the value of such an environment variable. The part that
is masked is always as long as it may be: a password may contain `@`, `/` and `#`, so an address is masked up to its
last `@`. Masking too much costs a detail of a message; masking too little publishes a password.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from urllib.parse import quote, quote_plus

MASK = "***"

_WORDS = """
    apikey auth authorization cookie credential credentials dsn pass passphrase passwd password pwd sas secret sig
    signature token
"""
_SECRET_WORDS = frozenset(_WORDS.split())
"""A name with one of these words belongs to a secret."""
_SECRET_ENDINGS = ("apikey", "passphrase", "passwd", "password", "secret", "token")
"""Ends of words that are written together, such as PGPASSWORD."""
_KINDS_OF_KEYS = frozenset(
    ("access", "account", "api", "encryption", "private", "secret", "shared", "signing", "subscription")
)
"""The word before `key` in the name of a secret; other keys, such as `sort_key`, are no secrets."""
_LAST_WORDS_OF_NO_SECRET = frozenset(
    ("count", "dir", "file", "folder", "id", "ids", "length", "mode", "name", "path", "sock", "type", "types")
)
"""A name that ends with one of these says something about a secret: RAY_AUTH_TOKEN_PATH, `pad_token_id`."""
_NOT_SECRET = frozenset(("PWD", "OLDPWD"))
"""Environment variables with the working directory."""
_MIN_VALUE_LENGTH = 6
"""Shorter values of environment variables are not masked in messages: `test` is a frequent password, and a word."""

_POSTGRESQL = """
    application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssdelegation
    gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname
    load_balance_hosts options passfile port require_auth requirepeer service servicefile sslcert sslcertmode
    sslcompression sslcrl sslcrldir sslkey sslmode sslnegotiation sslrootcert sslsni ssl_max_protocol_version
    ssl_min_protocol_version target_session_attrs tcp_user_timeout user
"""
_MYSQL = """
    autocommit bind_address charset collation compress program_name read_default_file read_default_group read_timeout
    sql_mode ssl ssl_ca ssl_capath ssl_cert ssl_check_hostname ssl_cipher ssl_disabled ssl_key ssl_mode ssl_verify_cert
    ssl_verify_identity unix_socket use_unicode write_timeout
"""
_SQLITE = "cache check_same_thread detect_types immutable isolation_level mode nolock timeout uri"
_ODBC = "app applicationintent driver encrypt multisubnetfailover trusted_connection trustservercertificate"
_HARMLESS_OPTIONS = frozenset(f"{_POSTGRESQL} {_MYSQL} {_SQLITE} {_ODBC}".split())
"""Options of database drivers that hold no secret; each other option in an address may be one."""
_SERVERS = ("http", "https", "databricks")
"""Schemes of servers, whose options and user names are tokens as often as not."""

_SERVER = re.compile(r"[^@?#;\s]*")
"""A server's address without a user, a query and a fragment."""
_DATABASES = ("postgresql", "mysql", "mariadb", "mssql", "oracle", "sqlite")
"""Schemes of databases, in whose addresses the name of a user is no secret."""
_ADDRESS = re.compile(r"(?<![\w.+-])([\w.+-]*)://(\S*)")
_CLOSING = ")]}>'\",.:;"
"""Punctuation after an address in a sentence."""
_NAME = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]+)(?P<sign>["']?\s{0,4}[=:]\s{0,4})""")
_VALUE = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:(?:Bearer|Basic|Digest|Token)\s+)?\S+""")
_NAMES_BEFORE_COLON = frozenset(("authorization", "cookie", "passphrase", "password", "passwd", "pwd"))
"""Names of one word that are followed by a secret after a colon, too; `token: ...` may be a sentence."""
_SCHEME_OF_HEADER = re.compile(r"\b(Bearer|Basic|Digest)\s+[\w.~+/=-]{6,}")


def mask_secrets(text: str) -> str:
    """The text with everything in it that may be a secret replaced by `***`."""
    return mask_all([text])[0]


def mask_all(texts: Iterable[str]) -> list[str]:
    """The texts, each as `mask_secrets` returns it. The environment is read once, which takes longest."""
    if not (listed := list(texts)):
        return []
    values = _values_of(tuple(os.environb.items()))  # not decoded each time: a driver reads it for every report
    return [_mask_text(text, values) for text in listed]


def _mask_text(text: str, values: Iterable[str]) -> str:
    """The text without secrets; `values` are those of environment variables."""
    for value in values:
        text = text.replace(value, MASK)
    text = _ADDRESS.sub(lambda match: f"{match[1]}{_mask_address(match[1], match[2])}", text)
    text = _mask_assignments(text)
    return _SCHEME_OF_HEADER.sub(rf"\1 {MASK}", text)


def mask_command(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line, with everything in them that may be a secret replaced by `***`."""
    masked = []
    follows_secret_option = False
    for argument in arguments:
        masked.append(MASK if follows_secret_option else _mask_argument(argument))
        is_option = argument.startswith("-") and "=" not in argument
        follows_secret_option = is_option and is_secret_name(argument)
    return masked


def is_secret_name(name: str) -> bool:
    """Whether a value with this name is a secret, such as `db_password`, `API-Key`, `mlflow.trackingToken`."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if words and words[-1] in _LAST_WORDS_OF_NO_SECRET:
        return False
    keys = [before for before, word in pairwise(words) if word == "key"]
    is_secret = any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words)
    return is_secret or not _KINDS_OF_KEYS.isdisjoint(keys)


def has_secret(url: str) -> bool:
    """Whether the URL of a database or a server contains a password or a token, or something that may be one.

    The name of a user of a database is no secret: its client finds the password in the environment or in a file.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return any(mark in url for mark in "@?#")
    if scheme.lower() in _SERVERS:
        return not _SERVER.fullmatch(rest)
    # After three slashes there is no host, and so no user before an `@`: the rest is the path of a file.
    is_file = rest.startswith("/") and scheme.lower().partition("+")[0] == "sqlite"
    place, _, query = rest.partition("?")
    names = [option.partition("=")[0].lower() for option in re.split("[&;]", query) if option]
    if any(name not in _HARMLESS_OPTIONS for name in names) or "@" in query:
        return True
    user, _, host = place.rpartition("@")
    # A number sign stands in no name of a database, and a slash in no name of a user, but both may stand in a password.
    return not is_file and ("#" in rest or not {":", "/"}.isdisjoint(user) or _has_odd_port(host))


def _has_odd_port(hosts: str) -> bool:
    """Whether a port in the hosts of an address is no number: it may be a password that stands at the wrong place."""
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.partition("/")[0].split(",")]
    return any(port and not port.isdigit() for port in ports)


@lru_cache(maxsize=1)  # thousands of params and log lines are masked with the same environment
def _values_of(environment: tuple[tuple[bytes, bytes], ...]) -> list[str]:
    """The secrets in this environment, in the forms in which messages contain them, longest first."""
    secrets = set()
    for name, value in ((os.fsdecode(name), os.fsdecode(value)) for name, value in environment):
        if name in _NOT_SECRET:
            continue
        if is_secret_name(name) or name.endswith("_KEY"):
            secrets.add(value)
        elif address := _ADDRESS.fullmatch(value):
            secrets.add(address[2].rpartition("@")[0].partition(":")[2])
    forms = {
        form
        for secret in secrets
        for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1])
    }
    return sorted((form for form in forms if len(form) >= _MIN_VALUE_LENGTH), key=len, reverse=True)


def _mask_argument(argument: str) -> str:
    """An argument of a command line. It ends where it ends, so a secret in it may contain spaces."""
    name, sign, _ = argument.partition("=")
    if sign and is_secret_name(name):
        return f"{name}={MASK}"
    before, separator, rest = argument.partition("://")
    if separator:
        return mask_secrets(before) + _mask_address(before.rpartition("=")[2], rest)
    return mask_secrets(argument)


def _mask_address(scheme: str, rest: str) -> str:
    """The address from `://` on, without what stands before its last `@`, in its query and in its fragment.

    The address of a database stays if it has no secret: messages about a ledger say which one to name.
    """
    if scheme.lower().partition("+")[0] in _DATABASES and not has_secret(f"{scheme}://{rest}"):
        return f"://{rest}"
    _, at, place = rest.rpartition("@")
    place, mark, hidden = _partition_at(place, "?#")
    after = f"{mark}{MASK}{hidden[len(hidden.rstrip(_CLOSING)) :]}" if mark else ""
    return f"://{MASK + at if at else ''}{place}{after}"


def _mask_assignments(text: str) -> str:
    """The text with the value behind each name of a secret masked: `password=...`, `"api_key": "..."`."""
    parts, end = [], 0
    while found := _NAME.search(text, end):
        parts.append(text[end : found.end()])
        end = found.end()
        if _is_assigned(found["name"], found["sign"]) and (value := _VALUE.match(text, end)):
            quotes = value[0][0] if value[0][0] in "\"'" and value[0][-1] == value[0][0] else ""
            parts.append(f"{quotes}{MASK}{quotes}")
            end = value.end()
    return "".join([*parts, text[end:]])


def _is_assigned(name: str, sign: str) -> bool:
    """Whether a secret follows this name and sign. A colon also stands in sentences, behind a single word."""
    is_clear = "=" in sign or sign[0] in "\"'" or "_" in name or "-" in name or name.lower() in _NAMES_BEFORE_COLON
    return is_clear and is_secret_name(name)


def _partition_at(text: str, characters: str) -> tuple[str, str, str]:
    """The text before the first of these characters, that character, and the text after it."""
    found = re.search(f"[{re.escape(characters)}]", text)
    return (text, "", "") if found is None else (text[: found.start()], found[0], text[found.end() :])
