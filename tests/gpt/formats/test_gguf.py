"""GPTs as files of llama.cpp: read back by transformers, with the same logits and tokens; and what has no such form."""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import BEYOND, FORMS, GPT2, LLAMA, QWEN3, loaded, written
from helpers import ROOT, command, with_training

from data.tokenizers.characters import CharTokenizer
from data.tokenizers.subwords import END_OF_TEXT, SubwordTokenizer, learn_subwords
from gpt.config import GPTConfig
from gpt.formats.gguf import Kind, gguf_form
from gpt.formats.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, gguf_vocabulary
from gpt.formats.transformers_form import form_config
from gpt.model import GPT
from gpt.task import load_gpt, train_gpt
from training.runtime.errors import InputError

gguf = pytest.importorskip("gguf")

EXPORT = ROOT / "launch/export.py"
TEXTS = [f"{n} times {n % 7} is {n * (n % 7)} \u20ac, \u00e7a  n'est pas\n" for n in range(200)]
PROBE = f"  7 times  9,\tit's 2026 \U0001f642\n\n{END_OF_TEXT} \u00e9 "


def transformers() -> Any:
    return pytest.importorskip("transformers")


def read_back(path: Path, config: Any = None) -> Any:
    """As transformers reads it, in fp32."""
    return (
        transformers()
        .AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=torch.float32)
        .eval()
    )


@torch.no_grad()
def assert_same_logits(theirs: Any, ours: GPT, length: int = 40) -> None:
    tokens = torch.randint(ours.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    expected = ours(tokens)
    assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def stored(path: Path) -> dict[str, Any]:
    """The tensors of a file, by their names."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", FORMS)
def test_transformers_reads_the_same_logits(name: str, tmp_path: Path) -> None:
    source = loaded(FORMS[name])
    before = {key: tensor.clone() for key, tensor in source.model.state_dict().items()}
    path = written(source, tmp_path, "F32")
    assert_same_logits(read_back(path), source.model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in source.model.state_dict().items())


@pytest.mark.parametrize("name", BEYOND)
def test_transformers_reads_the_rest_where_it_is_told_the_configuration(name: str, tmp_path: Path) -> None:
    model = loaded(BEYOND[name]).model
    config = transformers().AutoConfig.for_model(**form_config(model, None, torch.float32))
    assert_same_logits(read_back(written(loaded(BEYOND[name]), tmp_path, "F32"), config), model)


def rounded(model: GPT, kind: Kind) -> GPT:
    """A model whose matrices have the numbers that a file of that kind has."""
    copy = deepcopy(model)
    for name, weight in copy.named_parameters():
        if weight.ndim == 2 and not name.startswith("positions"):
            dtype = gguf.GGMLQuantizationType["F16" if weight.size(1) % 32 else kind]
            numbers = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), dtype), dtype)
            weight.data = torch.from_numpy(numbers.copy())
    return copy


@pytest.mark.parametrize("form", [replace(LLAMA, embedding_scale=1.0, d_ff=72), GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_smaller_types_round_matrices_alone_and_within_their_bound(kind: Kind, form: Any, tmp_path: Path) -> None:
    source = loaded(form)
    path = written(source, tmp_path, kind)
    assert_same_logits(read_back(path), rounded(source.model, kind))
    kinds = {name: tensor.tensor_type.name for name, tensor in stored(path).items()}
    plain = {"position_embd.weight", *(name for name in kinds if "norm" in name or name.endswith("bias"))}
    assert {kinds[name] for name in plain & kinds.keys()} == {"F32"}
    narrow = {name for name in kinds if form.d_ff % 32 and "ffn_down" in name}
    assert {kinds[name] for name in narrow} <= {"F16"}
    assert {kinds[name] for name in kinds.keys() - plain - narrow} == {kind}
    if kind == "Q8_0":
        tensor = stored(path)["token_embd.weight"]
        blocks = source.model.embedding.weight.detach().numpy().reshape(-1, 32)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
        step = np.abs(blocks).max(1, keepdims=True) / 127  # Half of one, and the rounding of the factor to fp16.
        assert (np.abs(found - blocks) <= (0.5 + 127 * 2.0**-11) * step).all()


def strings(path: Path, key: str) -> list[str]:
    contents = gguf.GGUFReader(path).fields[f"tokenizer.ggml.{key}"].contents()
    return [contents] if isinstance(contents, str) else contents


def test_a_byte_level_bpe_is_read_with_the_same_tokens_merges_and_end(tmp_path: Path) -> None:
    tokenizer = learn_subwords(TEXTS, 300, 10**6)
    path = written(loaded(LLAMA, tokenizer), tmp_path, "F16")
    theirs = transformers().AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = PROBE.replace(END_OF_TEXT, "")
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode_prompt(text)
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert theirs.eos_token == END_OF_TEXT
    assert strings(path, "pre") == ["gpt-2"]
    assert strings(path, "model") == ["gpt2"]


def test_bytes_and_characters_are_the_longest_tokens_that_fit(tmp_path: Path) -> None:
    path = written(loaded(LLAMA), tmp_path, "F16")
    tokens = strings(path, "tokens")
    assert len(tokens) == 257
    assert [tokens[byte] for byte in (0, 10, 32, 65, 92, 126, 255)] == [
        r"\x00", r"\x0a", r"\x20", "A", r"\x5c", "~", r"\xff",
    ]  # fmt: skip
    assert tokens[256] == rf"\xff{END_OF_TEXT}"
    characters = gguf_vocabulary(CharTokenizer("\n aB"), 4)
    assert characters.tokens == [r"\x0a", r"\x20", "a", "B"]
    assert characters.end_of_text is None
    assert characters.model == "rwkv"


def test_tokens_beyond_the_tokenizer_have_names(tmp_path: Path) -> None:
    source = loaded(replace(LLAMA, tie_embeddings=True), learn_subwords(TEXTS, 300, 10**6), padding=5)
    vocabulary = gguf_vocabulary(source.tokenizer, source.model.vocab_size)
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) == len(vocabulary.kinds) == source.model.vocab_size
    assert vocabulary.kinds == [CONTROL, *[NORMAL] * (len(source.tokenizer) - 1), *[UNUSED] * 5]
    assert_same_logits(read_back(written(source, tmp_path, "F32")), source.model)


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_json(changes: dict[str, Any], model: dict[str, Any] | None = None) -> SubwordTokenizer:
    """A tokenizer as others publish it, from one of ours."""
    saved = json.loads(learn_subwords(TEXTS, 300, 10**6).to_json()) | changes
    saved["model"] |= model or {}
    return SubwordTokenizer(json.dumps(saved))


def pre_tokenizers(*steps: dict[str, Any], use_regex: bool) -> dict[str, Any]:
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (tokenizer_json(pre_tokenizers({"type": "Digits", "individual_digits": True}, use_regex=True)), "smollm"),
        (tokenizer_json(pre_tokenizers(split(WORDS), use_regex=False), {"ignore_merges": True}), "llama-bpe"),
        (
            tokenizer_json(
                pre_tokenizers(split(WORDS.replace("{1,3}", "")), use_regex=False) | {"normalizer": {"type": "NFC"}}
            ),
            "qwen2",
        ),
    ],
    ids=["smollm", "llama3", "qwen"],
)
def test_published_ways_to_split_text_are_known_by_sight(tokenizer: SubwordTokenizer, name: str) -> None:
    assert gguf_vocabulary(tokenizer, len(tokenizer)).split == name


@pytest.mark.parametrize(
    ("tokenizer", "kinds"),
    [
        (tokenizer_json(pre_tokenizers(split(r"\p{L}+"), use_regex=False)), "Split, ByteLevel"),
        (tokenizer_json(pre_tokenizers(split(WORDS), use_regex=False)), "Split, ByteLevel"),
        (tokenizer_json({"normalizer": {"type": "Lowercase"}}), "Lowercase"),
    ],
)
def test_other_ways_to_take_text_apart_are_refused(tokenizer: SubwordTokenizer, kinds: str) -> None:
    with pytest.raises(InputError, match=rf"^llama\.cpp does not know how .* \({kinds}\): .* gpt-2, smollm, llama-bpe"):
        gguf_vocabulary(tokenizer, len(tokenizer))


def test_tokens_that_are_found_in_a_text_stay_such() -> None:
    saved = json.loads(learn_subwords(TEXTS, 300, 10**6).to_json())
    saved["added_tokens"].append(saved["added_tokens"][0] | {"id": 300, "content": "<think>", "special": False})
    tokenizer = SubwordTokenizer(json.dumps(saved))
    vocabulary = gguf_vocabulary(tokenizer, len(tokenizer))
    assert (vocabulary.tokens[300], vocabulary.kinds[300]) == ("<think>", USER_DEFINED)


def test_a_model_of_conversations_brings_its_template_and_the_ends_of_its_turns(tmp_path: Path) -> None:
    saved = json.loads(learn_subwords(TEXTS, 300, 10**6).to_json())
    for number, content in enumerate(("<s>", "<|im_end|>"), start=300):
        saved["added_tokens"].append(saved["added_tokens"][0] | {"id": number, "content": content})
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    tokenizer = SubwordTokenizer(json.dumps(saved), tmp_path / "tokenizer.json")
    assert tokenizer.chat is not None
    tokenizer.follow(tokenizer.chat)
    path = written(loaded(LLAMA, tokenizer), tmp_path, "F16")
    field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
    assert field.contents() == template
    theirs = transformers().AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "<|im_end|>")


def test_vocabularies_that_llama_cpp_would_read_wrongly_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^llama\.cpp has no vocabulary of characters beyond ASCII, such as 'é': .*bpe:N$"
    ):
        gguf_vocabulary(CharTokenizer("aé"), 2)
    endless = tokenizer_json({"added_tokens": []})
    with pytest.raises(InputError, match=r"^llama\.cpp would end each text at token 11: .* \(<\|endoftext\|>, "):
        gguf_vocabulary(endless, len(endless))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(LLAMA, positions="sinusoidal"), r"sinusoidal positions: expected rotary or learned ones$"),
        (
            replace(LLAMA, norm="layer", activation="gelu"),
            r"model\.norm rms, got layer; and model\.activation",
        ),
        (replace(QWEN3, attention_bias=True), r"qwen3, .* model\.attention_bias False, got True$"),
        (
            replace(QWEN3, rope_scaling="llama3:8:1:4:32"),
            r"another model\.rope_scaling .*, got llama3",
        ),
        (replace(GPT2, activation="gelu"), r"gpt2, .* model\.activation gelu_tanh, got gelu$"),
        (replace(GPT2, qk_norm=True), r"model\.qk_norm False, got True$"),
        (replace(GPT2, num_kv_heads=2), r"as many key-value heads as heads, got model\.num_kv_heads 2$"),
        (replace(GPT2, head_dim=32), r"heads of d_model / num_heads, got model\.head_dim 32$"),
    ],
)
def test_models_that_llama_cpp_has_not_are_refused_by_field(config: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^llama\.cpp.*{said}"):
        gguf_form(GPT(config, 9))


def test_a_model_with_parts_of_its_own_is_refused() -> None:
    class Other(GPT):
        pass

    with pytest.raises(InputError, match=r"^llama\.cpp has no equivalent of this Other: it is no GPT in its class$"):
        gguf_form(Other(LLAMA, 9))


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("96 requested and 12 written")  # As numpy says it.

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(InputError, match=r"small-F16\.gguf could not be written: 96 requested and 12 written$"):
        written(loaded(LLAMA), tmp_path, "F16")


def test_the_command_makes_a_folder_with_the_file_and_a_card_or_none(config: GPTConfig, tmp_path: Path) -> None:
    config = with_training(config, max_steps=1, eval_interval=0)
    train_gpt(config, output_dir=tmp_path / "run")
    train_gpt(replace(config, model=replace(config.model, positions="sinusoidal")), output_dir=tmp_path / "other")
    options = ("--format", "gguf", "--gguf_type", "Q8_0", "--checkpoint")
    done = command(EXPORT, *options, "run", "--output", "made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["README.md", "made-Q8_0.gguf"]
    source = load_gpt(tmp_path / "run")
    assert_same_logits(read_back(tmp_path / "made/made-Q8_0.gguf"), rounded(source.model, "Q8_0"), length=16)
    done = command(EXPORT, *options, "other", "--output", "none", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "llama.cpp has no model with sinusoidal positions" in done.stderr
    assert not [file for file in tmp_path.iterdir() if "none" in file.name]


def test_weights_too_large_for_16_bits_are_refused(tmp_path: Path) -> None:
    source = loaded(LLAMA)
    with torch.no_grad():
        source.model.blocks[1].feed_forward.up.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"^blk\.1\.ffn_up\.weight has the weight 100000, too large for F16: use F32$"):
        written(source, tmp_path, "F16")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"^--format gguf needs the package gguf: pip install gguf$"):
        written(loaded(LLAMA), tmp_path, "F16")
