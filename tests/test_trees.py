"""Local code travels file by file: what ships, what stays, and what an edit costs."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path

import pytest

from envsync.errors import CaptureError, StoreError
from envsync.exclusions import refused_file
from envsync.gitignore import IgnoreRules
from envsync.snapshot import SourceTree
from envsync.store import FolderStore, digest_of
from envsync.trees import Limits, Manifest, pack

SOABI = "cpython-311-x86_64-linux-gnu"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("ENVSYNC_CACHE", str(tmp_path / "cache"))
    return FolderStore(tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def fill(root: Path, *files: str, **contents: str | bytes) -> None:
    """Write files: those named alone hold their name."""
    for name, content in [*((name, name) for name in files), *contents.items()]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree(
    root: Path,
    *members: tuple[str, str],
    name: str = "project",
    kind: str = "cwd",
) -> SourceTree:
    return SourceTree(
        name=name,
        root=str(root),
        members=members or (("", str(root)),),
        position="back" if kind == "editable" else "front",
        kind=kind,
        distribution=None,
    )


def names(manifest: Manifest) -> list[str]:
    return [path for path, _, _ in manifest.files]


def unpack(manifest: Manifest, store: FolderStore, target: Path) -> Path:
    """What a host does with a manifest."""
    for path, digest, mode in manifest.files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        with store.open(digest) as file:
            (target / path).write_bytes(file.read())
        (target / path).chmod(mode)
    return target


def test_a_scientists_folder_ships_its_code_and_not_its_gigabytes(root: Path, store: FolderStore) -> None:
    fill(
        root,
        *("train.py", "settings.yaml", "lib/model.py", "lib/deep/weights.json", "configs/a.yaml"),
        *("pkg/__init__.py", "pkg/data/table.csv", "pkg/.template", "pkg/sub/mod.py", "README.md"),
        *("explore.ipynb", "notebooks/one.ipynb", "notebooks/helpers.py", ".hidden", "nohup.log"),
        *(".venv/pyvenv.cfg", "env/pyvenv.cfg", "env/lib/python3.11/site-packages/x.py"),
        *("__pycache__/train.cpython-311.pyc", "pkg/__pycache__/m.pyc", "pkg/old.pyc", "node_modules/a.js"),
        *(
            "pylock.envsync.toml",
            "envsync-wheels/a.whl",
            "dask-scratch-space/x",
            ".idea/x",
            "my-scripts/run.py",
        ),
    )
    fill(
        root,
        **{
            "data/raw/big.parquet": b"x" * 6_000_000,
            "data/prepare.py": b"",
            "results/r.bin": b"x" * 6_000_000,
        },
    )
    manifest = pack(tree(root), store, limits=Limits())
    assert names(manifest) == sorted(
        [
            *("README.md", "configs/a.yaml", "data/prepare.py", "lib/deep/weights.json", "lib/model.py"),
            *("my-scripts/run.py", "nohup.log", "notebooks/helpers.py", "pkg/.template", "pkg/__init__.py"),
            *("pkg/data/table.csv", "pkg/sub/mod.py", "settings.yaml", "train.py"),
        ]
    )
    left = dict(manifest.left_out)
    assert "no Python" in left["data/raw/"]
    assert "ENVSYNC_TREE_LIMITS" in left["results/"]
    assert left["env/"] == "a virtual environment"
    assert left["explore.ipynb"] == left["notebooks/one.ipynb"] == "a notebook"
    for path in (".venv/", "node_modules/", "__pycache__/", "pkg/old.pyc", "pylock.envsync.toml", ".hidden"):
        assert path in left


def test_what_envsync_wrote_beside_the_code_does_not_ship(root: Path, store: FolderStore) -> None:
    """Else each push would take the one before along, and no environment would be the same again."""
    context = ("Dockerfile", "image/opt/x.py", "install/envsync.pth", "install/scan.py")
    fill(root, "train.py", *(f"context/{path}" for path in context))
    fill(root, "images/oci-layout", "images/index.json", "images/blobs/sha256/00", "image/install/b.py")
    fill(root, *(f"shared/{path}" for path in ("blobs/00/00", "environments/x", "pushes/y/z.json")))
    fill(root, "deep/er/oci-layout", "deep/er/blobs/x.py", "deep/a.txt")
    manifest = pack(tree(root), store)
    assert names(manifest) == ["deep/a.txt", "image/install/b.py", "train.py"]
    assert dict(manifest.left_out) == {
        "context/": "written by envsync build",
        "images/": "images",
        "shared/": "a store",
        "deep/er/": "images",
    }


def test_everything_is_either_packed_or_listed(root: Path, store: FolderStore) -> None:
    fill(
        root, "a.py", "b/c.py", "b/.env", "d/e.txt", ".git/config", "b/x.pem", "b/y.so", "build/x", "setup.py"
    )
    os.symlink("nowhere", root / "link")
    manifest = pack(tree(root), store)
    told = {*names(manifest), *(path for path, _ in manifest.left_out)}
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        covered = {str(relative), f"{relative}/", *(f"{parent}/" for parent in relative.parents)}
        assert path.is_dir() or covered & told, relative


def test_what_was_packed_runs(root: Path, store: FolderStore, tmp_path: Path) -> None:
    fill(
        root,
        **{
            "main.py": "import ns.pkg, json, pathlib\n"
            "print(ns.pkg.VALUE, json.loads((pathlib.Path(__file__).parent / 'conf/c.json').read_text()))",
            "ns/pkg/__init__.py": "from importlib.resources import files\n"
            "VALUE = (files(__name__) / 'data/v.txt').read_text()",
            "ns/pkg/data/v.txt": "ünï",
            "conf/c.json": "[1]",
        },
    )
    there = unpack(pack(tree(root), store), store, tmp_path / "there")
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", there / "main.py"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "", done.stderr  # -I: the script's folder is not on the path
    done = subprocess.run(
        [sys.executable, "-X", "utf8", there / "main.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "ünï [1]\n"


@pytest.mark.parametrize(
    "name",
    [
        *(
            ".env",
            ".env.local",
            "prod.env",
            "server.pem",
            "tls.key",
            "id_rsa",
            "id_ed25519",
            ".netrc",
            ".pypirc",
        ),
        *("credentials.json", "my-credentials-prod.json", "credentials", "client_secret_1.json", ".npmrc"),
        *("token.txt", "api_token.txt", "passwords.txt", "secrets.txt"),
        *("service_account.json", "secrets.toml", "ID_RSA", "Server.PEM", "pip.conf", ".git-credentials"),
    ],
)
@pytest.mark.parametrize("folder", ["", "pkg/", "conf/"])
def test_secrets_stay(root: Path, store: FolderStore, name: str, folder: str) -> None:
    fill(root, "pkg/__init__.py", "conf/a.yaml")
    fill(root, **{f"{folder}{name}": "canary-5d1c"})
    os.symlink(name, root / folder / "innocent.txt")
    manifest = pack(tree(root), store)
    assert dict(manifest.left_out)[f"{folder}{name}"] == "looks like a secret"
    assert dict(manifest.left_out)[f"{folder}innocent.txt"] == "looks like a secret"
    for path in store.root.rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes()


@pytest.mark.parametrize(
    "name", ["credentials.py", ".env.example", "id_rsa.pub", "environment.yaml", "keys.py"]
)
def test_what_only_sounds_like_a_secret_ships(root: Path, store: FolderStore, name: str) -> None:
    fill(root, "pkg/__init__.py", f"pkg/{name}")
    assert f"pkg/{name}" in names(pack(tree(root), store))


def test_a_bundle_of_certificates_is_no_secret(root: Path) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    fill(root, **{"cacert.pem": certificate, "both.pem": certificate + key})
    assert refused_file("cacert.pem", str(root / "cacert.pem")) == ""
    assert refused_file("both.pem", str(root / "both.pem")) == "looks like a secret"


@needs_git
def test_gitignore_at_every_level(root: Path, store: FolderStore) -> None:
    subprocess.run(["git", "init", "-q", root], check=True)
    fill(
        root,
        *("pkg/__init__.py", "pkg/a.log", "pkg/keep.log", "pkg/sub/x.tmp", "pkg/sub/y.txt", "pkg/out/z.txt"),
        *("scratch.py", "pkg/excluded.txt", "pkg/only/a.txt", "pkg/only/.gitkeep"),
        **{
            ".gitignore": "*.log\n!keep.log\n/scratch.py\nout/\npkg/only/*\n!pkg/only/.gitkeep\n",
            "pkg/sub/.gitignore": "*.tmp\r\n",
            ".git/info/exclude": "excluded.txt\n",
        },
    )
    for kind, members, prefix in (
        ("cwd", (("", str(root)),), "pkg/"),
        ("editable", (("pkg", str(root / "pkg")),), "pkg/"),
        ("path", (("", str(root / "pkg" / "sub")),), ""),  # the rules above a tree hold as well
    ):
        manifest = pack(tree(root, *members, kind=kind), store)
        left = {path for path, why in manifest.left_out if why == "ignored by .gitignore"}
        if prefix:
            assert {"pkg/__init__.py", "pkg/keep.log", "pkg/sub/y.txt", "pkg/only/.gitkeep"} <= set(
                names(manifest)
            )
            assert {"pkg/a.log", "pkg/sub/x.tmp", "pkg/out/", "pkg/excluded.txt", "pkg/only/a.txt"} <= left
        else:
            assert names(manifest) == ["y.txt"]
            assert left == {"x.tmp"}


def test_gitignore_works_without_git(root: Path, store: FolderStore) -> None:
    fill(root, "pkg/__init__.py", "pkg/a.log", **{".gitignore": "*.log\n"})
    manifest = pack(tree(root), store)
    assert names(manifest) == ["pkg/__init__.py"]
    assert dict(manifest.left_out)["pkg/a.log"] == "ignored by .gitignore"


@needs_git
def test_a_checkout_that_ignores_the_whole_tree_does_not_judge_it(root: Path, store: FolderStore) -> None:
    subprocess.run(["git", "init", "-q", root.parent], check=True)
    fill(root.parent, **{".gitignore": "*\n"})
    fill(root, "pkg/__init__.py", "pkg/a.log", **{".gitignore": "*.log\n"})
    assert names(pack(tree(root), store)) == ["pkg/__init__.py"]


@needs_git
def test_a_checkout_inside_the_tree_has_its_own_rules(root: Path, store: FolderStore) -> None:
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "init", "-q", root / "vendored"], check=True)
    fill(root, "vendored/a.txt", "vendored/b.py", "a.txt", "c.py", **{".gitignore": "*.txt\n"})
    assert names(pack(tree(root), store)) == ["c.py", "vendored/a.txt", "vendored/b.py"]


def test_what_a_package_needs_to_import_ships_though_git_ignores_it(root: Path, store: FolderStore) -> None:
    fill(
        root,
        *("pkg/__init__.py", "pkg/_version.py", f"pkg/fast.{SOABI}.so", "pkg/stable.abi3.so", "pkg/plain.so"),
        *("pkg/fast.cpython-39-x86_64-linux-gnu.so", "pkg/fast.cp311-win_amd64.pyd", "pkg/ignored.py"),
        **{".gitignore": "*.so\n_version.py\nignored.py\n"},
    )
    manifest = pack(tree(root), store, soabi=SOABI)
    assert names(manifest) == [
        *("pkg/__init__.py", "pkg/_version.py", f"pkg/fast.{SOABI}.so", "pkg/plain.so", "pkg/stable.abi3.so")
    ]
    left = dict(manifest.left_out)
    assert left["pkg/fast.cpython-39-x86_64-linux-gnu.so"] == "built for another Python"
    assert left["pkg/ignored.py"] == "ignored by .gitignore"


def test_an_extension_module_built_in_place_is_importable_there(root: Path, store: FolderStore) -> None:
    own = f"fast.{sysconfig.get_config_var('SOABI')}.so"
    fill(root, "pkg/__init__.py", f"pkg/{own}")
    assert f"pkg/{own}" in names(pack(tree(root), store))


def test_links(root: Path, store: FolderStore, tmp_path: Path) -> None:
    fill(root, "pkg/__init__.py", "pkg/real.txt", "shared/code.py", ".venv/lib/x.py", ".venv/pyvenv.cfg")
    fill(tmp_path, "outside/secret.txt")
    for link, target in {
        "pkg/inside.txt": "real.txt",
        "pkg/shared": "../shared",
        "pkg/outside": str(tmp_path / "outside"),
        "pkg/outside.txt": "../../outside/secret.txt",
        "pkg/broken": "nowhere",
        "pkg/loop": "..",
        "shared/back": "../pkg",
        "pkg/itself": "itself",
        "pkg/environment": "../.venv/lib",
        "linked": "pkg",
    }.items():
        os.symlink(target, root / link)
    manifest = pack(tree(root), store)
    assert {"pkg/inside.txt", "pkg/shared/code.py", "linked/__init__.py"} <= set(names(manifest))
    left = dict(manifest.left_out)
    assert "out of the tree" in left["pkg/outside"]
    assert "out of the tree" in left["pkg/outside.txt"]
    assert left["pkg/broken"] == "a link to nothing"
    assert "around it" in left["pkg/loop"]
    assert "around it" in left["pkg/shared/back"]
    assert "pkg/itself" in left
    assert "link into .venv" in left["pkg/environment"]


def test_what_is_no_regular_file_is_listed(
    root: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "pkg/__init__.py")
    os.mkfifo(root / "pkg" / "pipe")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("pkg/socket")
        manifest = pack(tree(root), store)
    assert dict(manifest.left_out) == {
        "pkg/pipe": "not a regular file",
        "pkg/socket": "not a regular file",
    }


def test_what_cannot_be_read_is_listed(root: Path, store: FolderStore) -> None:
    fill(root, "pkg/__init__.py", "pkg/locked.txt", "pkg/closed/x.txt")
    pack(tree(root), store)
    (root / "pkg/locked.txt").chmod(0)
    (root / "pkg/closed").chmod(0)
    if os.geteuid() == 0:
        # Root reads everything: be somebody who does not.
        for folder in (root, *root.parents):
            if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        for path in (store.root, *store.root.rglob("*")):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            manifest = pack(tree(root), store)
        finally:
            os.seteuid(0)
    else:
        manifest = pack(tree(root), store)
    (root / "pkg/closed").chmod(0o755)
    assert names(manifest) == ["pkg/__init__.py"]
    assert dict(manifest.left_out) == {
        "pkg/locked.txt": "cannot be read: Permission denied",
        "pkg/closed/": "cannot be read: Permission denied",
    }


def test_nasty_names(root: Path, store: FolderStore, tmp_path: Path) -> None:
    nasty = ["sp ace.txt", "ünï→.txt", "new\nline.txt", "'quo\"te.txt", "-dash", "back\\slash", "*"]
    fill(root, "pkg/__init__.py", *(f"pkg/{name}" for name in nasty), *(f"pkg/d{name}/x" for name in nasty))
    (root / ".gitignore").write_text("line.txt\n")
    Path(os.fsdecode(os.fsencode(root) + b"/pkg/\xff.txt")).write_text("x")
    manifest = pack(tree(root), store)
    assert set(names(manifest)) == {
        "pkg/__init__.py",
        *(f"pkg/{name}" for name in nasty),
        *(f"pkg/d{name}/x" for name in nasty),
    }
    assert manifest.left_out[-1] == ("pkg/\\udcff.txt", "its name is not UTF-8")
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    there = unpack(manifest, store, tmp_path / "there")
    assert (there / "pkg/new\nline.txt").read_text() == "pkg/new\nline.txt"


def test_two_trees_of_one_name_are_two(root: Path, store: FolderStore, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "project"
    fill(root, **{"mod.py": "one"})
    fill(other, **{"mod.py": "two"})
    one, two = pack(tree(root), store), pack(tree(other), store)
    assert one.name == two.name
    assert one.digest != two.digest


def test_the_digest_is_of_name_position_and_files(root: Path, store: FolderStore) -> None:
    fill(root, "a.py", "b.py")
    manifest = pack(tree(root), store)
    assert pack(tree(root), store).digest == manifest.digest
    assert pack(tree(root, name="other"), store).digest != manifest.digest
    assert pack(tree(root, kind="editable"), store).digest != manifest.digest
    fill(root, ".env")
    again = pack(tree(root), store)
    assert again.left_out != manifest.left_out
    assert again.digest == manifest.digest
    (root / "a.py").chmod(0o755)
    assert pack(tree(root), store).digest != manifest.digest


def test_the_digest_does_not_depend_on_where_or_when(root: Path, store: FolderStore, tmp_path: Path) -> None:
    fill(root, "b.py", "a.py", "pkg/__init__.py", "pkg/d.yaml")
    shutil.copytree(root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
    assert pack(tree(tmp_path / "copy"), store).digest == pack(tree(root), store).digest


def test_the_executable_bit_is_kept(root: Path, store: FolderStore) -> None:
    fill(root, "pkg/__init__.py", "pkg/tool")
    (root / "pkg/tool").chmod(0o700)
    (root / "pkg/__init__.py").chmod(0o600)
    assert [mode for _, _, mode in pack(tree(root), store).files] == [0o644, 0o755]


def test_an_edit_ships_one_file(root: Path, store: FolderStore) -> None:
    fill(root, *(f"pkg/m{n}.py" for n in range(20)), "pkg/__init__.py")
    before = pack(tree(root), store)
    blobs = set(store.root.glob("blobs/??/*"))
    fill(root, **{"pkg/m3.py": "edited", "pkg/new.py": "pkg/m4.py"})
    (root / "pkg/m5.py").unlink()
    (root / "pkg/m6.py").chmod(0o755)
    after = pack(tree(root), store)
    assert after.digest != before.digest
    assert len(set(store.root.glob("blobs/??/*")) - blobs) == 1


def test_what_did_not_change_is_not_read_again(
    root: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return digest_of(path)

    monkeypatch.setattr("envsync.trees.digest_of", reading)
    fill(root, "a.py", "b.py")
    monkeypatch.setattr("envsync.trees.RACY", 600.0)
    pack(tree(root), store)
    pack(tree(root), store)
    assert read == ["a.py", "b.py"] * 2  # too young to be trusted
    monkeypatch.setattr("envsync.trees.RACY", 0.0)
    time.sleep(0.05)  # file systems' clocks are a little late
    pack(tree(root), store)
    read.clear()
    pack(tree(root), store)
    assert read == []
    # The same size and the same time, as a tool that keeps times would leave it.
    status = (root / "b.py").stat()
    fill(root, **{"b.py": "edit"})
    os.utime(root / "b.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    digests = {path: digest for path, digest, _ in pack(tree(root), store).files}
    assert digests["b.py"] == digest_of(root / "b.py")
    assert read[0] == "b.py"


def test_a_spoilt_memory_is_forgotten(root: Path, store: FolderStore) -> None:
    fill(root, "a.py")
    manifest = pack(tree(root), store)
    for path in store.root.glob("memory/trees/*"):
        path.write_text("[1, 2")
    assert pack(tree(root), store) == manifest


def test_a_blob_that_was_lost_is_put_again(root: Path, store: FolderStore) -> None:
    fill(root, "a.py")
    ((_, digest, _),) = pack(tree(root), store).files
    path = store.path(digest)
    assert path is not None
    path.unlink()
    pack(tree(root), store)
    assert store.has([digest]) == {digest}


def test_members_are_placed_where_they_say(root: Path, store: FolderStore, tmp_path: Path) -> None:
    fill(root, "src/pkg/__init__.py", "src/single.py", "src/not-a-member.py", "native/fast.py")
    fill(root, "legacy/old.py", "legacy/old.egg-info/PKG-INFO")
    fill(tmp_path, "site/pkg-1.0.dist-info/METADATA", "site/pkg-1.0.dist-info/entry_points.txt")
    manifest = pack(
        tree(
            root,
            ("pkg", str(root / "src/pkg")),
            ("single.py", str(root / "src/single.py")),
            ("pkg/native", str(root / "native")),
            ("pkg-1.0.dist-info", str(tmp_path / "site/pkg-1.0.dist-info")),
            ("gone.py", str(root / "gone.py")),
            ("", str(root / "legacy")),
            ("old.egg-info", str(root / "legacy/old.egg-info")),
            kind="editable",
        ),
        store,
    )
    assert names(manifest) == [
        *("old.egg-info/PKG-INFO", "old.py"),
        *("pkg-1.0.dist-info/METADATA", "pkg-1.0.dist-info/entry_points.txt", "pkg/__init__.py"),
        *("pkg/native/fast.py", "single.py"),
    ]
    assert dict(manifest.left_out) == {"gone.py": "cannot be read: No such file or directory"}


def test_build_output_stays_and_a_package_of_that_name_ships(root: Path, store: FolderStore) -> None:
    fill(root, "pyproject.toml", "build/lib/x.py", "dist/x.whl", "a.egg-info/PKG-INFO", "pkg/__init__.py")
    fill(root, "pkg/build/__init__.py", "pkg/dist/x.txt")
    manifest = pack(tree(root), store)
    assert names(manifest) == ["pkg/__init__.py", "pkg/build/__init__.py", "pkg/dist/x.txt", "pyproject.toml"]
    assert {path for path, why in manifest.left_out if why == "build output"} == {
        "build/",
        "dist/",
        "a.egg-info/",
    }


def test_a_home_folder_ships_its_modules_only(
    root: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root))
    fill(
        root, "script.py", "notes.txt", "pkg/__init__.py", "pkg/x.json", "Documents/a/b.py", "Pictures/p.jpg"
    )
    manifest = pack(tree(root), store)
    assert names(manifest) == ["pkg/__init__.py", "pkg/x.json", "script.py"]
    assert "home" in dict(manifest.left_out)["/"]


def test_a_project_that_is_its_own_environment(root: Path, store: FolderStore) -> None:
    fill(root, "pyvenv.cfg", "bin/activate.py", "lib/python3.11/site-packages/x.py", "train.py")
    assert names(pack(tree(root), store)) == ["pyvenv.cfg", "train.py"]


def test_limits(root: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "pkg/__init__.py", **{"pkg/big.bin": b"x" * 2_000_000, "pkg/code.py": b"#" * 2_000_000})
    fill(root, **{"beside.bin": b"x" * 1_500_000, "folder/beside.bin": b"x" * 1_500_000})
    small = Limits(file=1_900_000, beside=1_000_000)
    manifest = pack(tree(root), store, limits=small)
    assert names(manifest) == ["pkg/__init__.py", "pkg/code.py"]
    left = dict(manifest.left_out)
    assert left["pkg/big.bin"] == "2.0 MB, more than 1.9 MB for a file: raise ENVSYNC_TREE_LIMITS=file=MB"
    assert "ENVSYNC_TREE_LIMITS=beside=MB" in left["beside.bin"]
    assert "ENVSYNC_TREE_LIMITS=beside=MB" in left["folder/"]
    monkeypatch.setenv("ENVSYNC_TREE_LIMITS", "file=3, beside=2")
    assert len(pack(tree(root), store).files) == 5
    monkeypatch.setenv("ENVSYNC_TREE_LIMITS", "everything=3")
    with pytest.raises(CaptureError, match="everything=3"):
        pack(tree(root), store)


def test_of_a_heavy_tree_the_heaviest_data_stays(root: Path, store: FolderStore) -> None:
    fill(root, "pkg/__init__.py", "pkg/small/a.csv", **{f"pkg/heavy/{n}.csv": b"x" * 1000 for n in range(10)})
    fill(root, **{"pkg/heavy/code.py": b"#" * 1000, "pkg/medium/m.csv": b"x" * 5000})
    manifest = pack(tree(root), store, limits=Limits(tree=8000))
    assert names(manifest) == [
        *("pkg/__init__.py", "pkg/heavy/code.py", "pkg/medium/m.csv", "pkg/small/a.csv")
    ]
    assert "ENVSYNC_TREE_LIMITS=tree=MB" in dict(manifest.left_out)["pkg/heavy/*"]
    with pytest.raises(CaptureError, match=r"(?s)holds 0 MB of code.*ENVSYNC_TREE_LIMITS=tree"):
        pack(tree(root), store, limits=Limits(tree=900))
    with pytest.raises(CaptureError, match=r"(?s)more than 5 files.*ENVSYNC_TREE_LIMITS=count"):
        pack(tree(root), store, limits=Limits(count=5))


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_a_manifest_that_leads_out_of_its_tree_is_refused(path: str) -> None:
    data = {"name": "t", "position": "front", "kind": "cwd", "files": [[path, "0" * 64, 0o644]]}
    with pytest.raises(StoreError, match="outside the tree"):
        Manifest.from_dict(data)


@pytest.mark.parametrize(
    "data", [{}, {"name": "t"}, {"name": "t", "position": "f", "kind": "c", "files": [1]}]
)
def test_what_is_no_manifest_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="not a manifest"):
        Manifest.from_dict(data)


@needs_git
@pytest.mark.parametrize("seed", range(12))
def test_gitignore_means_what_git_means(tmp_path: Path, seed: int) -> None:
    """Random rules over random folders: `git check-ignore` is right by definition."""
    choose = random.Random(seed)
    components = ["a", "b", "foo", "build", "x.py", "y.txt", "data", "logs.log", "sp ace", "ünï"]
    rules = textwrap.dedent("""\
        *.txt
        /foo
        foo/
        **/data
        data/**
        a/*
        !a/b
        !*.py
        /a/b/
        a/**/foo
        *
        !foo/
        logs.*
        #c
        \\#c
        sp ace
        x.p[xy]
        /*
        !/a
        foo/*
        !foo/a
        **
        a/**/
        !data/b
        **/foo/**
        b/**/x.py
        [ab]
        ?
        """).splitlines()

    def grow(folder: Path, depth: int) -> None:
        for name in choose.sample(components, 5):
            if depth and choose.random() < 0.6:
                (folder / name).mkdir()
                grow(folder / name, depth - 1)
            else:
                (folder / name).write_text("")
        if choose.random() < 0.6:
            (folder / ".gitignore").write_text(
                "\n".join(choose.choices(rules, k=choose.randint(1, 5))) + "\n"
            )

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".git/info/exclude").write_text("b\n")
    grow(tmp_path, 3)
    verdicts: dict[str, bool] = {}

    def walk(folder: Path, rules: IgnoreRules) -> None:
        for path in folder.iterdir():
            if path.name != ".git":
                ignored = rules.ignores(str(path), folder=path.is_dir())
                verdicts[str(path.relative_to(tmp_path))] = ignored
                if path.is_dir() and not ignored:
                    walk(path, rules.entered(path))

    walk(tmp_path, IgnoreRules.of(tmp_path))
    answer = subprocess.run(
        ["git", "-C", tmp_path, "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(verdicts).encode() + b"\0",
        capture_output=True,
        check=False,
    )
    ignored = set(answer.stdout.decode().split("\0"))
    assert {path for path, verdict in verdicts.items() if verdict} == ignored - {""}
