"""Markdown as DeepSeek-OCR's authors hand it to OmniDocBench's evaluation."""

from __future__ import annotations

import re

from deepseek_ocr_client.markdown import to_markdown
from deepseek_ocr_client.result import OcrResult

# Equation numbers after a display formula, `\quad (3)`: the ground truth has none. Bounded, so that hostile
# text costs no more than its length.
_EQUATION_NUMBER = re.compile(r"\\quad\s{0,20}\([^()\n]{0,40}\)(?=[^\[\]\n]{0,40}\\\])")
_CENTER = re.compile(r"</?center>")


def for_evaluation(result: OcrResult) -> str:
    """A page's Markdown without figures, `<center>` tags and equation numbers.

    The same normalisation that the authors' evaluation script applies (`run_dpsk_ocr_eval_batch.py`), so
    that edit distances compare with the published ones.
    """
    markdown, _ = to_markdown(result.text, None, text_labels=result.text_labels)
    return _CENTER.sub("", _EQUATION_NUMBER.sub("", markdown)) + "\n"
