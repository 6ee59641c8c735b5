"""``envsync build``: what an image is built from, for those who build it themselves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envsync.cli.arguments import lock_or_store
from envsync.cli.image import base_option, platform_option, template_option
from envsync.cli.output import command as make_command
from envsync.cli.output import plural, result, terminated_as_interrupted, watch

if TYPE_CHECKING:
    from envsync.images.context import Context

__all__ = ["command"]


@make_command("build", short_help="Write what Docker builds an image of this environment from.")
@click.argument("folder", metavar="[FOLDER]", required=False, type=click.Path(path_type=Path))
@click.option("--dockerfile", is_flag=True, help="Write the Dockerfile to stdout, and nothing else anywhere.")
@template_option
@base_option
@platform_option
@click.option(
    "--lock",
    "lock_file",
    metavar="FILE|STORE#NAME",
    callback=lock_or_store,
    help="The packages of this lock, not those installed now, or what was pushed to a store.",
)
@click.option(
    "--classic",
    is_flag=True,
    help="For engines without BuildKit: a Dockerfile without RUN --mount.",
)
@click.option(
    "--allow-substitutes",
    is_flag=True,
    help="Where an installed version has no wheel for the image, take another version of that package.",
)
def command(
    folder: Path | None,
    dockerfile: bool,
    template: str | None,
    base: str | None,
    platform: str | None,
    lock_file: str | None,
    classic: bool,
    allow_substitutes: bool,
) -> None:
    """Write into FOLDER what Docker builds an image of this environment from, and build it where you like.

    The folder holds the locked wheels, uv, a Python for bases without one, your local code and a Dockerfile:
    the build asks no index and needs no secret. An engine is not needed here.

    With --dockerfile, print the Dockerfile to change and keep; then name it with --template.

    \b
      envsync build --dockerfile > Dockerfile
      envsync build --template Dockerfile context
      docker build context
    """  # noqa: D301 - click's mark for text that is not to be wrapped
    if dockerfile == (folder is not None):
        raise click.UsageError("say either --dockerfile or a FOLDER")
    if dockerfile:
        if given := "--lock" if lock_file else "--platform" if platform else "":
            raise click.UsageError(f"{given} is for a FOLDER: a Dockerfile is the same for all")
        _print(template or "base", base, mounts=not classic)
        return
    assert folder is not None
    with watch() as hooks, terminated_as_interrupted():
        import asyncio

        from envsync.indexes import read_settings
        from envsync.runner.contexts import DockerOptions, collect
        from envsync.runner.locking import read_lock
        from envsync.snapshot import capture

        options = DockerOptions(
            template=template or "base", base=base or "", platform=platform or "", mounts=not classic
        )
        context = asyncio.run(
            collect(
                folder.absolute(),
                capture(cwd=str(Path.cwd())),
                options,
                lock=read_lock(lock_file),
                settings=read_settings(),
                allow_substitutes=allow_substitutes,
                hooks=hooks,
            )
        )
    result(
        {
            "folder": str(context.folder),
            "environment": context.lock.digest,
            "packages": len(context.lock.artifacts()),
            "base": context.base,
            "trees": [
                {"name": tree.name, "digest": tree.digest, "left_out": [list(each) for each in tree.left_out]}
                for tree in context.trees
            ],
        },
        lambda: _described(folder, context),
    )


def _print(template: str, base: str | None, *, mounts: bool) -> None:
    import sys

    from envsync.images.context import default_base, dockerfile
    from envsync.images.context import template as read

    minor = "{}.{}".format(*sys.version_info[:2])
    text = read(template)
    base = (base or default_base(text, minor)).replace("{minor}", minor)
    click.echo(dockerfile(text, {"BASE": base}, mounts=mounts), nl=False)


def _described(folder: Path, context: Context) -> str:
    packages = plural(len(context.lock.artifacts()), "package")
    trees = plural(len(context.trees), "source tree")
    return (
        f"{folder}: environment {context.lock.digest[:12]}, {packages}, {trees}, on {context.base}\n"
        f"  docker build -t NAME {shlex.quote(str(folder))}"
    )
