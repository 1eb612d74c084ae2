"""The YAML of configurations: names and values, and nothing that runs code, repeats itself or surprises."""

import re
from typing import Any, NoReturn

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

MAX_DEPTH = 20
"""A configuration is two deep; deeper than this it is not even read."""

_WHOLE = "[-+]?(?:0|[1-9][0-9_]{0,299})"
_PLAIN = {
    "null": "~|null|Null|NULL|",
    "bool": "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
    "int": _WHOLE,
    "float": rf"{_WHOLE}(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""What text without quotes stands for: as in YAML 1.1, but for numbers. That reads 1:30 as 90, 012 as ten and 3e-4 as
text, and knows dates. A number of more than 300 digits is text here: Python cannot turn it into a float."""
_RESOLVERS = {None: [(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{text})$")) for kind, text in _PLAIN.items()]}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict whose keys are names, each given once."""
        names = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                _refuse("expected a name before the colon", key)
            if key.value in names:
                _refuse(f"{key.value!r} is given twice", key)
            names.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS  # So that text which would be read as a number is put in quotes, and no other.


def _refuse(problem: str, where: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def load_yaml(text: str) -> Any:
    """Read one document of plain YAML.

    Raises:
        yaml.YAMLError: It is not YAML, or has an anchor, an alias, a tag, a repeated name, or too many levels.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise yaml.YAMLError("it is not UTF-8")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            _refuse("anchors (&), aliases (*) and tags (!) are not allowed", event)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            _refuse(f"more than {MAX_DEPTH} levels", event)
    return yaml.load(text, Loader=_Loader)


def dump_yaml(values: Any, **options: Any) -> str:
    """Write values such that `load_yaml` gives the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **options)
