"""The front end's isolated cases; test_frontend_audio.py and test_onnx.py hold its properties and third witnesses."""

import numpy as np
import pytest

from convert.official import TOKENIZER_FOLDER
from parity_tests.cases.frontend import CASES
from parity_tests.harness.compare import compare
from parity_tests.harness.judge import Row
from port.frontend.special_tokens import ADDITIONAL_SPECIAL_TOKENS, BASE_SPECIAL_TOKENS, END_OF_TEXT
from port.frontend.tokenizer import CosyVoice3Tokenizer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(parity, case):
    parity.check(case)


SENTENCES = (
    "希望你以后能够做的比我还好呦。",
    "You are a helpful assistant.<|endofprompt|>Good morning, [breath] 世界!",
    "<strong>3.14</strong>  and\ttabs, émigré, 😀 [laughter][ǜ]",
)


@pytest.mark.parametrize("text", SENTENCES)
def test_text_tokenizer(parity, text):
    """Ids of the checkpoint's tokenizer as converted, against transformers on the official files."""
    transformers = pytest.importorskip("transformers", reason="transformers is the witness here")
    models = parity.models
    source = models.source / TOKENIZER_FOLDER
    witness = transformers.Qwen2TokenizerFast(str(source / "vocab.json"), str(source / "merges.txt"))
    base = {"additional_special_tokens": list(BASE_SPECIAL_TOKENS)}
    witness.add_special_tokens(base)
    added = {"additional_special_tokens": list(ADDITIONAL_SPECIAL_TOKENS)}
    witness.add_special_tokens({"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, **added})
    expected = np.array(witness(text).input_ids)
    found = np.array(CosyVoice3Tokenizer.from_folder(models.folder).encode(text))
    name = f"text_tokenizer.ids.{SENTENCES.index(text)}"
    reading = compare(found, expected, expected.copy())
    parity.add([Row(name, "text_tokenizer", "exact", "frontend.tokenizer.CosyVoice3Tokenizer", name, reading)])
