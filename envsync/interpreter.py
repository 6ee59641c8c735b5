"""The client's own interpreter as a relocatable archive, for hosts that have none that fits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InterpreterArchive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpreterArchive:
    """A packed interpreter, a blob in the store.

    Attributes
    ----------
    version : str
        Such as ``"3.11.7"``.
    digest : str
        sha256 of the .tar.gz. It unpacks (without a top folder) to ``bin/python3`` and ``lib/``.
    size : int
        Bytes.
    machine : str
        Such as ``"x86_64"``.
    libc : tuple of (str, str) or None
        The oldest libc that runs it, such as ``("glibc", "2.34")``.
    """

    version: str
    digest: str
    size: int
    machine: str
    libc: tuple[str, str] | None
