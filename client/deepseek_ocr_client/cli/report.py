"""What the commands say: text to standard output, facts and complaints to standard error."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from deepseek_ocr_client.errors import ClientError, ExitCode, InvalidRequest
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.score import character_error_rate

# A page can make the model write escape sequences, and a terminal obeys them: C0 but for tab and line feed,
# DEL, C1.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


REFERENCE = "reference-deepseek-ocr"  # the small checkpoint that ships with the server, by its own name
# A word, a number or a code in capitals, with what stands around it in print.
_PLAIN = re.compile(
    r"""["'(\[]?(?:[A-Z]?[a-z]+(?:['-][a-z]+)*|[A-Z]+|[-+$€£]?\d[\d.,:/-]*%?)["')\].,:;!?]*"""
)
_MARKUP = re.compile(r"<[^>]*>|!\[\]\([^)]*\)")
PLAIN_SHARE = (
    0.6  # of the characters: pages that the reference model can read have 0.9 and more, others 0 to 0.8
)


class ModelNote:
    """Says in one line, once a run, that a server runs the reference model; it reads its own kind of page only."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, model: str) -> None:
        """Say it, if `model` is that one and nothing was said yet."""
        if model == REFERENCE and not self._said:
            self._said = True
            say(
                f"note: this server runs {model}, a small model for trying the software; it reads pages like its own "
                "examples and no ordinary print."
            )


def noise_advice(result: OcrResult) -> str:
    """What to do about a text of the reference model that is no text; empty where it is one, or of another model."""
    words = [word for word in _MARKUP.sub(" ", result.markdown).split() if re.search(r"\w", word) or word[3:]]
    plain = sum(len(word) for word in words if _PLAIN.fullmatch(word))
    if result.model != REFERENCE or plain >= PLAIN_SHARE * sum(map(len, words)):
        return ""
    return (
        "this text looks like noise: the reference model can't read this page. "
        "Export DeepSeek-OCR's weights and serve those."
    )


def harmless(text: str) -> str:
    """The text without characters that a terminal would obey."""
    return text.translate(_CONTROLS)


def write(text: str) -> None:
    """Text for the user or the next program, at once; a program gets it as it is."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def say(text: str) -> None:
    """A line beside the output."""
    sys.stderr.write(harmless(text) + "\n")
    sys.stderr.flush()


def complain(error: ClientError, where: str = "") -> None:
    """An error in one line: where, what, and what to do next."""
    say(f"error: {where + ': ' if where else ''}{error}{' ' + error.advice if error.advice else ''}")


def verdict(done: int, errors: list[ClientError]) -> ExitCode:
    """The exit code of a command over several pages."""
    codes = {error.exit_code for error in errors}
    if not codes:
        return ExitCode.OK
    return codes.pop() if len(codes) == 1 and not done else ExitCode.PARTIAL


def mode_of(result: OcrResult, asked: str | None) -> str:
    """The mode's name: as asked, or told from what the encoder saw."""
    if asked:
        return asked
    if result.layout.tiled:
        return "gundam"
    return {512: "tiny", 640: "small", 1024: "base", 1280: "large"}.get(
        result.layout.side, f"{result.layout.side} px"
    )


def facts(result: OcrResult, mode: str | None, truth: str | None, seconds: float) -> str:
    """One line: mode, visual tokens before -> after, output tokens, error rate, first token, seconds, model."""
    dropped = 1 - result.kept_tokens / max(result.visual_tokens, 1)
    parts = [
        f"mode {mode_of(result, mode)}",
        f"visual tokens {result.visual_tokens} -> {result.kept_tokens} (-{dropped:.0%})",
        f"output tokens {result.output_tokens}",
    ]
    if truth is not None:
        parts.append(f"character error rate {character_error_rate(result.markdown, truth):.2%}")
    if result.timings is not None:
        parts.append(f"first token {result.timings.first_token:.2f} s")
    parts.append(f"total {seconds:.2f} s")
    parts.append(f"finish {result.finish_reason}")
    if result.model:
        parts.append(f"model {result.model}")
    return " | ".join(parts)


def read_truth(path: Path | None) -> str | None:
    """The text of a truth file."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The truth file {path} can't be read: {error}.") from None
