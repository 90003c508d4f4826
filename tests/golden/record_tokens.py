"""Records what transformers makes of awkward texts and of four GLUE tasks, into tokens.json beside this file.

Needs the `peers` extra and MINIBERT_SHARED:  python tests/golden/record_tokens.py
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from minibert import tasks

HERE = Path(__file__).parent
VOCAB = HERE.parents[1] / "minibert" / "models" / "vocab.txt"
HASHED = [(name, split) for name in ("mrpc", "rte", "cola", "sts-b") for split in ("train", "dev", "test")]

NASTY = [
    "",
    " ",
    "\t\n\r",
    "Plain words, plainly put.",
    "emoji: \U0001f600 \U0001f44d\U0001f3fd \u2764\ufe0f",
    "ZWJ: \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "keycap 1\ufe0f\u20e3, flag \U0001f1eb\U0001f1f7",
    "漢字とかな交じり文。中文字符，标点！한국어 문장",
    "rare 𠀀𪜀 﨎 丽",
    "naïve café Ångström crème brûlée",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m",
    "Zalgo: h\u0341\u0332e\u0334\u0300l\u0338\u0301l\u0335o\u0336",
    "control\x01characters\x7fand\x85more\x1f",
    "\u200eleft-to-right\u200f marks \u202aembedded\u202c",
    "replacement \ufffd char\ufffdacter",
    "nul \x00 in\x00side",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "y" * 201,
    "é" * 100,
    "e\u0301" * 100,
    "a " + "hippopotomonstrosesquippedaliophobia" * 3 + " b",
    "[SEP]",
    "literal [SEP] and [MASK], [CLS]x[PAD] [UNK]",
    "[sep] [Sep] [ SEP ] [unused1] [SEP",
    "narrow\u202fno-break\u00a0space\u2009thin\u3000ideographic",
    "zero\u200bwidth\u200cspace\ufeffmark soft\u00adhyphen",
    "line\u2028separator\u2029paragraph\x0bvertical\x0cfeed",
    "İstanbul ıspanak DİYARBAKIR",
    "Straße GROẞ ß",
    "ﬁnal ﬂow oﬃce ǅ Ǉ",
    "ΟΔΥΣΣΕΥΣ Σ σ ς",
    "שָׁלוֹם עולם — مَرْحَبًا بالعالم",
    "हिन्दी में वाक्य ไทยภาษา",
    "½ ² ³ ™ © € £ ¥ ₿ № ℃ Ⅷ",
    "“curly” ‘quotes’ — dashes – … «guillemets»",
    "a+b=c^d~e`f|g<h>i$j",
    "don't  can't\twon't--stop...now",
    "private \ue000 and \U000f0000 use",
    "𝐁𝐨𝐥𝐝 𝓈𝒸𝓇𝒾𝓅𝓉 ｆｕｌｌ ｗｉｄｔｈ",
    "http://example.com/a_b?c=d&e=f#g user@example.org",
    "1,234,567.89 2024-05-06T07:08:09Z",
    "##piece ##s #",
    "㍿ ㋿ ㎏",
]


def digest(ids: np.ndarray, lengths: np.ndarray) -> str:
    """SHA-256 of all ids end to end, and of the lengths, as little-endian 32-bit numbers."""
    data = np.asarray(ids, "<i4").tobytes() + np.asarray(lengths, "<i4").tobytes()
    return hashlib.sha256(b"minibert tokens" + data).hexdigest()


def main() -> None:
    import tokenizers
    import transformers

    glue = Path(os.environ["MINIBERT_SHARED"]) / "data" / "glue"
    record: dict = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for name, lower in (("uncased", True), ("cased", False)):
            # Not BertTokenizerFast(vocab_file=...), which in transformers 5 loses the vocabulary.
            (Path(folder) / "vocab.txt").write_bytes(VOCAB.read_bytes())
            config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": 10**9}
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
            (Path(folder) / "config.json").write_text('{"model_type": "bert"}')
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
            record[name] = [theirs(text)["input_ids"] for text in NASTY]
            if lower:
                record["sha256"] = {}
                for task, split in HASHED:
                    examples = tasks.get(task).read(split, glue)
                    second = [example.text_b for example in examples] if tasks.get(task).pairs else None
                    ids = theirs([example.text_a for example in examples], second)["input_ids"]
                    lengths = np.array([len(row) for row in ids])
                    record["sha256"][f"{task} {split}"] = digest(np.concatenate(ids), lengths)
    texts = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    (HERE / "tokens.json").write_text("{\n" + texts + "\n}\n")


if __name__ == "__main__":
    main()
