"""Our tokenizers as a tokenizer.json of the library `tokenizers`, with the same token ids and the same text back.

- A byte-level BPE is one already; what the library would add, cut off or draw at random, and we do not, goes.
- Bytes are a byte-level BPE without merges.
- Characters are words of one letter: a text with another character is refused, as it is here.
"""

import json
from typing import Any

from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.subwords import BYTE_SYMBOLS, END_OF_TEXT
from data.tokenizers.tokenizer import Tokenizer

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def library_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of that tokenizer.json."""
    if isinstance(tokenizer, CharTokenizer):
        return _of_characters(tokenizer.characters)
    if isinstance(tokenizer, ByteTokenizer):
        return _of_bytes(tokenizer)
    saved: dict[str, Any] = json.loads(tokenizer.to_json())
    saved |= {"truncation": None, "padding": None}
    saved["model"] = saved["model"] | {"dropout": None}
    if (saved.get("post_processor") or {}).get("type") != "ByteLevel":
        saved["post_processor"] = None  # It would put tokens around each text.
    return saved


def end_of_text_name(tokenizer: Tokenizer) -> str | None:
    """What the token that ends a text is called there; None for a vocabulary without."""
    if tokenizer.end_of_text is None:
        return None
    added = library_tokenizer(tokenizer)["added_tokens"]
    return next(str(entry["content"]) for entry in added if entry["id"] == tokenizer.end_of_text)


def _tokenizer(**parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": []} | empty | parts


def _of_characters(characters: str) -> dict[str, Any]:
    single = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    vocabulary = {character: token for token, character in enumerate(characters)}
    # There is no name for what is unknown, so that the library refuses it.
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    parts = {} if "\r" in characters else {"normalizer": _line_ends()}
    return _tokenizer(pre_tokenizer=single, decoder={"type": "Fuse"}, model=model, **parts)


def _line_ends() -> dict[str, Any]:
    """As `CharTokenizer.encode_prompt` reads them."""
    ends = [{"type": "Replace", "pattern": {"String": end}, "content": "\n"} for end in ("\r\n", "\r")]
    return {"type": "Sequence", "normalizers": ends}


def _of_bytes(tokenizer: ByteTokenizer) -> dict[str, Any]:
    end = {"id": tokenizer.end_of_text, "content": END_OF_TEXT, "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    model: dict[str, Any] = {
        "type": "BPE",
        **nothing,
        "vocab": BYTE_SYMBOLS | {END_OF_TEXT: tokenizer.end_of_text},
        "merges": [],
    }
    return _tokenizer(added_tokens=[end], pre_tokenizer=_BYTE_LEVEL, decoder=_BYTE_LEVEL, model=model)
