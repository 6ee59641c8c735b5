"""Files and folders that never ship, by what they are called or hold: secrets, caches, build output."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path

__all__ = ["has_init", "is_package", "made_here", "refused_file", "refused_folder"]

_FOLDERS = {
    **dict.fromkeys((".git", ".hg", ".svn", ".bzr", "_darcs", "CVS"), "version control"),
    **dict.fromkeys(("__pycache__", "__pypackages__"), "a cache"),
    "node_modules": "JavaScript packages",
    **dict.fromkeys(("dask-worker-space", "dask-scratch-space"), "Dask's scratch space"),
    "envsync-wheels": "belongs to a lock",
}
_SECRET_FOLDERS = frozenset({".ssh", ".gnupg", ".aws", ".kube", ".docker", ".azure", ".gcloud"})
_SECRETS = (
    *(".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.ppk", ".netrc", "_netrc", ".pypirc", "pip.conf"),
    *(".git-credentials", ".npmrc", ".pgpass", ".htpasswd", ".dockercfg", ".dockerconfigjson", "kubeconfig"),
    *(
        "credentials",
        "*credentials*.json",
        "credentials.*",
        "client_secret*.json",
        "service[-_]account*.json",
    ),
    *(
        "secrets.toml",
        "secrets.y*ml",
        "secrets.json",
        "secrets.ini",
        ".vault_pass*",
        ".s3cfg",
        ".boto",
        "*.token",
        *("token.txt", "*[-_]token.txt", "token.json", "*[-_]token.json"),
        *("password.txt", "passwords.txt", "secret.txt", "secrets.txt", "api[-_]key.txt", "apikey.txt"),
    ),
)
_SECRET = re.compile("|".join(fnmatch.translate(pattern) for pattern in _SECRETS), re.IGNORECASE)
_NOT_SECRET = re.compile(r"\.env\.(example|sample|template|dist)|.*\.pub|.*\.pyi?", re.IGNORECASE)


def refused_folder(name: str, beside: set[str], at: str, *, top: bool) -> str:
    """Return why a folder of that name never ships, or nothing."""
    if name in _SECRET_FOLDERS:
        return "looks like secrets"
    if name in _FOLDERS:
        return _FOLDERS[name]
    if name.startswith("."):
        return "hidden"
    if name.endswith((".egg-info", ".egg")):
        return "build output"
    if top and "pyvenv.cfg" in beside and name in ("bin", "include", "lib", "lib64", "share"):
        return "a virtual environment"
    if (
        name in ("build", "dist")
        and beside & {"pyproject.toml", "setup.py", "setup.cfg"}
        and not has_init(at)
    ):
        return "build output"
    if name == "target" and "Cargo.toml" in beside:
        return "build output"
    return ""


def made_here(names: set[str], at: str) -> str:
    """Return what a folder with these names in it is, if tools make such and nobody's code is in it."""
    if "pyvenv.cfg" in names or "conda-meta" in names:
        return "a virtual environment"
    if {"install", "image"} <= names and os.path.lexists(f"{at}/install/envsync.pth"):
        return "written by envsync build"
    if {"oci-layout", "blobs"} <= names:
        return "images"
    if {"blobs", "environments", "pushes"} <= names:
        return "a store"
    return ""


def refused_file(name: str, at: str) -> str:
    """Return why a file of that name never ships, or nothing."""
    if name == ".git":  # of a worktree or submodule
        return "version control"
    if name.endswith((".pyc", ".pyo")):
        return "bytecode"
    if name.endswith(".pyd"):
        return "built for another system"
    if _SECRET.fullmatch(name) and not _NOT_SECRET.fullmatch(name) and not _public(name, at):
        return "looks like a secret"
    return ""


def _public(name: str, at: str) -> bool:
    """Say whether a .pem file holds certificates and no key."""
    if not name.lower().endswith(".pem"):
        return False
    try:
        content = Path(at).read_bytes()
    except OSError:
        return False
    return b"-----BEGIN CERTIFICATE" in content and b"PRIVATE KEY" not in content


def is_package(names: set[str]) -> bool:
    """Say whether a folder with these names in it is a regular package."""
    return "__init__.py" in names or any(re.fullmatch(r"__init__(\..*)?\.so", name) for name in names)


def has_init(at: str) -> bool:
    """Say whether a path is a folder that is a regular package."""
    try:
        return is_package(set(os.listdir(at)))  # noqa: PTH208 - hot
    except OSError:
        return False
