"""What the layers of a base image hold that matters to an environment: its Pythons and its C library.

It is found in the files themselves, so that it does not matter which system the base is of, or which package
manager, and nothing of it has to run: an image may be for another machine.
"""

from __future__ import annotations

import io
import posixpath
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from envsync.target import version_numbers

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable, Mapping

    from envsync.images.oci import Descriptor, Images
    from envsync.images.reading import Content

__all__ = ["Facts", "Python", "look"]

_FOLDER = r"(?:usr/|usr/local/|opt/[^/]+/)?"
_PYTHON = re.compile(r"(?:.*/)?bin/python(3\.\d+)\Z")
_HOME = re.compile(_FOLDER + r"bin/python3\.\d+\Z")
_LIBPYTHON = re.compile(r"(?:.*/)?lib(?:64)?/(?:[^/]+/)?libpython(3\.\d+)\.so\.1\.0\Z")
_STDLIB = re.compile(r"(.*/)?lib(?:64)?/python(3\.\d+)/asyncio/__init__\.py\Z")
_LIBRARY = re.compile(
    r"(?:usr/)?lib(?:32|64)?/(?:[^/]+/)?"
    r"(libc\.so\.6|libc-2\.\d+\.so|ld-musl-[^/]+\.so\.1|(?<=-linux-musl/)libc\.so|libstdc\+\+\.so\.6|libgcc_s\.so\.1)\Z"
)
_GLIBC = re.compile(rb"GNU C Library [^\n]*?version (\d+\.\d+)")
_MUSL = re.compile(rb"\x00(1\.\d+\.\d+)[^\x00]{0,8}\x00")
_LARGEST = 64 << 20  # bytes of an executable that is read
_PLACES = ("usr/local/bin/", "usr/bin/", "bin/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """A CPython of an image.

    Attributes
    ----------
    path : str
        Of the executable, no link: ``"/usr/bin/python3.11"``.
    version : str
        Such as ``"3.11.2"``.
    libc : str
        ``"glibc"`` or ``"musl"``: what it is linked to.
    """

    path: str
    version: str
    libc: str

    @property
    def minor(self) -> str:
        """Such as ``"3.11"``."""
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a base image offers.

    Attributes
    ----------
    libc : (str, str) or None
        Such as ``("glibc", "2.36")``; None if there is none.
    pythons : tuple of Python
        Those with a standard library, in the order of a PATH.
    libraries : tuple of str
        Of the libraries that wheels expect of every system, those that are there.
    """

    libc: tuple[str, str] | None
    pythons: tuple[Python, ...] = ()
    libraries: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Facts:
        """Read what `to_dict` returned."""
        return cls(
            libc=None if data["libc"] is None else (data["libc"][0], data["libc"][1]),
            pythons=tuple(Python(**one) for one in data["pythons"]),
            libraries=tuple(data["libraries"]),
        )


def look(images: Images, layers: Iterable[Descriptor], variables: Mapping[str, str]) -> Facts:
    """Read the layers of an image, lowest first; `variables` are those that its configuration sets."""
    from envsync.images.reading import members  # mostly it is remembered what a base holds

    seen = _Seen(variables.get("PYTHON_VERSION", ""))
    for layer in layers:
        above: set[str] = set()
        for member, content in members(images, layer):
            seen.add(member, content, above)
    return seen.facts()


class _Seen:
    """The files that matter, as they are above one another."""

    def __init__(self, said: str) -> None:
        self.said = said  # what images of Python say of the one in /usr/local
        self.links: dict[str, str] = {}
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, member: tarfile.TarInfo, content: Content, above: set[str]) -> None:
        """Take note of a member of a layer; `above` is what that layer has itself."""
        path = posixpath.normpath(member.name).lstrip("/")
        folder, _, name = path.rpartition("/")
        if name == ".wh..wh..opq":
            self._remove(f"{folder}/", above)
        elif name.startswith(".wh."):
            gone = posixpath.join(folder, name[4:])
            self._remove(gone, above)
            self._remove(f"{gone}/", above)
        elif member.isdir():
            self.links.pop(path, None)
        else:
            interesting = _PYTHON.match(path) or path.count("/") < 2
            self.files.pop(path, None)
            self.links.pop(path, None)
            if member.issym() and (interesting or _LIBRARY.match(path)):
                self.links[path] = posixpath.normpath(posixpath.join("/", folder, member.linkname)).lstrip(
                    "/"
                )
                above.add(path)
            elif member.islnk():
                linked = posixpath.normpath(member.linkname).lstrip("/")
                if linked in self.files:
                    self.files[path] = self.files[linked]
                    above.add(path)
            elif member.isreg() and (found := _facts_of(path, member, content)) is not None:
                self.files[path] = found
                above.add(path)

    def _remove(self, start: str, above: set[str]) -> None:
        for held in (self.files, self.links):
            for path in [
                one for one in held if one == start or (start[-1:] == "/" and one.startswith(start))
            ]:
                if path not in above:
                    del held[path]

    def facts(self) -> Facts:
        """Put together what was seen."""
        libraries = {m[1] for path in (*self.files, *self.links) if (m := _LIBRARY.match(path)) is not None}
        glibc = [one["glibc"] for one in self.files.values() if one.get("glibc")]
        musl = [one["musl"] for one in self.files.values() if one.get("musl")]
        libc = None
        if glibc:
            libc = ("glibc", max(glibc, key=version_numbers))
        elif musl:
            libc = ("musl", max(musl, key=version_numbers))
        return Facts(
            libc=libc,
            pythons=self._pythons(),
            libraries=tuple(sorted(libraries & {"libstdc++.so.6", "libgcc_s.so.1"})),
        )

    def _pythons(self) -> tuple[Python, ...]:
        found: dict[str, Python] = {}
        named = [path for path in (*self.files, *self.links) if _HOME.match(path)]

        def order(path: str) -> tuple[int, str]:
            return next((at for at, place in enumerate(_PLACES) if path.startswith(place)), 9), path

        for path in sorted(named, key=order):
            real = self._real(path)
            about = self.files.get(real)
            match = _PYTHON.match(real)
            if about is None or match is None or not about.get("libc"):
                continue
            prefix, minor = posixpath.dirname(posixpath.dirname(real)), match[1]
            stdlib = [one for one, what in self.files.items() if what.get("stdlib") == minor]
            if not any(self._in(one, prefix) for one in stdlib):
                continue
            versions = about["versions"] or [
                version
                for one, what in self.files.items()
                if what.get("of") == minor and self._in(one, prefix)
                for version in what["versions"]
            ]
            if real.startswith("usr/local/") and self.said.startswith(f"{minor}."):
                versions = [self.said]
            if versions:
                made = Python(path=f"/{real}", version=versions[0], libc=about["libc"])
                found.setdefault(made.path, made)
        return tuple(found.values())

    def _in(self, path: str, prefix: str) -> bool:
        """Tell whether a file of a `lib` folder is of the installation in a prefix."""
        head = re.split(r"(?:^|/)lib(?:64)?/", path, maxsplit=1)[0]
        return self._real(head) == self._real(prefix) or {head, prefix} <= {"", "usr"}

    def _real(self, path: str) -> str:
        """Follow links, of the path itself and of the folders at the top."""
        for _ in range(16):
            if path in self.links:
                path = self.links[path]
                continue
            top, _, rest = path.partition("/")
            if rest and top in self.links:
                path = f"{self.links[top]}/{rest}"
                continue
            break
        return path


def _facts_of(path: str, member: tarfile.TarInfo, content: Content) -> dict[str, Any] | None:
    """Return what matters of a file, None if nothing does."""
    if (match := _STDLIB.match(path)) is not None:
        return {"stdlib": match[2]}
    python, shared = _PYTHON.match(path), _LIBPYTHON.match(path)
    library = _LIBRARY.match(path)
    if member.size > _LARGEST or not (python or shared or library):
        return None
    data = content.read()
    if python or shared:
        minor = (python or shared)[1]  # type: ignore[index]
        # linkers let a string be the end of another one: what stands alone is surer
        told = [
            (found[1].decode(), data[found.start() - 1 : found.start()])
            for found in re.finditer(rb"(%s\.\d+)\+?\x00" % re.escape(minor.encode()), data)
        ]
        versions = [one for one, before in told if before == b"\0"] or [
            one for one, before in told if before not in b".0123456789"
        ]
        from envsync.elf import read_elf_from

        elf = read_elf_from(io.BytesIO(data)) if python else None
        return {
            "versions": sorted(set(versions), key=version_numbers, reverse=True),
            "libc": "" if elf is None else "musl" if "musl" in elf.loader else "glibc",
            "of": "" if python else minor,
        }
    name = library[1]  # type: ignore[index]
    if name.startswith("ld-musl-") or name == "libc.so":
        found = _MUSL.search(data)
        return {"musl": found[1].decode() if found else "1"}
    if name.startswith("libc"):
        found = _GLIBC.search(data)
        return {"glibc": found[1].decode()} if found else None
    return {}
