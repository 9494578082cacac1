"""The manifest: what is read back is what was written, and anything else is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtprune.errors import EngineError
from rtprune.manifest import MANIFEST, Manifest


@pytest.fixture
def folder(random_engines: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_engines, tmp_path / "engines"))


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def test_what_the_stages_ask_for(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert manifest.folder == folder
    assert manifest.tokenizer == folder / "tokens" / "tokenizer.json"
    assert manifest.sides == (512, 640, 1024, 1280)
    assert {manifest.path(entry.file).name for entry in manifest.vision} >= {"vision-1280.onnx"}
    facts = manifest.facts()
    assert facts["modes"] == "tiny,small,base,large,gundam"
    assert facts["vision"]["640"] == "onnxruntime fp32"
    json.dumps(facts)


def test_a_relative_folder_stays_right_when_the_process_moves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    manifest = Manifest.load(Path("engines"))
    monkeypatch.chdir("/")
    assert manifest.tokenizer.is_file()


def test_no_engines_says_how_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"holds no engines .*python -m export"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "has format 2 and this program reads format 1; export again"),
        ({"hidden_size": 0}, "hidden_size: Input should be greater than 0"),
        ({"vision": []}, "vision: Tuple should have at least 1 item"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"target": "tpu"}, "target: Input should be 'cpu' or 'gpu'"),
        ({"tokenizer_file": {"path": "../x", "sha256": "0" * 64, "bytes": 1}}, "leads out of the folder"),
        (
            {"tokenizer_file": {"path": "/etc/passwd", "sha256": "0" * 64, "bytes": 1}},
            "leads out of the folder",
        ),
        ({"tokenizer_file": {"path": "x", "sha256": "0", "bytes": 1}}, "tokenizer_file.sha256"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, object], sentence: str) -> None:
    edit(folder, **changes)
    with pytest.raises(EngineError) as error:
        Manifest.load(folder)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_one_side_has_one_engine(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    edit(folder, vision=[content["vision"][0]] * 2)
    with pytest.raises(EngineError, match="a side has two vision entries"):
        Manifest.load(folder)


def test_files_are_checked(folder: Path) -> None:
    path = folder / "vision" / "vision-640.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(EngineError, match="vision-640.onnx has .* bytes and the manifest says"):
        Manifest.load(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    manifest = Manifest.load(folder)
    with pytest.raises(EngineError, match="vision-640.onnx has changed since it was exported"):
        manifest.verify_hashes()
    path.unlink()
    with pytest.raises(EngineError, match="vision-640.onnx is missing"):
        Manifest.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"1"])
def test_other_content_is_one_sentence(folder: Path, content: Any) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(EngineError, match=MANIFEST) as error:
        Manifest.load(folder)
    assert "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(content=JSON, name=st.sampled_from(sorted(Manifest.model_fields)))
def test_any_json_is_taken_or_refused_in_one_sentence(random_engines: Path, content: Any, name: str) -> None:
    whole = json.loads((random_engines / MANIFEST).read_text())
    for candidate in (content, whole | {name: content}):
        try:
            Manifest.parse(candidate, Path(MANIFEST))
        except EngineError as error:
            assert "\n" not in str(error)
