"""A decoder folder that can't be used is refused with one sentence that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rtprune.decoder.engines.torch.model import TorchDecoder
from rtprune.decoder.engines.torch.weights import DecoderConfig, WeightFiles
from rtprune.errors import EngineError
from tests.rtprune.decoder.random_weights import write_checkpoint


def load(folder: Path) -> TorchDecoder:
    return TorchDecoder(folder, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("wrapped", ["language_config", "text_config", None])
def test_the_configuration_is_found_where_checkpoints_keep_it(tmp_path: Path, wrapped: str | None) -> None:
    folder = write_checkpoint(tmp_path, seed=0, num_key_value_heads=1, rope_theta=5e5)
    fields = json.loads((folder / "config.json").read_text())["language_config"]
    (folder / "config.json").write_text(json.dumps({wrapped: fields} if wrapped else fields))
    config = DecoderConfig.load(folder / "config.json")
    assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (32, 16, 1)
    assert (config.rope_theta, config.rms_norm_eps, config.routed_scaling_factor) == (5e5, 1e-6, 1.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_mla": True}, "use_mla"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"topk_method": "group_limited_greedy"}, "topk_method"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "don't divide"),
        ({"hidden_size": None}, "hidden_size|NoneType"),
        ({"vocab_size": "many"}, "not a decoder's config.json"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = write_checkpoint(tmp_path, seed=0)
    fields = json.loads((folder / "config.json").read_text())
    fields["language_config"].update(change)
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(EngineError, match=sentence):
        load(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"language_config": 3}'])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_checkpoint(tmp_path, seed=0)
    (folder / "config.json").write_text(text)
    with pytest.raises(EngineError, match="config.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(EngineError, match="config.json"):
        load(folder)


def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "shape", seed=0, edit={"model.norm.weight": torch.ones(31)})
    with pytest.raises(EngineError, match=r"model\.norm\.weight has shape \(31,\).* says \(32,\)"):
        load(folder)
    folder = write_checkpoint(tmp_path / "lacks", seed=0, num_hidden_layers=1)
    fields = json.loads((folder / "config.json").read_text())
    fields["language_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(EngineError, match=r"lacks the tensor model\.layers\.1"):
        load(folder)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=0)
    path = folder / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EngineError, match="can't be read"):
        load(folder)
    path.unlink()
    with pytest.raises(EngineError, match="no .safetensors file"):
        load(folder)


def test_weights_of_the_wanted_type_are_used_where_the_file_is_mapped(tmp_path: Path) -> None:
    files = WeightFiles(write_checkpoint(tmp_path, seed=0, dtype=torch.bfloat16))
    first = files.get("lm_head.weight", (416, 32), torch.bfloat16)
    assert first.data_ptr() == files.get("lm_head.weight", (416, 32), torch.bfloat16).data_ptr()
    assert files.get("lm_head.weight", (416, 32), torch.float32).dtype == torch.float32


def test_parts_of_a_checkpoint_in_several_files_are_put_together(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path, seed=0)
    tensors = load_file(folder / "decoder.safetensors")
    (folder / "decoder.safetensors").unlink()
    for part, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        save_file({n: tensors[n] for n in names}, folder / f"model-{part:05d}-of-000002.safetensors")
    assert load(folder).config.num_hidden_layers == 2
