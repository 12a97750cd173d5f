"""Texts and conversations on which a bundle and what it is compared with must agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time there was a lighthouse keeper who",
    "1, 2, 3, 5, 8, 13,",
    "Dear Anna,\n\nthank you for your letter. I am glad to hear that",
)
"""What the models in question continue."""

TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n  \n\t\tx",
    "\r\nline\r\rline\x0b\x0cend",
    "a",
    " a",
    "a ",
    "  two  spaces   three    four     ",
    "tab\tand\t\ttabs",
    "\u00a0no-break\u2003em\u200bzero\u2028line\u3000wide",
    "It's what we've done, they'll say; I'd rather DON'T. THEY'RE He'S",
    "Zürich, naïve café, Ærøskøbing, Łódź, İstanbul, straße, ﬁne ﬂow",
    "cafe\u0301 (two characters) and café (one); A\u030angstro\u0308m",
    "Привет, как дела? Съешь ещё этих мягких французских булок.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί.",
    "שלום עולם — مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया, आप कैसे हैं? বাংলা ভাষা தமிழ் மொழி",
    "สวัสดีชาวโลก ກະລຸນາ ភាសាខ្មែរ မြန်မာ",
    "你好，世界！今天天气怎么样？繁體中文也可以。",
    "こんにちは世界。カタカナとひらがなと漢字。",
    "안녕하세요 세계! 한국어 문장입니다.",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 🏴󠁧󠁢󠁳󠁣󠁴󠁿 ❤️ ✊🏿🙂",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈 𓀀 𠜎",
    "0 1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 1,000,000 1e-10 0x1F -42 +7 ½ ² Ⅳ ١٢٣ १२३ 一二三",
    "2026-11-29T08:14:31Z 12:30 €9.99 $1,234.56 50% 10°C",
    "def f(x, *args, **kw):\n    return [i**2 for i in range(10) if i % 2 == 0]\n\n\nclass A:\n\tpass\n",
    '#include <stdio.h>\nint main(void){for(int i=0;i<10;++i){printf("%d\\n",i);}return 0;}',
    '<div class="x">&amp;&nbsp;</div><!-- c --><br/>\n{"k": [1, 2.5, null, true], "s": "\\u00e9"}',
    "SELECT * FROM t WHERE a <> 'b' AND c >= 1; -- end\n$ ls -la | grep '^d' && echo $HOME ~/x/../y",
    "a_b-c.d/e\\f@g#h$i%j^k&l*m(n)o=p+q[r]s{t}u|v;w:x'y\"z,<>.?/`~!",
    "https://example.org/path?q=1&r=%20#frag user@example.com C:\\dir\\file.txt",
    "!!!??? ... …… --- ——— === ____ ****",
    "\x00\x01\x02\x07\x1b[31m\x7f\x80\x9f\ufeffbom\ufffd\ufffe",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "CamelCaseAndsnake_case UPPER lower MiXeD iPhone15 x86_64 GPT-4o h2o2",
    "<s> </s> <unk> <pad> <bos> <eos> <|endoftext|> <|im_start|>user\nhi<|im_end|> [INST] x [/INST] <<SYS>>",
    "▁ ▁▁word Ġ Ċ <0x0A> <0xFF> ##piece",
)
"""Languages, spaces, digits, code, control characters, names of special tokens."""

_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ",
    "ABCabc 0123456789.,;:!?'\"-\n\t",
    "äöüßéèêçñøåœ ÄÖÜ",
    "абвгдежзий ґїў",
    "中文字符汉语漢 かなカナ한글",
    "।अआइईक ابتث אבג ไทย",
    "{}[]()<>=+-*/\\|&%$#@!~^`_ \n    ",
    "👍🏽👩\u200d💻❤️🇺🇳\u0301\u00a0\u200b\u3000",
)


def texts(special: Iterable[str], drawn: int = 400, most_special: int = 300) -> Iterator[str]:
    """All texts whose ids are compared.

    Args:
        special: Names of the tokenizer's added tokens; each stands at the beginning, inside and at the end of a text.
        drawn: How many are drawn, always the same ones, from alphabets of many scripts.
        most_special: At most so many added tokens take part.
    """
    yield from TEXTS
    yield from PROMPTS
    for name in list(special)[:most_special]:
        yield f"{name}a{name} b {name}\n{name}{name}"
    drawing = np.random.default_rng(20261129)
    for _ in range(drawn):
        parts = drawing.integers(0, len(_ALPHABETS), drawing.integers(1, 4))
        yield "".join("".join(drawing.choice(list(_ALPHABETS[part]), drawing.integers(1, 25))) for part in parts)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and how it is rendered.

    Attributes:
        name: What to call it.
        messages: Its messages.
        options: More variables of the template.
    """

    name: str
    messages: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def _says(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
_ASKED, _CALL = _says("user", "What is the weather in Bern?"), {"name": "weather", "arguments": {"town": "Bern"}}

_CALLED = {"type": "function", "id": "call00001", "function": _CALL}

CONVERSATIONS = (
    Conversation("of one question", (_says("user", "Hello! What is 2 + 2?"),)),
    Conversation("with a system message", (_says("system", "Be brief."), _says("user", "Who are you?"))),
    Conversation(
        "of several turns",
        (_says("user", " Hi "), _says("assistant", "Hello.\n"), _says("user", "And <b>now</b>? 'é\"")),
    ),
    Conversation(
        "without a prompt to answer",
        (_says("user", "Hi"), _says("assistant", "Yes")),
        {"add_generation_prompt": False},
    ),
    Conversation("of an empty message", (_says("user", ""),)),
    Conversation("of one user twice", (_says("user", "One"), _says("user", "Two"))),
    Conversation("with an unknown role", (_says("narrator", "It rained."), _says("user", "Go on"))),
    Conversation("with tools", (_ASKED,), {"tools": [_WEATHER]}),
    Conversation(
        "with a tool's answer",
        (
            _ASKED,
            {"role": "assistant", "content": "", "tool_calls": [_CALLED]},
            {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"sky": "clear"}'},
        ),
        {"tools": [_WEATHER]},
    ),
)
"""What a template is asked to render."""
