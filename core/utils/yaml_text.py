"""Yaml as people write it, by way of PyYAML, with errors for what would be dropped or could not be held."""

from typing import Any

import yaml

from core.utils.errors import UserError, shorten

MAX_VALUES = 100_000  # of a text, those that it repeats by reference counted each time


def read_yaml(text: str, where: str) -> Any:
    """What yaml makes of `text`; None where it is empty.

    Args:
        where: what holds it, for the messages.
    Raises:
        UserError: it cannot be read, is too large, or holds a key twice (of which yaml would drop the first).
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        count = _count_values(node, {})
        if count <= MAX_VALUES:
            _refuse_twins(node, where, (), set())
            return loader.construct_document(node)
    except UserError:
        raise
    except Exception as error:  # beside YAMLError: ValueError for the 31st of February, RecursionError, KeyError …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not valid yaml: {reason[:400]}") from None
    raise UserError(f"{where} holds more than {MAX_VALUES} values, or a value that holds itself")


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a tree holds where each reference to a part counts it again; infinite if a part holds itself.

    `known`: the counts of parts seen so far, by id.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until its parts are counted
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def _constructed(key: yaml.ScalarNode) -> tuple[str, object]:
    """A key as yaml takes it, 1 and 0x1 alike, with its type; as it is written, where it takes it for nothing."""
    try:
        return key.tag, yaml.SafeLoader("").construct_object(key)
    except (yaml.YAMLError, ValueError):
        return key.tag, key.value


def _refuse_twins(node: yaml.Node, where: str, path: tuple[str, ...], seen: set[int]) -> None:
    """Raise UserError for a key that a mapping holds twice, at any depth."""
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item, where, path, seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        inside = path
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            inside, line, name = (*path, key.value), key.start_mark.line + 1, _constructed(key)
            if name in lines:
                first, full = lines[name], shorten([".".join(inside)])
                raise UserError(f"{where}: {full} stands in line {first} and again in line {line}: join them")
            lines[name] = line
        _refuse_twins(value, where, inside, seen)
