"""Chat templates: what is read beside a tokenizer.json, what an answer is, and the sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from data.config import TextConfig
from data.tokenizers.chat import Chat, Segment, read_chat
from data.tokenizers.subwords import SubwordTokenizer, learn_subwords
from data.tokenizers.tokenizer import chat_of, follow_chat, read_tokenizer
from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{%- for message in messages %}\n    {%- if message.role == 'assistant' and loop.last %}\n"
    "        {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}\n"
    "    {%- else %}\n        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    "{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
ASKED, SAID = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": " I, of course.\n"}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "question", "answer"),
    [
        (CHATML, QUESTION, "I, of course.<|im_end|>"),
        (THINKING, QUESTION, "<think>\n\n</think>\n\nI, of course.<|im_end|>"),
        (MARKED, "<s>[INST] Who? [/INST]", " I, of course.</s>"),
    ],
)
def test_an_answer_is_what_follows_the_beginning_of_its_turn_until_its_end(
    template: str, question: str, answer: str
) -> None:
    chat = Chat(template, NAMES)
    assert chat.segments([ASKED, SAID]) == [Segment(question, counts=False), Segment(answer, counts=True)]
    # What follows the last answer is nothing to learn. In an earlier one the template leaves out the thoughts.
    earlier = answer.replace("<think>\n\n</think>\n\n", "")
    assert chat.segments([ASKED, SAID, ASKED]) == [Segment(question, counts=False), Segment(earlier, counts=True)]


def test_each_answer_of_a_conversation_counts() -> None:
    found = Chat(CHATML).segments([{"role": "system", "content": "Be brief."}, ASKED, SAID, ASKED, SAID])
    assert [segment.counts for segment in found] == [False, True, False, True]
    assert found[1] == found[3]
    assert found[2].text == "\n" + QUESTION


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system message') }}", "the chat template refuses it: no system message"),
        ("{% for", "the chat template refuses it: "),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "the chat template refuses it: access to attribute "),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "the chat template does not write message 2, an answer"),
    ],
)
def test_a_template_that_does_not_serve_says_so(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chat(template).segments([ASKED, SAID])


QWEN = """
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
    {%- endif %}
    {{- m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
"""As Qwen3's: the thoughts of all but the last turn are left out."""
MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set first = messages[0].content + '\n\n' if loop.index > messages | length - 2 else '' %}
        {{- '[INST] ' + first + m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""As Mistral's: the system message stands in the last question."""
THINKS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
"""As DeepSeek-R1's: it lets an answer begin with thoughts, and leaves them out of what was said."""
PLAIN = CHATML.partition("{% if add")[0]
"""It lets no answer begin."""
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nI."}


@pytest.mark.parametrize(
    ("template", "messages", "answers"),
    [
        (QWEN, [ASKED, THOUGHT], ["<think>\nHm.\n</think>\n\nI.<|im_end|>"]),
        (QWEN, [ASKED, THOUGHT, ASKED, THOUGHT], ["I.<|im_end|>", "<think>\nHm.\n</think>\n\nI.<|im_end|>"]),
        (QWEN, [THOUGHT, ASKED, {**SAID, "content": "I."}], ["I.<|im_end|>", "<think>\n\n</think>\n\nI.<|im_end|>"]),
        (
            MISTRAL,
            [{"role": "system", "content": "Be kind."}, *[ASKED, {**SAID, "content": "I."}] * 2],
            [" I.</s>"] * 2,
        ),
        (THINKS, [ASKED, {**SAID, "content": "a"}, {"role": "user", "content": "a"}], ["a<|im_end|>"]),
        (PLAIN, [ASKED, {**SAID, "content": "a"}], ["<|im_start|>assistant\na<|im_end|>"]),
        (
            CHATML.replace("message['content']", "message['content'].replace('I', 'We')"),
            [ASKED, {**SAID, "content": "I."}, {"role": "user", "content": "\\I."}, {**SAID, "content": "I."}],
            ["We.<|im_end|>"] * 2,
        ),
    ],
)
def test_an_answer_is_what_the_template_writes_of_it_wherever_others_stand(
    template: str, messages: list[dict[str, str]], answers: list[str]
) -> None:
    chat = Chat(template, NAMES)
    found = chat.segments(messages)
    assert [segment.text for segment in found if segment.counts] == answers
    assert chat.render(messages).startswith("".join(segment.text for segment in found).rstrip())


TAGGED = (
    "{% for m in messages %}\n{% if m.role == 'assistant' %}\n    {%- generation -%}\n"
    "{{ m.content | upper }}<|im_end|>\n{% endgeneration %}\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}"
)


def test_what_a_template_marks_as_said_counts_and_nothing_else() -> None:
    conversation = [ASKED, {**SAID, "content": "I."}] * 2
    found = Chat(TAGGED).segments(conversation)
    assert [segment.text for segment in found if segment.counts] == ["I.<|im_end|>\n", "I.<|im_end|>"]
    assert Chat(TAGGED).render(conversation) == "".join(segment.text for segment in found) + "\n"
    assert Chat(TAGGED).segments([ASKED]) == []


def test_marks_are_those_of_transformers(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    conversation = [ASKED, {**SAID, "content": "who knows"}] * 2
    theirs.chat_template = TAGGED
    expected = theirs.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    segments = Chat(TAGGED).segments(conversation)
    encoded = tokenizer.encode_marked([segment.text for segment in segments])
    assert [int(token) for tokens in encoded for token in tokens] == expected["input_ids"][:-1]
    counts = [int(segment.counts) for segment, tokens in zip(segments, encoded, strict=True) for _ in tokens]
    assert counts == expected["assistant_masks"][:-1]


def test_what_is_no_character_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a message holds one of U\+FDD0 to U\+FDD2, which are no characters"):
        Chat(CHATML).segments([{"role": "user", "content": "\ufdd0"}, SAID])


def saved(folder: Path, **settings: Any) -> Chat | None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_chat(folder)


def test_a_template_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    assert read_chat(tmp_path) is None
    assert saved(tmp_path, model_max_length=10**30, eos_token="</s>") is None
    eos = {"content": "</s>", "lstrip": False, "__type": "AddedToken"}
    assert saved(tmp_path, chat_template="a", eos_token=eos, bos_token=None) == Chat("a", {"eos_token": "</s>"})
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert saved(tmp_path, chat_template=several) == Chat("d")
    (tmp_path / "chat_template.jinja").write_text("j")
    assert saved(tmp_path, chat_template="a") == Chat("j")
    for name, content in Chat("again", NAMES).files().items():
        (tmp_path / name).write_text(content)
    assert read_chat(tmp_path) == Chat("again", NAMES)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(MalformedFileError, match=r"tokenizer_config\.json: not JSON"):
        read_chat(tmp_path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> SubwordTokenizer:
    """A BPE with the tokens of a chat, and its template beside it."""
    library = LibraryTokenizer.from_str(learn_subwords(["who knows, of course I do " * 9], 300, 10**6).to_json())
    library.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    found = read_tokenizer((tmp_path / "tokenizer.json").read_text(), tmp_path / "tokenizer.json")
    assert isinstance(found, SubwordTokenizer)
    return found


def test_prompts_of_a_chat_are_messages_and_a_turns_end_ends_a_text(tokenizer: SubwordTokenizer) -> None:
    plain = tokenizer.encode_prompt("Who?")
    end_of_text = tokenizer.end_of_text
    follow_chat(tokenizer, TextConfig(tokenizer="bytes"))
    assert (tokenizer.encode_prompt("Who?"), tokenizer.end_of_text) == (plain, end_of_text)
    follow_chat(tokenizer, TextConfig(source="rows.jsonl", messages_column="messages"))
    asked = tokenizer.encode_prompt("Who?")
    assert asked == tokenizer.encode_marked([QUESTION])[0].tolist()
    assert asked.count(tokenizer.end_of_text) == 1
    assert tokenizer.decode([tokenizer.end_of_text]) == ""
    assert tokenizer.end_of_text != end_of_text
    assert tokenizer.end_of_text not in tokenizer.encode("<|im_end|>"), "in a text it is a text"


def test_a_prompt_that_a_template_refuses_is_one_clear_line(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    refuses = "{% if messages[0].content == 'rude' %}{{ raise_exception('be kind') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(refuses + CHATML)
    follow_chat(tokenizer, TextConfig(source="rows.jsonl", messages_column="messages"))
    assert tokenizer.encode_prompt("Who?")
    with pytest.raises(InputError, match="^the prompt: the chat template refuses it: be kind$"):
        tokenizer.encode_prompt("rude")


def test_tokens_of_a_conversation_are_those_of_transformers(tokenizer: SubwordTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    theirs.chat_template = CHATML
    conversation = [ASKED, {**SAID, "content": "I, of course."}]
    expected = theirs.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
    chat = chat_of(tokenizer)
    assert chat is not None
    encoded = tokenizer.encode_marked([segment.text for segment in chat.segments(conversation)])
    found = [int(token) for tokens in encoded for token in tokens]
    assert found == expected[: len(found)]
    assert theirs.decode(expected[len(found) :]) == "\n"


def test_a_tokenizer_that_is_no_file_has_no_template_of_the_folder(
    tokenizer: SubwordTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chat_of(read_tokenizer(tokenizer.to_json())) is None
    assert chat_of(tokenizer) == Chat(CHATML)
