"""What pip, uv and the environment say of indexes is read, put in order, and passed on to uv."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from envsync.errors import ResolveError
from envsync.indexes import Index, IndexSettings, read_settings, without_credentials

CANARY = "canary-7f3a9c"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home/.config/pip").mkdir(parents=True)
    (tmp_path / "home/.config/uv").mkdir(parents=True)
    (tmp_path / "project/deep").mkdir(parents=True)
    return tmp_path


def read(home: Path, **environ: str) -> IndexSettings:
    variables = {
        "HOME": str(home / "home"),
        "XDG_CONFIG_HOME": str(home / "home/.config"),
        "XDG_CONFIG_DIRS": str(home / "etc"),
        "PATH": "/usr/bin",
        **environ,
    }
    return read_settings(variables, project=home / "project/deep", prefix=home / "prefix")


def pip_conf(home: Path, text: str) -> None:
    (home / "home/.config/pip/pip.conf").write_text(dedent(text))


def uv_toml(home: Path, text: str) -> None:
    (home / "home/.config/uv/uv.toml").write_text(dedent(text))


def urls(settings: IndexSettings) -> list[str]:
    return [index.url for index in settings.indexes]


def test_nothing_configured_leaves_uv_its_default(home: Path) -> None:
    settings = read(home)
    assert settings.indexes == ()
    assert not settings.no_index
    assert not {"UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_STRATEGY"} & settings.uv_environment().keys()
    (default,) = settings.searched()
    assert default.default
    assert default.url.startswith("https://")


def test_multi_line_extra_index_url_of_pip(home: Path) -> None:
    pip_conf(
        home,
        """\
        [global]
        index-url = https://main.example.org/simple
        extra-index-url =
            https://one.example.org/simple
            https://two.example.org/simple
        trusted-host =
            one.example.org
            two.example.org
        """,
    )
    settings = read(home)
    assert urls(settings) == [
        "https://one.example.org/simple",
        "https://two.example.org/simple",
        "https://main.example.org/simple",
    ]
    environment = settings.uv_environment()
    assert environment["UV_INDEX"] == "https://one.example.org/simple https://two.example.org/simple"
    assert environment["UV_DEFAULT_INDEX"] == "https://main.example.org/simple"
    assert environment["UV_INSECURE_HOST"] == "one.example.org two.example.org"
    assert environment["UV_INDEX_STRATEGY"] == "unsafe-first-match"  # pip's are all equal


def test_pips_files_and_sections_in_pips_order(home: Path) -> None:
    pip_conf(home, "[global]\nindex-url = https://user.example.org/s\ncert = /user.pem\nproxy = http://p:1\n")
    (home / "prefix").mkdir()
    (home / "prefix/pip.conf").write_text("[global]\nindex_url = https://venv.example.org/s\n")
    assert urls(read(home)) == ["https://venv.example.org/s"]
    pip_conf(
        home,
        "[global]\ncert=/user.pem\nproxy=http://p:1\n[install]\nindex-url=https://install.example.org/s\n",
    )
    assert urls(read(home)) == ["https://install.example.org/s"]
    (home / "special.conf").write_text("[install]\nindex-url = https://special.example.org/s\n")
    settings = read(home, PIP_CONFIG_FILE=str(home / "special.conf"))
    assert urls(settings) == ["https://special.example.org/s"]
    assert settings.cert == "/user.pem"
    assert settings.uv_environment()["HTTPS_PROXY"] == "http://p:1"
    assert "HTTPS_PROXY" not in read(home, https_proxy="http://own:2").uv_environment()
    assert urls(
        read(home, PIP_CONFIG_FILE=str(home / "special.conf"), PIP_INDEX_URL="https://e.example.org/s")
    ) == ["https://e.example.org/s"]
    assert urls(read(home, PIP_CONFIG_FILE="/dev/null")) == []


def test_uv_configuration_of_the_project_counts_before_the_users(home: Path) -> None:
    (home / "project/pyproject.toml").write_text(
        dedent(
            """\
            [[tool.uv.index]]
            name = "corp"
            url = "https://corp.example.org/simple"
            default = true
            [[tool.uv.index]]
            name = "gpu"
            url = "https://gpu.example.org/simple"
            explicit = true
            [[tool.uv.index]]
            url = "https://more.example.org/simple"
            [tool.uv.pip]
            find-links = ["../wheels"]
            """
        )
    )
    (home / "wheels").mkdir()
    uv_toml(home, 'index-url = "https://user.example.org/simple"\nkeyring-provider = "subprocess"\n')
    settings = read(home)
    assert [index.url for index in settings.searched()] == [
        "https://more.example.org/simple",
        "https://corp.example.org/simple",
        "https://gpu.example.org/simple",
    ]
    assert [link.path for link in settings.find_links] == [home / "wheels"]
    assert settings.keyring
    environment = settings.uv_environment()
    assert environment["UV_INDEX"] == "https://more.example.org/simple https://corp.example.org/simple"
    assert environment["UV_DEFAULT_INDEX"] == "https://gpu.example.org/simple"
    assert environment["UV_INDEX_STRATEGY"] == "unsafe-first-match"
    assert urls(read(home, UV_NO_CONFIG="1")) == []


def test_uvs_own_indexes_keep_its_first_index_rule(home: Path) -> None:
    uv_toml(home, '[[index]]\nname = "a"\nurl = "https://a.example.org/simple"\n')
    assert "UV_INDEX_STRATEGY" not in read(home).uv_environment()
    assert read(home, UV_INDEX_STRATEGY="unsafe-best-match").strategy == "unsafe-best-match"


def test_variables_of_uv_count_before_pips(home: Path) -> None:
    pip_conf(home, "[global]\nno-index = true\n")
    assert read(home).no_index
    settings = read(
        home,
        UV_INDEX="first=https://first.example.org/simple https://second.example.org/simple",
        UV_DEFAULT_INDEX="https://default.example.org/simple",
        PIP_INDEX_URL="https://pip.example.org/simple",
        PIP_EXTRA_INDEX_URL="https://third.example.org/simple https://second.example.org/simple/",
    )
    assert not settings.no_index
    assert urls(settings) == [
        "https://first.example.org/simple",
        "https://second.example.org/simple",
        "https://third.example.org/simple",
        "https://default.example.org/simple",
    ]


def test_find_links_that_are_not_there_are_noted(home: Path) -> None:
    (home / "a b,c").mkdir()
    pip_conf(home, f"[global]\nfind-links =\n    {home}/nowhere\n    https://links.example.org/page\n")
    settings = read(home, UV_FIND_LINKS=str(home / "project"))
    assert [link.url for link in settings.find_links] == [
        f"file://{home}/project",
        "https://links.example.org/page",
    ]
    assert len(settings.notes) == 1
    assert "nowhere" in settings.notes[0]
    assert Index.parse(str(home / "a b,c")).url == f"file://{home}/a%20b%2Cc"


def test_credentials_are_apart_and_only_in_uvs_environment(home: Path) -> None:
    pip_conf(
        home, f"[global]\nextra-index-url = https://me%40corp:{CANARY}%2F1@one.example.org/team/simple\n"
    )
    settings = read(
        home,
        UV_INDEX="two=https://two.example.org/simple",
        UV_INDEX_TWO_USERNAME="you",
        UV_INDEX_TWO_PASSWORD=f"{CANARY}-2",
    )
    assert CANARY not in repr(settings)
    assert urls(settings) == ["https://two.example.org/simple", "https://one.example.org/team/simple"]
    assert settings.auth_for("https://one.example.org/files/x.whl") == ("me@corp", f"{CANARY}/1")
    assert settings.auth_for("https://two.example.org/files/x.whl") == ("you", f"{CANARY}-2")
    assert settings.auth_for("http://two.example.org/files/x.whl") is None  # never over another scheme
    assert settings.auth_for("https://two.example.org.evil.example/x.whl") is None
    assert settings.auth_for("https://two.example.org:8443/x.whl") is None
    assert (
        f"https://me%40corp:{CANARY}%2F1@one.example.org/team/simple" in settings.uv_environment()["UV_INDEX"]
    )


def test_the_index_that_fits_best_gives_the_credentials() -> None:
    settings = IndexSettings(
        indexes=(
            Index.parse("https://a:one@example.org/a/simple"),
            Index.parse("https://b:two@example.org/b/simple"),
        )
    )
    assert settings.auth_for("https://example.org/b/files/x.whl") == ("b", "two")
    assert settings.auth_for("https://example.org/a/files/x.whl") == ("a", "one")


def test_netrc(home: Path) -> None:
    netrc = home / "home/.netrc"
    netrc.write_text(f"machine private.example.org login me password {CANARY}\n")
    netrc.chmod(0o600)
    settings = read(home)
    assert settings.auth_for("https://private.example.org/x.whl") == ("me", CANARY)
    assert settings.auth_for("https://other.example.org/x.whl") is None
    assert settings.uv_environment()["NETRC"] == str(netrc)
    netrc.write_text("machine what is\nthis")
    assert settings.auth_for("https://private.example.org/x.whl") is None


def test_keyring_program(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = home / "bin/keyring"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'get https://k.example.org/simple me' ] && echo {CANARY}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "keyring", None)
    url = "https://me@k.example.org/simple"
    settings = read(home, PIP_INDEX_URL=url, PIP_KEYRING_PROVIDER="subprocess")
    assert settings.auth_for("https://k.example.org/simple/x/") == ("me", CANARY)
    assert settings.uv_environment()["UV_KEYRING_PROVIDER"] == "subprocess"
    assert read(home, PIP_INDEX_URL=url).auth_for("https://k.example.org/simple/x/") == ("me", "")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("home/.config/pip/pip.conf", f"[global]\nindex-url {CANARY}\n"),
        ("home/.config/pip/pip.conf", f"https://u:{CANARY}@x.example.org\n"),
        ("home/.config/uv/uv.toml", f'index-url = "https://u:{CANARY}@x.example.org\n'),
        ("project/uv.toml", f"index-url = https://u:{CANARY}@x.example.org\n"),
    ],
)
def test_broken_configuration_is_named_and_not_quoted(home: Path, file: str, text: str) -> None:
    (home / file).write_text(text)
    with pytest.raises(ResolveError, match="configuration cannot be read") as caught:
        read(home)
    assert caught.value.where == str(home / file)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_url_without_credentials() -> None:
    url = f"https://me:{CANARY}@example.org:8443/simple/x.whl?token={CANARY}#sha256=00"
    assert without_credentials(url) == f"https://example.org:8443/simple/x.whl?token={CANARY}"
    assert without_credentials(url, query=False) == "https://example.org:8443/simple/x.whl"
