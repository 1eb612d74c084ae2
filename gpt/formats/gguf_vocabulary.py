"""A tokenizer as llama.cpp reads it from a GGUF file.

- A byte-level BPE is what llama.cpp calls `gpt2`: tokens, merges, and the name of a way to split text, which it has in
  its own code. We know by sight those of GPT-2, SmolLM, Llama 3 and Qwen.
- Bytes, and characters of one byte each, are what it calls `rwkv`: the longest token that fits, without any split. For
  characters of several bytes it has nothing: `gpt2` would end a text at token 11 where a vocabulary has no end of its
  own, and `rwkv` never comes back from a character that it does not know but for its first byte.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.listing import shown_symbol
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.subwords import END_OF_TEXT, ENDS_OF_TEXT
from data.tokenizers.tokenizer import Tokenizer, chat_of
from training.runtime.errors import InputError
from training.storage.reading import parse_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""What llama.cpp calls the kinds of tokens: of a text, never of a text, found in a text before it is split, of none."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES, _WORDS_THEN_BYTES = ("ByteLevel", False, False), ("ByteLevel", False, True)
_SPLITS = {
    (False, _WORDS_THEN_BYTES): "gpt-2",
    (False, ("Digits", True), _WORDS_THEN_BYTES): "smollm",
    (True, ("Split", _WORDS % "{1,3}", "Isolated", False), _BYTES): "llama-bpe",
    (False, ("Split", _WORDS % "", "Isolated", False), _BYTES): "qwen2",
}
"""Names of ways to split text: by whether a piece that is a token is left as it is, and the steps of the split."""


class GGUFVocabulary(NamedTuple):
    """What a GGUF file says of its vocabulary.

    Attributes:
        model: How text is read: gpt2 or rwkv.
        split: The name of the way to split text first; None for none.
        tokens: As llama.cpp writes them.
        kinds: Of each token.
        merges: Pairs of tokens that become one, first ones first.
        end_of_text: The token that ends a text; None for a vocabulary without.
        start_of_text: What a chat template calls so; else that which ends the text before.
        chat_template: How conversations are written, in Jinja; None for a model that was not taught it.
    """

    model: str
    split: str | None
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    end_of_text: int | None
    start_of_text: int | None
    chat_template: str | None


def gguf_vocabulary(tokenizer: Tokenizer, size: int) -> GGUFVocabulary:
    """The vocabulary of a GGUF file, with the same token ids.

    Args:
        tokenizer: Ours.
        size: Of the model's vocabulary; tokens that the tokenizer does not have get names.

    Raises:
        InputError: llama.cpp has no such vocabulary.
    """
    plain = isinstance(tokenizer, ByteTokenizer | CharTokenizer)
    found = _of_bytes(tokenizer) if plain else _of_subwords(tokenizer)
    for token in range(len(found.tokens), size):
        found.tokens.append(f"[PAD{token}]")
        found.kinds.append(UNUSED)
    return found


def _of_bytes(tokenizer: Tokenizer) -> GGUFVocabulary:
    every = [tokenizer.token_bytes(token) for token in range(len(tokenizer))]
    long = next((token for token in every if len(token) > 1), None)
    if long is not None:
        raise InputError(
            f"llama.cpp has no vocabulary of characters beyond ASCII, such as {shown_symbol(long.decode())}: export it "
            f"with --format transformers, or train with --data.tokenizer bytes or bpe:N"
        )
    # No text in UTF-8 has the first byte of the end's name, so that none is read as the end.
    tokens = [_escaped(token) if token else rf"\xff{END_OF_TEXT}" for token in every]
    kinds = [NORMAL if token else CONTROL for token in every]
    end = tokenizer.end_of_text
    return GGUFVocabulary("rwkv", None, tokens, kinds, [], end, end, None)


def _escaped(content: bytes) -> str:
    """Bytes as `rwkv` writes them."""
    return "".join(chr(byte) if 32 < byte < 127 and byte != ord("\\") else rf"\x{byte:02x}" for byte in content)


def _of_subwords(tokenizer: Tokenizer) -> GGUFVocabulary:
    saved = parse_json(tokenizer.to_json(), Path("tokenizer.json"))
    model = saved["model"]
    split = _split_name(saved)
    if tokenizer.end_of_text is None:
        raise InputError(
            f"llama.cpp would end each text at token 11: the tokenizer.json has no token that ends a text "
            f"({', '.join(ENDS_OF_TEXT)})"
        )
    tokens = [f"[PAD{token}]" for token in range(len(tokenizer))]
    kinds = [UNUSED] * len(tokens)
    for symbols, token in model["vocab"].items():
        tokens[token], kinds[token] = symbols, NORMAL
    for added in saved.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    end, chat = tokenizer.end_of_text, chat_of(tokenizer)
    if chat is None:
        return GGUFVocabulary("gpt2", split, tokens, kinds, merges, end, end, None)
    start = chat.special.get("bos_token")
    start_of_text = tokens.index(start) if start in tokens else end
    return GGUFVocabulary("gpt2", split, tokens, kinds, merges, end, start_of_text, chat.template)


def _split_name(saved: dict[str, Any]) -> str:
    """What llama.cpp calls the way in which a tokenizer.json splits text."""
    steps = tuple(_steps(saved.get("pre_tokenizer") or {}))
    name = _SPLITS.get((bool(saved["model"].get("ignore_merges")), *steps))
    # llama.cpp changes no text before it splits it; what is written is in normal form C, with few exceptions.
    normalizer = (saved.get("normalizer") or {"type": "NFC"})["type"]
    if name is None or normalizer != "NFC":
        kinds = [str(step[0]) for step in steps] if name is None else [normalizer]
        raise InputError(
            f"llama.cpp does not know how this tokenizer.json takes text apart ({', '.join(kinds)}): it has the ways "
            f"of {', '.join(_SPLITS.values())}"
        )
    return name


def _steps(saved: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A pre-tokenizer, or those of a sequence of them, as far as they decide what is split."""
    kind = saved.get("type")
    if "pretokenizers" in saved:
        for inner in saved["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "ByteLevel":
        yield kind, saved["add_prefix_space"], saved.get("use_regex", True)
    elif kind == "Digits":
        yield kind, saved["individual_digits"]
    elif kind == "Split":
        yield kind, saved["pattern"].get("Regex"), saved["behavior"], saved["invert"]
    else:
        yield (kind,)
