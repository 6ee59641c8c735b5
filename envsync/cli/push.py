"""``envsync push``: the environment exists on other machines, verified, or lies where they can take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envsync.cli.arguments import Destinations, destinations, lock_or_store
from envsync.cli.image import ImageChoices, describe_image, image_options, image_to_dict, push_images
from envsync.cli.output import cache_option, plural, result, terminated_as_interrupted, watch
from envsync.cli.output import command as make_command
from envsync.cli.snapshot import find_target, target_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.hooks import Hooks
    from envsync.lock import Lock
    from envsync.runner.provision import Prepared
    from envsync.runner.storing import Gathered
    from envsync.stores.pulling import Pulled
    from envsync.stores.pushing import Pushed

__all__ = ["command"]


@make_command("push", short_help="Make this environment exist on other machines, in a store, or as an image.")
@click.argument(
    "goals", metavar="DESTINATION...", nargs=-1, required=True, callback=destinations, type=click.UNPROCESSED
)
@click.option(
    "--lock",
    "lock_file",
    metavar="FILE|STORE#NAME",
    callback=lock_or_store,
    help="Push the packages of this lock, not those installed now; local code goes along as it is now. Or "
    "what was pushed to a store, local code as it was then too.",
)
@click.option(
    "--for",
    "target",
    metavar="TARGET",
    callback=target_for,
    help="Into a store: lock for another machine, as envsync snapshot does.",
)
@click.option(
    "--allow-substitutes",
    is_flag=True,
    help="Where an installed version has no wheel for a host, push another version of that package.",
)
@cache_option
@image_options
def command(
    goals: Destinations,
    lock_file: str | None,
    target: str | None,
    allow_substitutes: bool,
    cache: str | None,
    images: ImageChoices,
) -> None:
    """Make this environment exist on hosts, verified, or put it into a store, or into a registry as an image.

    A DESTINATION is a host: ssh://[user@]host[:port], a name of your ~/.ssh/config, or local. It needs
    neither Python nor uv nor the internet: what it lacks is sent. An environment that is there already is
    verified and left alone.

    Or it is a store, for other machines to start from: file:///folder[#NAME], s3://bucket/folder[#NAME], or
    any URL that fsspec knows. What the store has is not sent again.

    Or it is an image, made without a container engine (unless --builder says so):
    registry.example.org/team/analysis[:TAG], or oci:FOLDER[:TAG]. The tag is the environment's digest if none
    is given. Layers that the registry has are neither made nor sent again.
    """
    if target is not None and (lock_file is not None or not goals.stores):
        raise click.UsageError(
            "--for says what to lock for a store: hosts are probed, and a lock has its own"
        )
    if cache is not None and not goals.hosts and target is None:
        raise click.UsageError("--cache is the cache folder of a host, and no host is named")
    if images.named and not goals.images:
        raise click.UsageError(f"{images.named} is for images, and none is named")
    if images.clash:
        raise click.UsageError(images.clash)
    if images.builder and any(name.startswith("oci:") for name in goals.images):
        raise click.UsageError("Docker pushes to registries only: leave out --builder for oci:FOLDER")
    from envsync.runner.locking import read_lock

    with watch() as hooks, terminated_as_interrupted():
        lock = read_lock(lock_file)
        prepared = _to_hosts(goals.hosts, lock, allow_substitutes, cache, hooks) if goals.hosts else []
        pushed: list[Pushed] = []
        trees: list[dict[str, Any]] = []
        if goals.stores:
            gathered = _gather(lock, target, allow_substitutes, cache, hooks)
            pushed = [_to_store(url, gathered, hooks) for url in goals.stores]
            trees = [
                {"name": one.name, "digest": one.digest, "left_out": [list(each) for each in one.left_out]}
                for one in gathered.manifests
            ]
        pushed_images = (
            push_images(goals.images, images, lock, allow_substitutes, hooks) if goals.images else []
        )
    shown = [_shown(url) for url in goals.stores]
    result(
        {
            "hosts": [_host_to_dict(one) for one in prepared],
            "stores": [
                {"store": name, **_store_to_dict(one), "trees": trees}
                for name, one in zip(shown, pushed, strict=True)
            ],
            "images": [image_to_dict(one) for one in pushed_images],
        },
        lambda: "\n".join(
            [
                *map(_describe_host, prepared),
                *(_describe_store(name, one) for name, one in zip(shown, pushed, strict=True)),
                *map(describe_image, pushed_images),
            ]
        ),
    )


def _to_hosts(
    names: Sequence[str],
    lock: Lock | Pulled | None,
    allow_substitutes: bool,
    cache: str | None,
    hooks: Hooks,
) -> list[Prepared]:
    import asyncio

    from envsync.runner.hosts import parse_host
    from envsync.runner.provision import prepare

    async def push() -> list[Prepared]:
        hosts = [parse_host(name) for name in names]
        try:
            prepared = await prepare(
                hosts,
                lock=lock,
                cache=cache,
                allow_substitutes=allow_substitutes,
                hooks=hooks,
                cwd=str(Path.cwd()),
            )
            await asyncio.gather(*(one.session.close() for one in prepared))
        finally:
            await asyncio.gather(*(host.close() for host in hosts))
        return prepared

    return asyncio.run(push())


def _gather(
    lock: Lock | Pulled | None, target: str | None, allow_substitutes: bool, cache: str | None, hooks: Hooks
) -> Gathered:
    """Have everything here that goes into stores."""
    import asyncio

    from envsync.indexes import read_settings
    from envsync.runner.storing import gather
    from envsync.snapshot import capture
    from envsync.store import default_store

    snapshot = capture(cwd=str(Path.cwd()))
    store, settings = default_store(), read_settings()
    chosen = None if target is None else find_target(target, snapshot, store, settings, hooks, cache=cache)
    return asyncio.run(
        gather(
            snapshot,
            lock=lock,
            target=chosen,
            store=store,
            settings=settings,
            allow_substitutes=allow_substitutes,
            hooks=hooks,
        )
    )


def _to_store(url: str, gathered: Gathered, hooks: Hooks) -> Pushed:
    from envsync.stores import open_store, parse
    from envsync.stores.pushing import push

    return push(
        gathered.lock,
        gathered.manifests,
        gathered.store,
        open_store(url),
        name=parse(url)[1],
        supplies=gathered.supplies,
        hooks=hooks,
    )


def _shown(url: str) -> str:
    from envsync.stores import shown

    return shown(url)


def _describe_host(one: Prepared) -> str:
    how = "made" if one.environment.created else "was there"
    sent = f", {one.sent / 1e6:.1f} MB sent" if one.sent else ""
    return f"{one.session.host.name}: {how}, verified{sent}, {one.seconds:.1f} s: {one.environment.prefix}"


def _describe_store(name: str, one: Pushed) -> str:
    sent = f"{plural(one.sent, 'file')} sent ({one.size / 1e6:.1f} MB)" if one.sent else "nothing sent"
    return (
        f"{name}#{one.record.name}: {sent}, {one.there} were there ({one.there_size / 1e6:.1f} MB), "
        f"{one.seconds:.1f} s: environment {one.record.lock[:12]}"
    )


def _store_to_dict(one: Pushed) -> dict[str, Any]:
    return {
        "name": one.record.name,
        "environment": one.record.lock,
        "record": one.record.file,
        "new": one.new,
        "sent": one.size,
        "files_sent": one.sent,
        "files_there": one.there,
        "size": one.record.size,
        "seconds": round(one.seconds, 3),
    }


def _host_to_dict(one: Prepared) -> dict[str, Any]:
    return {
        "host": one.session.host.name,
        "environment": one.environment.digest,
        "prefix": one.environment.prefix,
        "python": one.environment.python,
        "created": one.environment.created,
        "sent": one.sent,
        "seconds": round(one.seconds, 3),
        "trees": [
            {"name": manifest.name, "folder": folder, "left_out": [list(each) for each in manifest.left_out]}
            for manifest, folder in one.trees
        ],
        "differences": [difference.to_dict() for difference in one.differences],
    }
