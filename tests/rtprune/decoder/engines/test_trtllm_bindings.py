"""Holds every call of the TensorRT-LLM engine to the description of the bindings, with a type checker.

The stubs come from facts about 1.2.1's C++ sources, not from the engine. That the check sees every name is
tested as well: each one is misspelt in turn, and each time the checker must object.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rtprune.decoder.engines.executor_bindings import DESCRIPTION, names, write_stubs

pytestmark = pytest.mark.slow("type-checks the engine against the described bindings")

ROOT = Path(__file__).resolve().parents[4]
ENGINE = ROOT / "rtprune" / "decoder" / "engines" / "trtllm.py"
MISUSES = (
    "trtllm.Request([1], 5, True)",
    "trtllm.Request(input_token_ids=[1])",
    "trtllm.Request([1], 5, stop=[1])",
    "trtllm.Request([1], 5, allotted_time_ms=20)",
    "trtllm.Request([1], 5, cache_salt_id=1)",
    "trtllm.SamplingConfig(1, 1)",
    "trtllm.PromptTuningConfig(embedding_table=[[1.0]])",
    "trtllm.KvCacheConfig(False, 1, None, None, None, None, True, None, None, 0, True)",
    "trtllm.ExecutorConfig(kv_cache_config=trtllm.SchedulerConfig())",
    "trtllm.LogitsPostProcessorConfig(processor_batched=lambda ids, logits: None)",
    "trtllm.ModelType.DECODER",
    "executor.await_responses(timeout=20)",
    "executor.await_responses(timeout=None, wait=True)",
    "executor.cancel_request('1')",
    "executor.enqueue_request(trtllm.Request([1], 5)).result",
    "executor.get_latest_iteration_stats().kv_cache_stats",
    "executor.get_latest_iteration_stats()[0].kv_cache_stats.used_num_blocks",
    "executor.await_responses()[0].result.tokens",
)


def check(stubs: Path, files: list[Path]) -> dict[str, list[tuple[int, str]]]:
    """Errors of each file: line and message."""
    line = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    line += ["--ignore-missing-imports", "--no-error-summary", f"--cache-dir={stubs / 'cache'}"]
    done = subprocess.run(
        [*line, *map(str, files)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": f"{stubs}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, list[tuple[int, str]]] = {file.name: [] for file in files}
    for name, number, message in re.findall(
        r"^(?:.*/)?([^/:\n]+):(\d+): error: (.*)$", done.stdout, re.MULTILINE
    ):
        if name in found:
            found[name].append((int(number), message))
    return found


def used(source: str) -> list[tuple[str, int, int]]:
    """Where the engine names something of the bindings: name, line, column (1 and 0 are the first)."""
    known, found = names(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in known:
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            found.append((node.attr, node.end_lineno, node.end_col_offset - len(node.attr)))
        elif isinstance(node, ast.Call):
            target = ast.unparse(node.func)
            if target.startswith(("trtllm.", "self._executor.")):
                found += [
                    (word.arg, word.lineno, word.col_offset)
                    for word in node.keywords
                    if word.arg is not None and word.arg in known
                ]
    return sorted(set(found))


@pytest.fixture(scope="module")
def uses() -> list[tuple[str, int, int]]:
    """Where the engine names something of the bindings."""
    return used(ENGINE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def errors(
    uses: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[int, str]]]:
    """What one run of the checker says of the engine, of a copy for each misspelling, and of the misuses."""
    folder, source = tmp_path_factory.mktemp("checked"), ENGINE.read_text(encoding="utf-8")
    files = [folder / f"misspelt_{number}.py" for number in range(len(uses))]
    for file, (name, line, column) in zip(files, uses, strict=True):
        lines = source.split("\n")
        text = lines[line - 1].encode()
        assert text[column : column + len(name)].decode() == name
        lines[line - 1] = (text[:column] + b"misspelt_" + text[column:]).decode()
        file.write_text("\n".join(lines), encoding="utf-8")
    head = [
        "from tensorrt_llm.bindings import executor as trtllm",
        "def use(executor: trtllm.Executor) -> None:",
    ]
    misuse = folder / "misuse.py"
    misuse.write_text("\n".join([*head, *(f"    {line}" for line in MISUSES)]), encoding="utf-8")
    stubs = tmp_path_factory.mktemp("stubs")
    write_stubs(stubs)
    return check(stubs, [ENGINE, misuse, *files])


def test_every_call_fits_the_bindings(errors: dict[str, list[tuple[int, str]]]) -> None:
    assert errors[ENGINE.name] == []


def test_a_misspelt_name_of_the_bindings_is_seen_wherever_it_stands(
    errors: dict[str, list[tuple[int, str]]], uses: list[tuple[str, int, int]]
) -> None:
    spoken = {name for name, _, _ in uses}
    assert {
        "Executor", "ExecutorConfig", "KvCacheConfig", "Request", "SamplingConfig", "PromptTuningConfig",
        "LogitsPostProcessorConfig", "enqueue_request", "await_responses", "cancel_request", "shutdown",
        "get_latest_iteration_stats", "processor_batched", "embedding_table", "prompt_tuning_config",
        "allotted_time_ms", "client_id", "output_token_ids", "finish_reasons", "is_final", "has_error",
        "used_num_blocks", "tokens_per_block", "enable_block_reuse", "BATCHED_POST_PROCESSOR_NAME",
    } <= spoken  # fmt: skip
    unseen = [use for number, use in enumerate(uses) if not errors[f"misspelt_{number}.py"]]
    assert unseen == []


def test_misuse_of_the_bindings_is_seen(errors: dict[str, list[tuple[int, str]]]) -> None:
    seen = {number for number, _ in errors["misuse.py"]}
    assert seen == set(range(3, 3 + len(MISUSES)))


def test_the_description_says_where_it_comes_from() -> None:
    read_at = DESCRIPTION["read_at"]
    for name, described in DESCRIPTION["classes"].items():
        assert described["source"] in read_at, name
    for source, commits in read_at.items():
        if source != "note":
            assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits)
    for name, arguments in DESCRIPTION["not_in_both"].items():
        listed = {argument["name"] for argument in DESCRIPTION["classes"][name]["init"]}
        assert not listed & set(arguments)
