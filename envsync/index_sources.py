"""Reads the files and variables that `envsync.indexes` speaks of."""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envsync.errors import ResolveError
from envsync.indexes import Index, IndexSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["read"]

_TRUE = ("y", "yes", "t", "true", "on", "1")
# uv's configuration that has nothing to do with what is resolved, and the variables that say the same.
_UV_SETTINGS = {
    "cache-dir": "UV_CACHE_DIR",
    "native-tls": "UV_NATIVE_TLS",
    "system-certs": "UV_SYSTEM_CERTS",
    "offline": "UV_OFFLINE",
}


def read(
    environ: Mapping[str, str],
    *,
    project: str | os.PathLike[str] | None = None,
    prefix: str | os.PathLike[str] | None = None,
) -> IndexSettings:
    """Read everything; see `envsync.indexes.read_settings`."""
    here = Path(project or Path.cwd())
    sources: list[_Source] = [_UvVariables(environ, here)]
    sources += [_UvConfiguration(table, folder, environ) for table, folder in _uv_tables(environ, here)]
    pip = _Pip(_pip_options(environ, Path(prefix or sys.prefix)), here)
    sources.append(pip)
    extra = [index for source in sources for index in source.extra()]
    default = next(filter(None, (source.default() for source in sources)), None)
    indexes = _distinct([*extra, *([default] if default is not None else [])])
    lenient = any(index.explicit for index in indexes) or any(index in indexes for index in pip.extra())
    links = _distinct(link for source in sources for link in source.find_links())
    notes = tuple(f"find-links: there is no {link.path}" for link in links if _missing(link))
    strategy = next(filter(None, (source.text("index-strategy") for source in sources)), "")
    if not strategy and lenient:
        strategy = "unsafe-first-match"
    keyring = next(filter(None, (source.text("keyring-provider") for source in sources)), "")
    uv: dict[str, str] = {}
    for source in sources[1:-1]:
        for key, variable in _UV_SETTINGS.items():
            if variable not in environ and (value := source.text(key)):
                uv.setdefault(variable, value)
    proxied = any(environ.get(key) for name in ("http", "https", "all") for key in _cases(f"{name}_proxy"))
    return IndexSettings(
        indexes=tuple(indexes),
        find_links=tuple(link for link in links if not _missing(link)),
        no_index=_no_index(sources),
        strategy=strategy,
        cert=environ.get("SSL_CERT_FILE") or pip.text("cert") or None,
        client_cert=environ.get("SSL_CLIENT_CERT") or pip.text("client-cert") or None,
        trusted_hosts=tuple(dict.fromkeys(host for source in sources for host in source.trusted_hosts())),
        keyring=keyring in ("subprocess", "import"),
        netrc=_netrc(environ),
        proxy=None if proxied else pip.text("proxy") or None,
        uv=uv,
        notes=notes,
    )


class _Source:
    """One level of settings. `text` gives a setting as text, or ""."""

    def default(self) -> Index | None:
        """The index in place of uv's default."""
        raise NotImplementedError

    def extra(self) -> list[Index]:
        """The others, in order."""
        raise NotImplementedError

    def find_links(self) -> list[Index]:
        raise NotImplementedError

    def trusted_hosts(self) -> list[str]:
        raise NotImplementedError

    def text(self, key: str) -> str:
        raise NotImplementedError


class _UvVariables(_Source):
    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.environ = environ
        self.folder = folder

    def _index(self, text: str, *, default: bool = False) -> Index:
        return Index.parse(text, folder=self.folder, default=default, environ=self.environ)

    def default(self) -> Index | None:
        text = self.text("default-index") or self.text("index-url")
        return self._index(text, default=True) if text else None

    def extra(self) -> list[Index]:
        return [self._index(word) for key in ("index", "extra-index-url") for word in self.text(key).split()]

    def find_links(self) -> list[Index]:
        return [self._index(word) for word in self.text("find-links").split(",") if word.strip()]

    def trusted_hosts(self) -> list[str]:
        return self.text("insecure-host").split()

    def text(self, key: str) -> str:
        return self.environ.get("UV_" + key.upper().replace("-", "_"), "").strip()


class _UvConfiguration(_Source):
    """One file: its top level, and its ``pip`` table, which counts more for what we do."""

    def __init__(self, table: Mapping[str, Any], folder: Path, environ: Mapping[str, str]) -> None:
        pip = table.get("pip")
        self.table = {**table, **(pip if isinstance(pip, Mapping) else {})}
        self.folder = folder
        self.environ = environ

    def _texts(self, key: str) -> list[str]:
        value = self.table.get(key, [])
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]

    def _indexes(self) -> Iterator[Index]:
        entries = self.table.get("index", [])
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, Mapping) and isinstance(entry.get("url"), str):
                text = f"{entry['name']}={entry['url']}" if entry.get("name") else entry["url"]
                yield Index.parse(
                    text,
                    folder=self.folder,
                    default=entry.get("default") is True,
                    explicit=entry.get("explicit") is True,
                    environ=self.environ,
                )

    def default(self) -> Index | None:
        for index in self._indexes():
            if index.default:
                return index
        text = self.text("index-url")
        return Index.parse(text, folder=self.folder, default=True) if text else None

    def extra(self) -> list[Index]:
        named = [index for index in self._indexes() if not index.default]
        return named + [Index.parse(text, folder=self.folder) for text in self._texts("extra-index-url")]

    def find_links(self) -> list[Index]:
        return [Index.parse(text, folder=self.folder) for text in self._texts("find-links")]

    def trusted_hosts(self) -> list[str]:
        return self._texts("allow-insecure-host")

    def text(self, key: str) -> str:
        value = self.table.get(key)
        if isinstance(value, bool):
            return "true" if value else ""
        return value.strip() if isinstance(value, str) else ""


class _Pip(_Source):
    """pip's options, already merged: pip itself lets the first source have its way, lists included."""

    def __init__(self, options: Mapping[str, str], folder: Path) -> None:
        self.options = options
        self.folder = folder

    def default(self) -> Index | None:
        text = self.text("index-url") or self.text("pypi-url")
        return Index.parse(text, folder=self.folder, default=True) if text else None

    def extra(self) -> list[Index]:
        return [Index.parse(word, folder=self.folder) for word in self.text("extra-index-url").split()]

    def find_links(self) -> list[Index]:
        return [Index.parse(word, folder=self.folder) for word in self.text("find-links").split()]

    def trusted_hosts(self) -> list[str]:
        return self.text("trusted-host").split()

    def text(self, key: str) -> str:
        return self.options.get(key, "").strip()


def _no_index(sources: Iterable[_Source]) -> bool:
    """Whoever names an index before somebody forbids them all has one."""
    for source in sources:
        if source.text("no-index").lower() in _TRUE:
            return True
        if source.default() is not None or source.extra():
            return False
    return False


def _distinct(indexes: Iterable[Index]) -> list[Index]:
    """Each URL once: as the default index if it is that, else where it came first."""
    found: dict[str, Index] = {}
    for index in indexes:
        key = index.url.rstrip("/")
        known = found.get(key)
        if known is None or (index.default and not known.default):
            found.pop(key, None)
            found[key] = index
    return list(found.values())


def _missing(link: Index) -> bool:
    return link.path is not None and not link.path.exists()


def _cases(name: str) -> tuple[str, str]:
    return name, name.upper()


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _netrc(environ: Mapping[str, str]) -> str | None:
    home = _home(environ)
    places = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    return next((str(place) for place in places if place.is_file()), None)


def _folders(environ: Mapping[str, str], variable: str, otherwise: str) -> list[Path]:
    return [Path(part) for part in (environ.get(variable) or otherwise).split(os.pathsep) if part]


def _pip_files(environ: Mapping[str, str], prefix: Path) -> Iterator[Path]:
    """The files that pip reads, the one that counts most first."""
    special = environ.get("PIP_CONFIG_FILE")
    if special == os.devnull:
        return
    if special:
        yield Path(special)
    yield prefix / "pip.conf"
    home = _home(environ)
    if sys.platform == "darwin" and (home / "Library/Application Support/pip").is_dir():
        yield home / "Library/Application Support/pip/pip.conf"
    else:
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    yield home / ".pip/pip.conf"
    yield Path("/etc/pip.conf")
    if sys.platform == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
    for folder in _folders(environ, "XDG_CONFIG_DIRS", "/etc/xdg"):
        yield folder / "pip/pip.conf"


def _pip_options(environ: Mapping[str, str], prefix: Path) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in environ.items():
        if key.startswith("PIP_") and value.strip():
            options[_option(key[4:])] = value
    files = [_ini(file) for file in _pip_files(environ, prefix)]
    # pip gives the section of a command more weight than [global], whichever file they are in.
    for section in ("install", "global"):
        for parser in files:
            if parser is not None and parser.has_section(section):
                for key, value in parser.items(section):
                    options.setdefault(_option(key), value)
    return options


def _option(key: str) -> str:
    return key.lower().replace("_", "-").removeprefix("--")


def _ini(file: Path) -> configparser.RawConfigParser | None:
    parser = configparser.RawConfigParser()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("pip's", file, type(error).__name__) from None
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # The error's own text quotes the line, and passwords are in such lines.
        line = getattr(error, "lineno", None) or next((n for n, _ in getattr(error, "errors", ())), "?")
        raise _unreadable("pip's", file, f"line {line} is not as in an INI file") from None
    return parser


def _uv_tables(environ: Mapping[str, str], here: Path) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The tables of uv's configuration, the one that counts most first, and the folders they are in."""
    if environ.get("UV_NO_CONFIG", "").lower() in _TRUE:
        return
    if named := environ.get("UV_CONFIG_FILE"):
        if (table := _toml(Path(named))) is None:
            raise _unreadable("uv's", Path(named), "there is no such file")
        yield table, Path(named).absolute().parent
        return
    for folder in (here.absolute(), *here.absolute().parents):
        if (table := _toml(folder / "uv.toml")) is not None:
            yield table, folder
            break
        tool = (_toml(folder / "pyproject.toml", "[tool.uv]") or {}).get("tool")
        if isinstance(tool, Mapping) and isinstance(tool.get("uv"), Mapping):
            yield tool["uv"], folder
            break
    user = Path(environ.get("XDG_CONFIG_HOME") or _home(environ) / ".config") / "uv/uv.toml"
    system = [folder / "uv/uv.toml" for folder in _folders(environ, "XDG_CONFIG_DIRS", "/etc/xdg")]
    for files in ([user], [*system, Path("/etc/uv/uv.toml")]):
        for file in files:
            if (table := _toml(file)) is not None:
                yield table, file.parent
                break


def _toml(file: Path, wanted: str = "") -> Mapping[str, Any] | None:
    try:
        text = file.read_text(encoding="utf-8")
        # A project's file that does not speak of uv may be as wrong as it likes.
        if wanted and "tool" not in text and "uv" not in text:
            return None
        return tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)", str(error))
        raise _unreadable("uv's", file, f"not valid TOML {place.group() if place else ''}".strip()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("uv's", file, type(error).__name__) from None


def _unreadable(whose: str, file: Path, why: str) -> ResolveError:
    return ResolveError(
        f"{whose} configuration cannot be read: {why}",
        where=str(file),
        hint="It says where packages come from, so nothing can be locked without it: correct or remove it.",
    )
