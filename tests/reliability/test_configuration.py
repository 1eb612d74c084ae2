"""Whatever a configuration says, it is either valid as it stands or refused in one line that names what is wrong."""

import json
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt.config import GPTConfig
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import StrictParser, config_to_yaml, parse_config_text
from training.config.sections import RunConfig, TrainingConfig
from training.runtime.errors import InputError

QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
QUICK = settings(max_examples=60, derandomize=True, database=None, **QUIET)
CI = settings(max_examples=400, derandomize=True, database=None, **QUIET)
NIGHTLY = settings(max_examples=5000, print_blob=True, **QUIET)


# What is valid, said a second time, from the documentation.


def between(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


def share(value: float) -> bool:
    return 0 <= value < 1


def positive(value: float) -> bool:
    return 0 < value < math.inf


SIZE, COUNT, SEQUENCES = between(1, 10**6), between(0, 10**9), between(1, 10**6)
Ranges = dict[str, Callable[[float], bool]]
SHARED: Ranges = {
    "seed": between(0, 2**63 - 1),
    **dict.fromkeys(["model.num_layers", "model.d_model", "model.num_heads", "model.d_ff", "model.max_len"], SIZE),
    "model.num_kv_heads": SIZE,
    "model.head_dim": SIZE,
    **dict.fromkeys(["model.rope_theta", "model.norm_eps", "model.embedding_scale"], positive),
    "model.dropout": share,
    "training.max_steps": between(1, 10**9),
    "training.epochs": lambda value: 0 < value <= 10**6,
    **dict.fromkeys([f"training.{name}batch_size" for name in ("", "eval_")], SEQUENCES),
    **dict.fromkeys(["training.micro_batch_size", "training.accumulation_steps"], SEQUENCES),
    "training.ema_decay": share,
    "training.label_smoothing": share,
    "training.max_grad_norm": lambda value: 0 <= value < math.inf,
    **dict.fromkeys(["training.eval_interval", "training.patience", "training.checkpoint_interval"], COUNT),
    **dict.fromkeys(["training.max_nonfinite_steps", "training.eval_tokens"], COUNT),
    "training.collective_timeout": between(1, 86_400),
    "training.log_interval": between(1, 10**9),
    "training.keep_checkpoints": between(2, 10**9),
    **dict.fromkeys(["optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.eps"], positive),
    "optimizer.weight_decay": lambda value: 0 <= value < math.inf,
    **dict.fromkeys(["optimizer.beta1", "optimizer.beta2", "optimizer.momentum"], share),
    "schedule.warmup_steps": COUNT,
    "schedule.restart_step": COUNT,
    "schedule.final_ratio": between(0, 1),
    "schedule.decay_fraction": lambda value: 0 < value <= 1,
    "data.tokenizer_bytes": between(1000, 10**12),
    "training.max_tokens": between(1, 10**15),
}


def leaves(section: type, prefix: str = "") -> dict[str, Any]:
    """The annotations of all options, by their full names."""
    found: dict[str, Any] = {}
    annotations = get_type_hints(section)
    for name in (field.name for field in fields(section)):
        annotation = annotations[name]
        found |= leaves(annotation, f"{name}.") if is_dataclass(annotation) else {prefix + name: annotation}
    return found


class Kind:
    """What is true of the configurations of one kind of run.

    Args:
        config: Their class.
        ranges: Of the numbers that only this kind has.
        related: Whether the fields of a configuration, each valid by itself, fit each other.
    """

    def __init__(self, config: type[RunConfig], ranges: Ranges, related: Callable[[dict[str, Any]], bool]) -> None:
        self.config, self.ranges, self.related = config, SHARED | ranges, related
        self.types = leaves(config)
        self.names = sorted(self.types)
        self.sections = sorted({name.split(".")[0] for name in self.names if "." in name})
        self.base = asdict(config(training=TrainingConfig(max_steps=5)))

    def is_numeric(self, name: str) -> bool:
        return bool({int, float} & {self.types[name], *get_args(self.types[name])})

    def is_text(self, name: str) -> bool:
        return str in (self.types[name], *get_args(self.types[name]))

    def is_valid(self, config: dict[str, Any]) -> bool:
        """Whether nested values make a configuration, by the rules here and those between fields."""
        flat = {n: config[n] if "." not in n else config[n.split(".")[0]][n.split(".")[1]] for n in self.names}
        if not all(fits(value, self.types[name]) for name, value in flat.items()):
            return False
        numbers = {name: flat[name] for name in self.names if self.is_numeric(name)}
        numbers = {name: value for name, value in numbers.items() if value is not None and value != "auto"}
        return all(self.ranges[name](value) for name, value in numbers.items()) and self.related(config)


def words(annotation: Any) -> list[str]:
    """The values of a choice, which may be one of null as well."""
    return [word for part in (annotation, *get_args(annotation)) for word in get_args(part) if isinstance(word, str)]


def fits(value: Any, annotation: Any) -> bool:
    choices = get_args(annotation) or (annotation,)
    if isinstance(value, str) and words(annotation):
        return value in words(annotation)
    return type(value) in choices or (float in choices and type(value) is int)


def models(model: dict[str, Any]) -> bool:
    width, rest = divmod(model["d_model"], model["num_heads"])
    if model["head_dim"] is not None:
        width, rest = model["head_dim"], 0
    even = width % 2 == 0 or model["positions"] == "learned"
    scaling = model["rope_scaling"]
    if scaling is not None and not re.fullmatch(r"linear:[1-9]\d*", scaling):
        return False  # No other text that is drawn at random is one; tests/layers/test_layers.py has those that are.
    if model["positions"] != "rotary" and (scaling, model["rope_theta"]) != (None, 10_000):
        return False
    return rest == 0 and even and model["num_heads"] % (model["num_kv_heads"] or model["num_heads"]) == 0


def trains(training: dict[str, Any]) -> bool:
    ends = {training["max_steps"], training["epochs"], training["max_tokens"]} != {None}
    return ends and (training["patience"] == 0 or training["eval_interval"] > 0)


def texts(name: str, data: dict[str, Any]) -> bool:
    forbidden = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    written = [name, *(value for value in data.values() if isinstance(value, str))]
    if any(re.search(forbidden, text) for text in written) or "" in data.values():
        return False
    return name not in ("", ".", "..") and "/" not in name and len(name.encode()) <= 200


HUB = r"hub:[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+"


def is_tokenizer(name: str, *others: str) -> bool:
    if size := re.fullmatch("bpe:([0-9]{1,7})", name):
        return 257 <= int(size[1]) <= 10**6
    return name in ("characters", "bytes", *others) or (name.endswith(".json") and not name.startswith("bpe:"))


def answers(data: dict[str, Any]) -> bool:
    columns = [data[f"{name}_column"] for name in ("prompt", "answer", "messages")]
    given = [column is not None for column in columns]
    if any(given) and data["source"] in ("auto", "comedies", "python"):
        return False
    return given in ([False, False, False], [True, True, False], [False, False, True]) and (
        not any(given) or data["column"] == "text"
    )


def begins(config: dict[str, Any]) -> bool:
    place, sha256 = config["init_from"], config["init_sha256"]
    if place is None:
        return sha256 is None and config["init_vocabulary"] == "same" and config["lora"]["rank"] == 0
    if place == "" or not texts("x", {"init_from": place}):
        return False
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        return False
    return config["lora"]["rank"] == 0 or config["init_vocabulary"] == "same"


def gpt_related(config: dict[str, Any]) -> bool:
    data = config["data"]
    if not (begins(config) and answers(data)) or not all(map(str.strip, config["lora"]["targets"].split(","))):
        return False
    if not (models(config["model"]) and trains(config["training"]) and texts(config["name"], data)):
        return False
    if data["mix"] is not None:
        return False  # No text that is drawn at random is one; tests/data/test_mix.py has those that are.
    if not is_tokenizer(data["tokenizer"]):
        return False
    if data["include"] is not None and not data["include"].strip(" ,"):
        return False
    named, of_hub = data["source"].startswith("hub:"), (data["revision"], data["subset"])
    if named or data["source"] == "hub":
        return (not named or re.fullmatch(HUB, data["source"]) is not None) and data["include"] is None
    if data["source"] in ("auto", "comedies", "python") and (data["column"], data["on_bad_row"]) != ("text", "stop"):
        return False
    return of_hub == (None, None) and (data["source"] not in ("auto", "comedies") or data["include"] is None)


def seq2seq_related(config: dict[str, Any]) -> bool:
    model, data = config["model"], config["data"]
    if not (models(model) and trains(config["training"]) and texts(config["name"], data)):
        return False
    if model["cross_positions"] not in (None, "content") and model["positions"] != "rotary":
        return False
    if model["cross_positions"] == "both_ends" and (model["num_kv_heads"] or model["num_heads"]) % 2:
        return False
    if not is_tokenizer(data["tokenizer"], "words"):
        return False
    if len(set(data["symbols"])) != len(data["symbols"]) or data["min_length"] > data["max_length"]:
        return False
    source = data["source"] or ""
    hub = re.fullmatch(HUB, source) is not None
    if (data["revision"], data["subset"]) != (None, None) and not hub:
        return False
    if data["task"] == "pairs":
        if (data["symbols"], data["min_length"], data["max_length"]) != ("abcdefghijklmnopqrstuvwxyz", 1, 20):
            return False
        return hub or (not source.startswith("hub:") and Path(source).suffix in (".jsonl", ".csv", ".parquet"))
    fixed = (data["source"], data["source_column"], data["target_column"], data["on_bad_row"])
    if fixed != (None, "source", "target", "stop") or data["tokenizer"] == "words":
        return False
    size = 1 if data["tokenizer"] == "characters" else max(len(symbol.encode()) for symbol in data["symbols"])
    return data["max_length"] * size <= model["max_len"] - 2


KINDS = [
    Kind(
        GPTConfig,
        {
            "data.validation_share": lambda value: 0 < value < 1,
            "lora.rank": between(0, 10**6),
            "lora.alpha": positive,
            "lora.dropout": share,
        },
        gpt_related,
    ),
    Kind(
        Seq2SeqConfig,
        {
            "model.max_len": between(3, 10**6),
            **dict.fromkeys(["data.min_length", "data.max_length"], SIZE),
            "data.val_samples": between(1, 10_000),
            "model.random_positions": between(0, 1),
        },
        seq2seq_related,
    ),
]
GPT = KINDS[0]


# What is tried.


@dataclass
class Case:
    """A configuration file, or options.

    Attributes:
        kind: Of the run.
        content: The file, as bytes or as text; None for none.
        arguments: The options.
        valid: Whether it must be accepted; None where only the one or the other must be clear.
        culprits: Names, one of which a refusal must show.
        value: What a refusal must show, in one of these ways; empty where it need not.
    """

    kind: Kind
    content: bytes | str | None = None
    arguments: tuple[str, ...] = ()
    valid: bool | None = None
    culprits: tuple[str, ...] = ()
    value: tuple[str, ...] = ()


class Quoted(yaml.SafeDumper):
    """Standard YAML with all text in quotes, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Quoted.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))

HUGE = 10**250
NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.integers(-HUGE, HUGE),
    st.sampled_from([12, 64, 128, 2**31, 2**63 - 1, 2**63, 10**6, 10**6 + 1, 10**9, 10**9 + 1, 10**30]),
    st.floats(0, 1),
    st.floats(),
)
LETTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.sampled_from(
        [
            "5",
            "1e3",
            "0x10",
            "yes",
            "null",
            "1:30",
            "nan",
            "-3",
            "hub",
            "hub:a/b",
            "hub:a/b/c",
            "..",
            "a/b",
            "a.csv",
            "hub:a.csv",
            "abc",
        ]
    ),
    st.text("a/é", min_size=180, max_size=400),
)
SCALARS = st.one_of(NUMBERS, st.booleans(), st.none(), TEXTS)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
ODDITIES = r"""
    ~ ¦ yes ¦ No ¦ 1:30 ¦ 012 ¦ 0x1F ¦ 0b11 ¦ 1_000 ¦ +5 ¦ -.5 ¦ .5 ¦ 1. ¦ 5e-1 ¦ .inf ¦ -.INF ¦ .NaN ¦ 1e400
    "5" ¦ 5 # five ¦ = ¦ << ¦ 2001-01-01 ¦ [] ¦ {} ¦ [1, [2]] ¦ {a: 1} ¦ {a} ¦ [ ¦ { ¦ ] ¦ } ¦ ' ¦ " ¦ | ¦ > ¦ @ ¦ %
    ` ¦ - ¦ -- ¦ 1e-400 ¦ '5' ¦ &a 3 ¦ *a ¦ &a [*a] ¦ ! 5 ¦ !foo 3 ¦ !!int '5' ¦ !!str 5 ¦ !!float 3
    !!python/object:os.system x ¦ !!python/object/apply:os.system [touch pwned] ¦ os.system ¦ "\ud800" ¦ "\0" ¦ "a\nb"
    !!binary aGk= ¦ !!set {a} ¦ ${HOME} ¦ - 1 ¦ ? a ¦ : a ¦ # a ¦ a: b ¦ configs/gpt/quick.yaml ¦ /dev/zero
"""
RAW = st.one_of(
    st.sampled_from(re.split(r" ¦ |\n *", ODDITIES.strip())),
    st.sampled_from(
        [
            "9" * 400,
            "-" + "1" * 5000,
            "0" * 900,
            "[" * 5000,
            "[" * 900 + "]" * 900,
            "{a: " * 500,
            "x" * 9999,
            "caf\udce9",
        ]
    ),
    st.text(max_size=8),
)


@st.composite
def misspelt(draw: st.DrawFn, kind: Kind) -> str:
    """A name that is no option: a letter less, more or changed, or one with a meaning to the parser below."""
    name = draw(st.sampled_from(kind.names))
    place = draw(st.integers(0, len(name)))
    letter = draw(st.sampled_from([*"abxyz_-+ :E.", ""]))
    special = ["class_path", "init_args", "__path__", "__default_config__", "$schema", "<<", "config", "help", "", "no"]
    wrong = draw(
        st.sampled_from([name[:place] + letter + name[place + 1 :], name[:place] + letter + name[place:]])
        | st.sampled_from([*special, *(f"model.{word}" for word in special), *(f"{name}.{word}" for word in special)])
    )
    return wrong if wrong not in kind.types and wrong not in kind.sections else f"{wrong}_"


@st.composite
def changed_values(draw: st.DrawFn, kind: Kind) -> Case:
    """A valid file with one to three other values, which is valid or not by the rules above."""
    config = json.loads(json.dumps(kind.base))
    names = draw(
        st.lists(
            st.sampled_from([*kind.names, *kind.names, *kind.sections]),
            min_size=1,
            max_size=draw(st.integers(1, 3)),
            unique=True,
        )
    )
    values = [draw(TREES if draw(st.integers(0, 3)) == 0 else suitable(kind, name)) for name in names]
    for name, value in zip(names, values, strict=True):
        section, _, leaf = name.rpartition(".")
        if not section:
            config[name] = value
        elif isinstance(config[section], dict):
            config[section][leaf] = value
    whole = all(
        isinstance(config[section], dict) and config[section].keys() == kind.base[section].keys()
        for section in kind.sections
    )
    text = yaml.dump(config, Dumper=Quoted, default_flow_style=draw(st.booleans()), sort_keys=draw(st.booleans()))
    valid = kind.is_valid(config) if whole else None if {} in values else False
    return Case(kind, text, valid=valid, culprits=tuple(names), value=ways_to_say(kind, names, values))


def suitable(kind: Kind, name: str) -> st.SearchStrategy[Any]:
    """Values that are more often right than those of `TREES`."""
    if name in kind.sections:
        return TREES
    if kind.is_numeric(name):
        return NUMBERS | (st.floats(0, 1) if kind.types[name] is float else st.sampled_from([1, 2, 4, 8, 32, 128, 256]))
    return TEXTS if kind.is_text(name) else st.sampled_from([True, False, *(words(kind.types[name]) or ["x"])])


def ways_to_say(kind: Kind, names: list[str], values: list[Any]) -> tuple[str, ...]:
    """How a refusal may show the only change."""
    value = values[0]
    if (
        len(values) > 1
        or names[0] in kind.sections
        or kind.is_text(names[0])
        or not (value is None or isinstance(value, bool | int | float))
    ):
        return ()
    whole = float(value) if isinstance(value, int) else value
    spelt = yaml.safe_dump(value).removesuffix("...\n").strip()
    return (repr(value), spelt, repr(whole), *([] if len(repr(value)) <= 40 else ["...", " … "]))


@st.composite
def strange_keys(draw: st.DrawFn, kind: Kind) -> Case:
    """A valid file with a name in it that is no option."""
    config = json.loads(json.dumps(kind.base))
    name = draw(misspelt(kind))
    section, dot, leaf = name.partition(".")
    if dot and section in kind.sections and leaf:
        config[section][leaf] = draw(TREES)
    else:
        config[name] = draw(TREES)
    text = yaml.dump(config, Dumper=Quoted, sort_keys=False)
    return Case(
        kind, text, valid=False, culprits=(name,) if re.fullmatch(r"[a-z_.]+", name) and name not in ("no", "") else ()
    )


@st.composite
def raw_values(draw: st.DrawFn, kind: Kind) -> Case:
    """A file with something in the place of a value that may break its grammar."""
    name, raw = draw(st.sampled_from([*kind.names, *kind.sections])), draw(RAW)
    section, _, leaf = name.rpartition(".")
    lines = ["training: {max_steps: 5}"] if section != "training" else ["training:", "  max_steps: 5"]
    lines += [f"{section}:"] if section and section != "training" else []
    return Case(kind, "\n".join([*lines, f"  {leaf}: {raw}" if section else f"{name}: {raw}", ""]))


@st.composite
def damaged_bytes(draw: st.DrawFn, kind: Kind) -> Case:
    """A file with some of its bytes, or lines, exchanged, repeated, left out, or in another encoding."""
    text = yaml.safe_dump(kind.base, sort_keys=False)
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"]))
    lines = text.splitlines(keepends=True)
    for _ in range(draw(st.integers(0, 2))):
        line = draw(
            st.sampled_from([*lines, "---\n", "...\n", "\tseed: 1\n", "%YAML 1.1\n", "? [a]\n: b\n", "\r", "- 1\n"])
        )
        lines.insert(draw(st.integers(0, len(lines))), line)
    content = bytearray("".join(lines).encode(encoding))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        content[start : start + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=2) | st.sampled_from([b":", b"*a", b"[", b"\n"])
        )
    return Case(kind, bytes(content))


@st.composite
def options(draw: st.DrawFn, kind: Kind) -> Case:
    """One to three options above a valid file."""
    names = draw(st.lists(st.sampled_from(kind.names), min_size=1, max_size=3, unique=True))
    config = json.loads(json.dumps(kind.base))
    arguments, values = [], []
    for name in names:
        value = draw(
            st.one_of(TEXTS, st.text(max_size=5)) if kind.types[name] is str else NUMBERS | st.booleans() | st.none()
        )
        values.append(value)
        text = value if isinstance(value, str) else yaml.safe_dump(value, width=10**4).removesuffix("...\n").strip()
        joined = text.startswith("-") or draw(st.booleans())
        arguments += [f"--{name}={text}"] if joined else [f"--{name}", text]
        section, _, leaf = name.rpartition(".")
        if kind.is_text(name):  # On a command line there are no quotes, so that this is null wherever null may be.
            null = NoneType in get_args(kind.types[name]) and text in ("~", "null", "Null", "NULL")
            value = None if null else text
        (config[section] if section else config)[leaf] = value
    return Case(
        kind,
        "training: {max_steps: 5}",
        tuple(arguments),
        kind.is_valid(config),
        tuple(names),
        ways_to_say(kind, names, values),
    )


@st.composite
def raw_options(draw: st.DrawFn, kind: Kind) -> Case:
    """One or two arguments that may be no options at all."""
    arguments = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*kind.names, *kind.sections]) | misspelt(kind) | st.text(max_size=4))
        arguments.append(f"--{name}={draw(RAW)}")
    asks = re.compile(r"(--?)?(h|help|print_config|config)(=.*)?", re.DOTALL)
    return Case(kind, "training: {max_steps: 5}", tuple(a for a in arguments if not asks.fullmatch(a)))


WAYS = [changed_values, changed_values, strange_keys, raw_values, damaged_bytes, options, options, raw_options]
CASES = st.one_of([way(kind) for way in WAYS for kind in KINDS])


# What must hold.


def parse(case: Case) -> RunConfig:
    if isinstance(case.content, str) and not case.arguments:
        return parse_config_text(case.kind.config, case.content)
    parser = StrictParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(case.kind.config)
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        content = case.content or b""
        Path(file.name).write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        return parser.build(case.kind.config, parser.parse_args(["--config", file.name, *case.arguments]))


def judge(case: Case) -> None:
    try:
        config = parse(case)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert case.valid in (None, not refusal), refusal or config
    if refusal:
        judge_refusal(refusal, case)
    else:
        judge_configuration(config, case.kind)


def judge_configuration(config: RunConfig, kind: Kind) -> None:
    values = asdict(config)
    assert kind.is_valid(values), values
    for name in kind.names:
        section, _, leaf = name.rpartition(".")
        value = (values[section] if section else values)[leaf]
        assert type(value) is not int or kind.is_numeric(name)
        assert type(value) is not int or float not in (kind.types[name], *get_args(kind.types[name])), name
    assert parse_config_text(kind.config, config_to_yaml(config)) == config


def judge_refusal(message: str, case: Case) -> None:
    assert InputError.exit_code == 2
    assert message.isprintable(), message
    assert 0 < len(message) <= 500, message
    if case.culprits and " levels at line " not in message:
        assert any(name in message for name in case.culprits), message
        assert re.search(r"expected|must|unknown option|is for |write \w+ as a section", message), message
    if case.value:
        assert any(way in message for way in case.value), message


@settings(QUICK)
@given(CASES)
def test_a_configuration_is_valid_or_refused_in_one_line(case: Case) -> None:
    judge(case)


@pytest.mark.ci
@settings(CI)
@given(CASES)
def test_more_configurations_are_valid_or_refused_in_one_line(case: Case) -> None:
    judge(case)


@pytest.mark.nightly
@settings(NIGHTLY)
@given(CASES)
def test_many_more_configurations_are_valid_or_refused_in_one_line(case: Case) -> None:
    judge(case)


def laughs() -> str:
    levels = (
        f"{here}: &{here} [{', '.join(['*' + below] * 9)}]" for below, here in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *levels, "name: *i", ""])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a configuration is made of lines such as seed: 1, got null"),
        ("[1, 2]", "a configuration is made of lines such as seed: 1, got [1, 2]"),
        ("seed: 1\n---\nseed: 2\n", "found another document at line 2, column 1"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice at line 2, column 1"),
        ("model: {d_ff: 1}\nmodel: {d_ff: 2}\n", "'model' is given twice at line 2, column 1"),
        ("model: &m {d_ff: *m}", "anchors (&), aliases (*) and tags (!) are not allowed at line 1, column 8"),
        ("name: !!python/object/apply:os.system [ls]", "tags (!) are not allowed at line 1, column 7"),
        (laughs(), "anchors (&), aliases (*) and tags (!) are not allowed at line 1, column 4"),
        ("name: " + "[" * 10**6, "more than 20 levels at line 1, column 26"),
        ("name: " + "x" * 10**6, "name must be at most 200 bytes long, got 'xxx"),
        ("seed: " + "9" * 10**6, "seed: expected int, got 999"),
        ("model.d_ff: 3", "model.d_ff: in a configuration, write model as a section of its own"),
        ("model:", "model: expected a section with options of its own, got null"),
        ("model: json.decoder", "model: expected a section with options of its own, got json.decoder"),
        ("model: {class_path: json.decoder}", "unknown option model.class_path"),
        ("config: other.yaml", "unknown option config"),
        ("model: {num_layers: null}", "model.num_layers: expected int, got null"),
        ("model: {qk_norm: null}", "model.qk_norm: expected bool, got null"),
        ("model: {num_layers: '5'}", "model.num_layers: expected int, got '5'"),
        ("model: {num_layers: 1:30}", "model.num_layers: expected int, got 1:30"),
        (
            "model: {d_model: 1" + "0" * 30 + "}",
            "model.d_model must be at most 1000000, got 1000000000000000000000000000000",
        ),
        ("model: {num_heads: 5}", "model.d_model must be a multiple of model.num_heads (5), got 128"),
    ],
)
def test_what_a_parser_could_choke_on_is_refused_at_once(content: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        parse(Case(GPT, content.encode()))
    assert message in str(caught.value)
    judge_refusal(str(caught.value), Case(GPT))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.max_steps", "{"], "training.max_steps: expected int or null, got '{'"),
        (["--training.max_steps", "&a [*a]"], "training.max_steps: expected int or null, got '&a [*a]'"),
        (["--optimizer.learning_rate", "1" * 400], "optimizer.learning_rate: expected float, got 111"),
        (["--model", "json.decoder"], "model is a section: give its options one by one, --model.NAME VALUE"),
        (["--model.num_layers.x", "3"], "unknown option model.num_layers.x: did you mean model.num_layers?"),
        (["--seed", "\udcff"], "seed: expected int, got "),
        (["--seed", "-1"], "seed must be at least 0 and below 2^63, got -1"),
        (["--name", "caf\udce9"], "name must be a plain folder name, got 'caf\\udce9'"),
    ],
)
def test_odd_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Case(GPT, "training: {max_steps: 5}", tuple(arguments)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["1e3", "1_0", "012", "1:30", "null", "no", "2001-01-01", "=", "<<", "[", "é", "'", "#"]
)
def test_a_name_that_looks_like_something_else_survives_being_written(name: str) -> None:
    config = parse(Case(GPT, "training: {max_steps: 5}", (f"--name={name}",)))
    assert config.name == name
    assert parse_config_text(GPTConfig, config_to_yaml(config)) == config


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.config.__name__)
def test_every_number_has_a_range(kind: Kind) -> None:
    assert {name for name in kind.names if kind.is_numeric(name)} == kind.ranges.keys()
    assert {field.name for field in fields(kind.config)} == kind.base.keys()
