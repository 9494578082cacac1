"""What the commands say: text to standard output, facts and complaints to standard error."""

from __future__ import annotations

import sys
from pathlib import Path

from deepseek_ocr_client.errors import ClientError, ExitCode, InvalidRequest
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.score import character_error_rate

# A page can make the model write escape sequences, and a terminal obeys them: C0 but for tab and line feed,
# DEL, C1.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


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
    """One line: mode, visual tokens before -> after, output tokens, error rate, first token, seconds."""
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
    return " | ".join(parts)


def read_truth(path: Path | None) -> str | None:
    """The text of a truth file."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The truth file {path} can't be read: {error}.") from None
