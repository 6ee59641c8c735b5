"""Which distributions an environment was made from: those that no other requires."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["active_requirements", "only_for", "parse_requirements", "roots"]


def parse_requirements(lines: Iterable[str]) -> tuple[Requirement, ...]:
    """Parse Requires-Dist lines; those that no tool could obey are left out, as tools do."""
    return tuple(found for found in map(_parse, lines) if found is not None)


@functools.lru_cache(maxsize=1 << 14)  # a session looks at the same environment again and again
def _parse(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def active_requirements(
    requirements: Iterable[Requirement], environment: Mapping[str, str], extras: Iterable[str] = ()
) -> list[Requirement]:
    """Return the requirements whose markers hold.

    Parameters
    ----------
    requirements : iterable of Requirement
        Of one distribution.
    environment : mapping
        Marker variables (PEP 508).
    extras : iterable of str
        The distribution's extras that are wanted, normalised.
    """
    variants = [{**environment, "extra": extra} for extra in ("", *extras)]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate(dict(variant)) for variant in variants)
    ]


def roots(
    requires: Mapping[str, tuple[Requirement, ...]],
    versions: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, tuple[str, ...]]:
    """Return a smallest set of distributions, with their extras, from which all others are reached.

    These are those that no other requires, and one of each cycle that nothing outside of it requires.
    Nothing records which extras were asked for. So an extra counts where some distribution asks for it, and
    where all that it requires is installed while something of it would have no reason to be there otherwise.

    Parameters
    ----------
    requires : mapping of str to tuple of Requirement
        What each installed distribution requires, by normalised name.
    versions : mapping of str to str
        Their versions.
    environment : mapping
        Marker variables of the interpreter that they are installed for.

    Returns
    -------
    dict of str to tuple of str
        Names and extras, sorted.
    """
    reasons = _reasons(requires, versions, environment)
    inferred: dict[str, set[str]] = {}
    while True:
        graph = _graph(requires, environment, inferred)
        top = _top(graph)
        guesses = [
            next(((parent, extra) for parent, extra in reasons.get(name, ()) if parent != name), None)
            for name in top
        ]
        new = {guess for guess in guesses if guess is not None and guess[1] not in inferred.get(guess[0], ())}
        if not new:
            names = sorted({*top, *inferred})
            return {name: tuple(sorted(inferred.get(name, ()))) for name in names}
        for parent, extra in new:
            inferred.setdefault(parent, set()).add(extra)


def only_for(
    tools: Iterable[str],
    requires: Mapping[str, tuple[Requirement, ...]],
    environment: Mapping[str, str],
    *,
    keep: Iterable[str] = (),
) -> set[str]:
    """Return the tools, and those distributions that nothing but them requires.

    Parameters
    ----------
    tools : iterable of str
        Normalised names; those that are not installed are passed over.
    requires, environment
        As for `roots`.
    keep : iterable of str
        Never returned, nor what they require.
    """
    own = {name for name in tools if name in requires}
    full = _graph(requires, environment, {})
    top = {name for name in _top(full) if name not in own}
    graph = {name: set() if name in own else children for name, children in full.items()}
    needed = _reached(graph, [*top, *(name for name in keep if name in requires)])
    return (_reached(full, own) - needed) | own


def _reached(graph: Mapping[str, set[str]], start: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    pending = list(start)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(graph[name])
    return reached


def _top(graph: Mapping[str, set[str]]) -> list[str]:
    component = _components(graph)
    reached = {
        component[child]
        for name, children in graph.items()
        for child in children
        if component[child] != component[name]
    }
    first: dict[int, str] = {}
    for name in sorted(graph):
        first.setdefault(component[name], name)
    return sorted(name for number, name in first.items() if number not in reached)


def _reasons(
    requires: Mapping[str, tuple[Requirement, ...]],
    versions: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, list[tuple[str, str]]]:
    """For each distribution, the extras of others that require it and of which nothing is missing."""

    def met(requirement: Requirement) -> bool:
        name = canonicalize_name(requirement.name)
        try:
            return name in versions and requirement.specifier.contains(versions[name], prereleases=True)
        except InvalidVersion:
            return False

    found: dict[str, list[tuple[str, str]]] = {}
    for parent, requirements in sorted(requires.items()):
        markers = " ".join(str(one.marker) for one in requirements if one.marker is not None)
        always = {id(one) for one in active_requirements(requirements, environment)}
        for extra in sorted(set(re.findall(r'extra == "([^"]+)"', markers))):
            wanted = [
                one
                for one in active_requirements(requirements, environment, [extra])
                if id(one) not in always
            ]
            if wanted and all(met(one) for one in wanted):
                for one in wanted:
                    found.setdefault(canonicalize_name(one.name), []).append((parent, extra))
    return found


def _graph(
    requires: Mapping[str, tuple[Requirement, ...]],
    environment: Mapping[str, str],
    inferred: Mapping[str, set[str]],
) -> dict[str, set[str]]:
    """Edges between installed distributions, with the extras that are asked for along the way."""
    extras: dict[str, set[str]] = {name: set(inferred.get(name, ())) for name in requires}
    graph: dict[str, set[str]] = {name: set() for name in requires}
    pending = set(requires)
    while pending:
        name = pending.pop()
        for requirement in active_requirements(requires[name], environment, sorted(extras[name])):
            child = canonicalize_name(requirement.name)
            if child not in requires:
                continue
            graph[name].add(child)
            asked = {canonicalize_name(extra) for extra in requirement.extras}
            if not asked <= extras[child]:
                extras[child] |= asked
                pending.add(child)
    return graph


def _components(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Number the strongly connected components: equal numbers are on a common cycle."""
    order: list[str] = []
    seen: set[str] = set()
    for start in sorted(graph):
        stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            name, children = stack[-1]
            child = next((one for one in children if one not in seen), None)
            if child is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(child)
                stack.append((child, iter(sorted(graph[child]))))
    backwards: dict[str, list[str]] = {name: [] for name in graph}
    for parent, required in graph.items():
        for one in required:
            backwards[one].append(parent)
    component: dict[str, int] = {}
    for number, start in enumerate(reversed(order)):
        todo = [] if start in component else [start]
        while todo:
            name = todo.pop()
            component[name] = number
            todo.extend(parent for parent in backwards[name] if parent not in component)
    return component
