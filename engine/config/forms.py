"""One value of one key: is it what the key takes, and in which shape does the program see it. Pure.

Two sources: *data* (from TOML, JSON or the Python API, already typed) through :func:`from_data`, and *text*
(from a flag or an environment variable) through :func:`from_text`. Both raise :class:`BadValue`, which says
what was expected; the caller knows where the value stood and says that.

Data is checked strictly: ``true`` is no integer and ``"8000"`` no port, because a file that is nearly right
is a mistake that should be seen. Only an integer passes for a float, and text with a unit for a size or a
time.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import urlsplit

from engine.config import ways
from engine.config.endpoints import file_of, is_wildcard
from engine.config.schema import ANY_ORIGIN, CELLS_MOST, METHODS, RESERVED_PATHS, Form, Key, Unit
from engine.config.units import UnitError, format_size, parse_size, parse_time, warm_up_s, wear_limits


class BadValue(ValueError):
    """A value that its key does not take. The message is ``expected ..., got ...``, without the place."""


def from_data(key: Key, kind: Any, value: object) -> Any:
    """The value of a key as the program uses it. ``kind`` is the key's Python type. Raises BadValue."""
    if key.form is not Form.PLAIN:
        return _FORMS[key.form](value)
    if kind is str:
        return _choice(key, _string(value))
    if kind is bool:
        return _boolean(value)
    if kind == bool | None:
        return None if value is None else _boolean(value)
    return _number(key, kind, value)


def from_text(key: Key, kind: Any, text: str) -> Any:
    """The value of a key out of a flag or an environment variable. Raises BadValue."""
    if key.form is not Form.PLAIN or kind is str:
        return from_data(key, kind, text)
    if kind is bool:
        word = text.strip().lower()
        if word not in _WORDS:
            raise BadValue(f"expected one of {', '.join(_WORDS)}, got {shown(text)}")
        return _WORDS[word]
    if key.unit in (Unit.NONE, Unit.COUNT):
        return _number(key, kind, int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text) else text)
    return _number(key, kind, text)


def expectation(key: Key, kind: Any) -> str:
    """What a key takes, in the words that errors and the reference page use."""
    if key.form is not Form.PLAIN:
        return _EXPECTED[key.form]
    if key.choices:
        return "one of " + ", ".join(json.dumps(choice) for choice in key.choices)
    if kind is str:
        return "a string"
    if kind is not int and kind is not float:
        return "true or false"
    return f"{_NUMBERS[key.unit, kind]}{_range(key)}"


def shown(value: object) -> str:
    """A value as the reader wrote it, cut to a line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # a date of TOML, an object of the Python API
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` or nothing."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# --- plain types -----------------------------------------------------------------------------------------------------

_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}

_NUMBERS: Final = {
    (Unit.NONE, int): "an integer",
    (Unit.COUNT, int): "an integer",
    (Unit.BYTES, int): 'a size like "10 MiB" or a number of bytes',
    (Unit.SECONDS, float): 'a time like "2.5 s" or "250 ms" or a number of seconds',
    (Unit.MILLISECONDS, float): 'a time like "10 ms" or "0.5 s" or a number of milliseconds',
}


def _range(key: Key) -> str:
    def limit(number: float) -> str:
        return format_size(int(number)) if key.unit is Unit.BYTES else f"{number:.10g}"

    if key.least is not None and key.most is not None:
        return f" from {limit(key.least)} to {limit(key.most)}"
    return f" of at least {limit(key.least)}" if key.least is not None else ""


def _number(key: Key, kind: type[int] | type[float], value: object) -> int | float:
    problem = f"expected {expectation(key, kind)}, got {shown(value)}"
    number: int | float
    if isinstance(value, str) and key.unit not in (Unit.NONE, Unit.COUNT):
        try:
            number = _with_unit(key.unit, value)
        except UnitError as error:
            raise BadValue(f"{problem} ({error})") from None
    elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise BadValue(problem)
    else:
        number = value
    if isinstance(number, float) and not math.isfinite(number):
        raise BadValue(problem)
    if (key.least is not None and number < key.least) or (key.most is not None and number > key.most):
        raise BadValue(problem)
    return kind(number)


def _with_unit(unit: Unit, text: str) -> int | float:
    if unit is Unit.BYTES:
        return parse_size(text)
    if unit is Unit.MILLISECONDS:
        return parse_time(text, "ms") * 1000
    return parse_time(text, "s")


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"expected a string, got {shown(value)}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValue(f"expected true or false, got {shown(value)}")
    return value


def _choice(key: Key, value: str) -> str:
    if key.choices and value not in key.choices:
        near = nearest(value.lower(), key.choices)
        raise BadValue(f"expected {expectation(key, str)}, got {shown(value)}{near}")
    return value


# --- forms -----------------------------------------------------------------------------------------------------------

# 64 characters: a name becomes part of socket paths (engine.config.endpoints).
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_CLASS: Final = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|.*\.py):[^\W\d]\w*(?:\.[^\W\d]\w*)*", re.DOTALL)
_PREFIX: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")  # Prometheus data model: metric names
_CUDA: Final = re.compile(r"cpu|cuda(:[0-9]{1,4})?")
_HTTP_PATH: Final = re.compile(r"/[!-~]{0,1023}")
_MODEL: Final = re.compile(r"[!-~]([ -~]{0,254}[!-~])?")
_WEBHOOK: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[^\s?#\x00-\x20]*)?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
_DEFAULT_PORT: Final = re.compile(r"(?<=^http)(://.*):80$|(?<=^https)(://.*):443$")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
PROCESSES_MOST: Final = 256
SIZES_MOST: Final = 64  # of batch_sizes: each is computed twice before the worker is ready
_BIND: Final = 'tcp://HOST:PORT with a port from 1 to 65000, like "tcp://127.0.0.1:7000"'

_EXPECTED: Final[Mapping[Form, str]] = {
    Form.DEPLOYMENT_NAME: "a name of at most 64 letters, digits, _ . and -",
    Form.STAGE_NAME: "a name of at most 64 letters, digits, _ . and -",
    Form.CLASS: '"module:Class"',
    Form.PATH: 'a path like "/v1/embeddings"',
    Form.STAGES: "a list of stage names",
    Form.ADDRESS: "a host name, IPv4 or IPv6 address",
    Form.BIND: _BIND,
    Form.BROKER: '"HOST:PORT", "@FILE" that holds one, or a list of several',
    Form.FOLDER: "the path of a folder",
    Form.FILE: "the path of a file",
    Form.PREFIX: "letters, digits, _ and :, not beginning with a digit",
    Form.DEVICE: '"auto", "cpu", "cuda", "cuda:N" or a list like ["cuda:0", "cuda:1"]',
    Form.CPUS: '"auto", "all", a list of CPU numbers like [0, 1], or one such list per worker',
    Form.ENV: "a table of strings, or a list with one such table per worker",
    Form.CACHE: 'a table like { size = "64 MiB", ttl = "1 h", key = "text" }, of which each may be left out',
    Form.ARGS: "a table of strings, numbers, booleans, lists and tables",
    Form.PROCESSES: f'"auto" or an integer from 1 to {PROCESSES_MOST}',
    Form.CELLS: f'"auto" or an integer from 1 to {CELLS_MOST}',
    Form.DIGEST: "64 hexadecimal digits in small letters, as sha256sum prints them",
    Form.MODELS: "a name, or a list of names, of at most 256 printable characters each",
    Form.METHODS: f"one of {', '.join(METHODS)}, or a list of some",
    Form.FUNCTION: '"module:function"',
    Form.ORIGINS: '"*", or an origin like "https://app.example:8443", without a path, or a list of such',
    Form.WEBHOOKS: 'a URL like "https://example.com/hooks/", or a list of such, without a query',
    Form.WEAR: 'a time, a number of batches or a size of memory, like "12 h", "100000 batches", "12 h, 8 GiB"',
    Form.SIZES: f"a list of at most {SIZES_MOST} integers from 1 to 65536, like [1, 8, 32]",
    Form.WARM_UP: '"auto", "examples", or a time like "30 s" or a number of seconds',
}


CACHE_KEYS: Final = ("size", "ttl", "key")
CACHE_USUAL: Final = (64 << 20, 3600.0, ())


def _bad(form: Form, value: object, why: str = "") -> BadValue:
    return BadValue(f"expected {_EXPECTED[form]}, got {shown(value)}{why and f' ({why})'}")


def _matching(form: Form, pattern: re.Pattern[str], *, empty: bool = False) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not (pattern.fullmatch(value) or (empty and not value)):
            raise _bad(form, value)
        return value

    return read


def _path(value: object) -> str:
    if not isinstance(value, str) or not _HTTP_PATH.fullmatch(value):
        raise _bad(Form.PATH, value)
    if set(value) & set("?#{}"):
        raise _bad(Form.PATH, value, "a path is literal: no query, fragment or {placeholder}")
    if value in RESERVED_PATHS or value.startswith("/openapi/"):
        raise _bad(Form.PATH, value, f"reserved: {' '.join(RESERVED_PATHS)} and below /openapi")
    return value


def _stages(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise _bad(Form.STAGES, value)
    try:
        return ways.read(value)
    except ways.NoWay as error:
        raise _bad(Form.STAGES, value, str(error)) from None


def _methods(value: object) -> tuple[str, ...]:
    methods = (value,) if isinstance(value, str) else value
    if not isinstance(methods, (list, tuple)) or not methods or not all(method in METHODS for method in methods):
        raise _bad(Form.METHODS, value)
    return tuple(dict.fromkeys(methods))


def _origins(value: object) -> tuple[str, ...]:
    origins = [part.strip() for part in value.split(",")] if isinstance(value, str) and value else value or ()
    if not isinstance(origins, (list, tuple)) or not all(isinstance(origin, str) for origin in origins):
        raise _bad(Form.ORIGINS, value)
    found: dict[str, None] = {}
    for origin in origins:
        # As a browser writes it: in small letters, without the port that goes without saying.
        written = _DEFAULT_PORT.sub(r"\1\2", origin.lower())
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(written):
            raise _bad(Form.ORIGINS, value)
        found[written] = None
    return tuple(found)


def _webhooks(value: object) -> tuple[str, ...]:
    urls = (value,) if isinstance(value, str) else value
    if not isinstance(urls, (list, tuple)) or not all(isinstance(url, str) and _WEBHOOK.fullmatch(url) for url in urls):
        raise _bad(Form.WEBHOOKS, value)
    return tuple(urls)


def _models(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise _bad(Form.MODELS, value)
    if not all(isinstance(name, str) and _MODEL.fullmatch(name) for name in names):
        raise _bad(Form.MODELS, value)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _bad(Form.MODELS, value, f"{', '.join(twice)} more than once")
    return tuple(names)


def _address(value: object) -> str:
    if not isinstance(value, str) or not value or re.search(r"[\s/]", value):
        raise _bad(Form.ADDRESS, value)
    host = value.removeprefix("[").removesuffix("]")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise _bad(Form.ADDRESS, value, "the port has a key of its own") from None
    return host


def _bind(value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str):
        raise _bad(Form.BIND, value)
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:  # a port or brackets that make no sense
        raise _bad(Form.BIND, value) from None
    rest = url.path or url.query or url.fragment or url.username
    if url.scheme != "tcp" or not host or not port or port > 65000 or rest or re.search(r"\s", value):
        raise _bad(Form.BIND, value)
    return value


def _broker(value: object) -> tuple[str, ...]:
    """As text several are parted by commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value else []
    if not isinstance(value, (list, tuple)):
        raise _bad(Form.BROKER, value)
    found = tuple(_host_port(one) for one in value)
    if len(set(found)) < len(found):
        raise _bad(Form.BROKER, value, "one stands there twice")
    return found


def _host_port(value: object) -> str:
    text = value.removeprefix("tcp://") if isinstance(value, str) else ""
    if (path := file_of(text)) is not None:
        if not path.startswith("/") or "\0" in path:
            raise _bad(Form.BROKER, value, "the path of the file has to be whole")
        return text
    try:
        url = urlsplit(f"tcp://{text}")
        host, port = url.hostname, url.port
    except ValueError:
        raise _bad(Form.BROKER, value) from None
    if not host or not port or url.path or url.query or url.fragment or url.username or re.search(r"\s", text):
        raise _bad(Form.BROKER, value)
    if is_wildcard(host):
        raise _bad(Form.BROKER, value, "nobody is reached by a wildcard: name the broker's host")
    return text


def _file_path(form: Form) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise _bad(form, value)
        return value

    return read


def _device(value: object) -> str | list[str]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and _CUDA.fullmatch(value):
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise _bad(Form.DEVICE, value)
    if not all(isinstance(item, str) and _CUDA.fullmatch(item) for item in value):
        raise _bad(Form.DEVICE, value)
    return list(value)


def _cpus(value: object) -> str | list[int] | list[list[int]]:
    if isinstance(value, str) and value in ("auto", "all"):
        return value
    if isinstance(value, (list, tuple)) and value:
        if _is_cpu_list(value):
            return list(value)
        if all(isinstance(item, (list, tuple)) and item and _is_cpu_list(item) for item in value):
            return [list(item) for item in value]
    raise _bad(Form.CPUS, value)


def _is_cpu_list(value: Sequence[object]) -> bool:
    return all(type(item) is int and 0 <= item < 4096 for item in value) and len(set(value)) == len(value)


def _env(value: object) -> dict[str, str] | list[dict[str, str]]:
    if isinstance(value, (list, tuple)):
        return [_variables(item) for item in value]
    return _variables(value)


def _variables(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _bad(Form.ENV, value)
    made: dict[str, str] = {}
    for name, item in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise _bad(Form.ENV, value, f"{shown(name)} cannot be the name of a variable")
        if isinstance(item, bool):
            item = "true" if item else "false"
        elif isinstance(item, (int, float)):
            item = str(item)
        if not isinstance(item, str) or "\0" in item:
            raise _bad(Form.ENV, value, f"{name} is {shown(item)}")
        made[name] = item
    return made


def _args(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _bad(Form.ARGS, value)
    made: dict[str, Any] = _plain(value, "")
    return made


def _cache(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping) and not value:
        return {}
    if not isinstance(value, Mapping):
        raise _bad(Form.CACHE, value)
    for name in value:
        if name not in CACHE_KEYS:
            raise _bad(Form.CACHE, value, f"{shown(name)} is none of its keys{nearest(str(name), CACHE_KEYS)}")
    size, ttl, key = (value.get(name, usual) for name, usual in zip(CACHE_KEYS, CACHE_USUAL, strict=True))
    try:
        size = parse_size(size) if isinstance(size, str) else size
        ttl = parse_time(ttl) if isinstance(ttl, str) else ttl
    except UnitError as error:
        raise _bad(Form.CACHE, value, str(error)) from None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= 1 << 40:
        raise _bad(Form.CACHE, value, 'size: expected bytes, like "64 MiB"')
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= 365 * 86400:
        raise _bad(Form.CACHE, value, 'ttl: expected a time, like "1 h", or a number of seconds')
    fields = [key] if isinstance(key, str) and key else [] if key == "" else key
    if not isinstance(fields, (list, tuple)) or not all(isinstance(one, str) and one for one in fields):
        raise _bad(Form.CACHE, value, "key: expected the name of a field, or a list of some")
    return {"size": size, "ttl": float(ttl), "key": list(fields)}


def _plain(value: object, where: str) -> Any:
    """The value in JSON's types (hence the ``Any``); it has to reach another process as it stands."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{where}.{name}" if where else name) for name, item in value.items()}
    hint = "; write a date as a string" if isinstance(value, (date, time)) else ""
    raise BadValue(f"expected {_EXPECTED[Form.ARGS]}, got {shown(value)} at {where or 'the top'}{hint}")


def _in_words(
    form: Form, parse: Callable[[str], object], text_of: Callable[[object], object] = lambda value: value
) -> Callable[[object], str]:
    """Text that ``parse`` understands, and whoever uses it parses again; ``text_of`` makes it of other values."""

    def read(value: object) -> str:
        text = text_of(value)
        if not isinstance(text, str):
            raise _bad(form, value)
        try:
            parse(text)
        except UnitError as error:
            raise _bad(form, value, str(error)) from None
        return text

    return read


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > SIZES_MOST:
        raise _bad(Form.SIZES, value)
    if not all(type(size) is int and 1 <= size <= 65536 for size in value):
        raise _bad(Form.SIZES, value)
    if twice := sorted({size for size in value if value.count(size) > 1}):
        raise _bad(Form.SIZES, value, f"{', '.join(map(str, twice))} more than once")
    return tuple(sorted(value))


def _seconds_too(value: object) -> object:
    """A number is one of seconds."""
    return f"{value} s" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _auto_or_up_to(form: Form, most: int) -> Callable[[object], int | str]:
    def read(value: object) -> int | str:
        if value == "auto" or (type(value) is int and 1 <= value <= most):
            return value
        raise _bad(form, value)

    return read


_FORMS: Final[Mapping[Form, Callable[[object], Any]]] = {
    Form.DEPLOYMENT_NAME: _matching(Form.DEPLOYMENT_NAME, _NAME, empty=True),
    Form.STAGE_NAME: _matching(Form.STAGE_NAME, _NAME),
    Form.CLASS: _matching(Form.CLASS, _CLASS),
    Form.PATH: _path,
    Form.STAGES: _stages,
    Form.ADDRESS: _address,
    Form.BIND: _bind,
    Form.BROKER: _broker,
    Form.MODELS: _models,
    Form.FUNCTION: _matching(Form.FUNCTION, _CLASS, empty=True),
    Form.ORIGINS: _origins,
    Form.WEBHOOKS: _webhooks,
    Form.METHODS: _methods,
    Form.FOLDER: _file_path(Form.FOLDER),
    Form.FILE: _file_path(Form.FILE),
    Form.PREFIX: _matching(Form.PREFIX, _PREFIX),
    Form.DEVICE: _device,
    Form.CPUS: _cpus,
    Form.ENV: _env,
    Form.ARGS: _args,
    Form.CACHE: _cache,
    Form.WEAR: _in_words(Form.WEAR, wear_limits),
    Form.SIZES: _sizes,
    Form.WARM_UP: _in_words(Form.WARM_UP, warm_up_s, _seconds_too),
    Form.PROCESSES: _auto_or_up_to(Form.PROCESSES, PROCESSES_MOST),
    Form.CELLS: _auto_or_up_to(Form.CELLS, CELLS_MOST),
    Form.DIGEST: _matching(Form.DIGEST, _DIGEST),
}
