"""The tokenizer of the miniature world: one token per word."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_eve.nano.world.language import ASSISTANT, USER, vocabulary
from lit_eve.nano.world.prompts import FORMATS, LETTERS
from lit_eve.nano.world.questions import PLURALS
from lit_eve.nano.world.scenes import SHAPES

SPECIAL = ("<unk>", "<s>", "<pad>", "</s>", "<image>")  # CLIP takes the id 2 of an end token for a known mistake: </s> is 3
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- macro text(content) %}
    {%- if content is string %}{{ content }}{% else %}
        {%- for part in content %}{{ '<image>\\n' if part.type == 'image' else part.text }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- 'ASSISTANT: ' }}
        {%- generation %}{{ text(message.content) }}{{ eos_token }}{% endgeneration %}
    {%- else %}
        {{- 'USER: ' }}{{ text(message.content) }}{{ ' ' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `language.vocabulary`, lower-cased, unknown words as ``<unk>``.

    Texts begin with ``<s>``. Things are named in one way inside, whatever the wording: see `_one_noun`.

    One token each are the newline (the end of a caption), the two roles of the chat template, the
    benchmarks' sentences about the form of an answer, which never vary, and the capital letters of options.
    Decoding puts one space between words and none before punctuation.
    """
    whole = ["\n", USER, ASSISTANT, *FORMATS, *(f"\n{letter}." for letter in LETTERS)]
    words = [*SPECIAL, *whole, *LETTERS, "?", ",", ".", ";", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *_one_noun()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+(-\w+)*|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="<never>", cleanup=True)  # joins by spaces, none before punctuation
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in whole])
    tokenizer.add_tokens([AddedToken(letter, normalized=False, single_word=True) for letter in LETTERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _one_noun() -> list[normalizers.Normalizer]:
    """Read "the circle" as "the circle shape", and "circles" as "circle shapes", as "the red shape" and "red shapes" are read.

    A thing is then asked for in one way, by its colour or by its shape. A model of this size learns that way once; learning two
    of them is a matter of luck (docs/nano.md).
    """
    rewritten = {rf"\b{many}\b": f"{one} shapes" for one, many in PLURALS.items()}
    rewritten |= {rf"\bthe {shape}\b(?! shape)": f"the {shape} shape" for shape in SHAPES}
    return [normalizers.Replace(Regex(pattern), text) for pattern, text in rewritten.items()]
