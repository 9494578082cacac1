"""The TensorRT-LLM checkpoint: the logits of transformers, every tensor once, bad ones refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.family import DECODER_PREFIXES, read_config
from export.family import Decoder as DecoderShape
from export.trtllm import convert, layout
from rtprune.errors import InvalidInput
from tests.export.decoders import Decoder, language_config, make_decoder
from tests.export.trtllm_layout import logits

pytestmark = pytest.mark.slow("converts decoders beside transformers' own")

PUBLISHED = language_config(
    hidden_size=1280,
    num_hidden_layers=12,
    num_attention_heads=10,
    num_key_value_heads=10,
    intermediate_size=6848,
    moe_intermediate_size=896,
    n_routed_experts=64,
    num_experts_per_tok=6,
    max_position_embeddings=8192,
    vocab_size=129280,
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("decoder"))


def shape_of(config: dict[str, Any]) -> DecoderShape:
    return DecoderShape.model_validate(config)


def write(decoder: Decoder, folder: Path, **options: Any) -> int:
    folder.mkdir(exist_ok=True)
    return convert(decoder, shape_of(decoder.config), folder, **options)


def transformers_logits(decoder: Decoder, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = decoder.model(**inputs, use_cache=False).logits[0]
    return found


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert (found - expected).abs().max() / expected.abs().max() < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 1e-5), ("float16", 1e-4)])
def test_the_layout_gives_the_logits_of_transformers(
    decoder: Decoder, tmp_path: Path, precision: str, tolerance: float
) -> None:
    write(decoder, tmp_path, precision=precision)
    ids = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(decoder, input_ids=ids[None])
    assert expected.std() > 0.3, "weights too tame to tell a wrong layout from a right one"
    assert_close(logits(tmp_path, ids), expected, tolerance)


def test_visual_tokens_come_from_the_prompt_table(decoder: Decoder, tmp_path: Path) -> None:
    write(decoder, tmp_path)
    table = torch.randn(6, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    ids = torch.tensor([0, *range(300, 306), 7, 8, 9])
    embed = decoder.model.get_input_embeddings()
    with torch.no_grad():
        rows = torch.cat([embed(ids[:1]), table.float(), embed(ids[7:])])
    assert_close(logits(tmp_path, ids, table), transformers_logits(decoder, inputs_embeds=rows[None]), 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 2},
        {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 4},
        {"num_hidden_layers": 1},
        {"intermediate_size": 100, "moe_intermediate_size": 36, "vocab_size": 131},
    ],
    ids=["grouped heads", "all experts", "dense only", "odd sizes"],
)
def test_other_shapes(tmp_path: Path, changes: dict[str, Any]) -> None:
    decoder = make_decoder(tmp_path / "source", seed=3, **changes)
    write(decoder, tmp_path)
    ids = torch.randint(0, decoder.config["vocab_size"], (20,), generator=torch.Generator().manual_seed(4))
    assert_close(logits(tmp_path, ids), transformers_logits(decoder, input_ids=ids[None]), 1e-5)


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.fc", "layers.1.mlp.shared_expert.fc", "layers.0.attention.qkv"]
)
def test_the_interpreter_notices_halves_in_the_wrong_order(
    decoder: Decoder, tmp_path: Path, name: str
) -> None:
    write(decoder, tmp_path)
    stored = load_file(tmp_path / "rank0.safetensors")
    weight = stored[f"transformer.{name}.weight"]
    stored[f"transformer.{name}.weight"] = weight.roll(weight.shape[-2] // 2, dims=-2).contiguous()
    save_file(stored, tmp_path / "rank0.safetensors")
    ids = torch.arange(20)
    expected = transformers_logits(decoder, input_ids=ids[None])
    assert (logits(tmp_path, ids) - expected).abs().max() / expected.abs().max() > 0.01


def test_every_source_tensor_is_used_once_and_comes_back(decoder: Decoder, tmp_path: Path) -> None:
    write(decoder, tmp_path)
    targets = list(layout(shape_of(decoder.config)))
    used = Counter(key for t in targets for key in t.sources)
    assert set(used.values()) == {1}
    assert set(used) == {k for k in decoder.weights if k.startswith(DECODER_PREFIXES)}
    assert sum(not k.startswith(DECODER_PREFIXES) for k in decoder.weights) > 10
    stored = load_file(tmp_path / "rank0.safetensors")
    assert set(stored) == {t.name for t in targets}
    for target in targets:
        assert tuple(stored[target.name].shape) == target.shape
        rows = stored[target.name].reshape(-1)
        for key in target.sources:
            size = decoder.weights[key].numel()
            assert torch.equal(rows[:size].float(), decoder.weights[key].reshape(-1).float()), key
            rows = rows[size:]
        assert not len(rows)


def test_the_parameters_of_the_published_decoder() -> None:
    """DeepSeek-OCR's 3,336,106,240 less the encoder, the projector and the two vectors."""
    targets = list(layout(shape_of(PUBLISHED)))
    keys = [key for t in targets for key in t.sources]
    assert len(keys) == len(set(keys)) == 2 + 1 + 12 * 6 + 3 + 11 * (1 + 64 * 3 + 3)
    assert sum(torch.Size(t.shape).numel() for t in targets) == 2_934_734_080


def test_config_json(decoder: Decoder, tmp_path: Path) -> None:
    """Every key is a keyword of 1.2.1's DeepSeekV1Config or PretrainedConfig, or `moe_intermediate_size`."""
    write(decoder, tmp_path, precision="float16")
    config = json.loads((tmp_path / "config.json").read_text())
    keywords = {
        *("architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("hidden_act", "logits_dtype", "norm_epsilon", "position_embedding_type", "max_position_embeddings"),
        *("rotary_embedding_dim", "num_key_value_heads", "intermediate_size", "mapping", "quantization"),
        *(
            "use_parallel_embedding",
            "embedding_sharding_dim",
            "head_size",
            "qk_layernorm",
            "runtime_defaults",
        ),
        *("rotary_base", "rotary_scaling", "moe"),
    }
    assert set(config) - keywords == {"moe_intermediate_size"}
    assert set(config["moe"]) <= {
        *("num_experts", "shared_expert_intermediate_size", "top_k", "normalization_mode", "tp_mode"),
        *("sparse_mixer_epsilon", "device_limited_n_group", "device_limited_topk_group"),
        "device_limited_routed_scaling_factor",
    }
    assert config["dtype"] == "float16"
    assert config["quantization"]["quant_algo"] is None
    assert config["moe"]["shared_expert_intermediate_size"] == 128
    assert config["norm_epsilon"] == 1e-6


def test_int8_weight_only_changes_the_configuration_alone(tmp_path: Path) -> None:
    decoder = make_decoder(tmp_path / "source")
    write(decoder, tmp_path / "plain")
    write(decoder, tmp_path / "int8", weight_only="int8")
    plain, int8 = ((tmp_path / name / "rank0.safetensors").read_bytes() for name in ("plain", "int8"))
    assert plain == int8
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A16"
    uneven = make_decoder(tmp_path / "uneven", moe_intermediate_size=36)
    with pytest.raises(InvalidInput, match="multiples of 64; 36"):
        write(uneven, tmp_path / "refused", weight_only="int8")
    assert not list((tmp_path / "refused").iterdir())


@pytest.mark.parametrize("options", [{"weight_only": "fp8"}, {"precision": "float32"}, {"precision": "int8"}])
def test_what_the_version_cannot_do_is_refused(
    decoder: Decoder, tmp_path: Path, options: dict[str, str]
) -> None:
    with pytest.raises(InvalidInput, match=r"1\.2\.1|float16 or bfloat16"):
        write(decoder, tmp_path, **options)


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.2.mlp.gate.weight",
        "model.layers.1.mlp.experts.7.down_proj.weight",
        "model.layers.2.self_attn.k_proj.weight",
    ],
)
def test_a_value_beyond_float16_is_named(decoder: Decoder, tmp_path: Path, key: str) -> None:
    weight = decoder.weights[key].clone()
    weight.view(-1)[-1] = 1e5
    bad = Decoder(decoder.config, {**decoder.weights, key: weight}, decoder.model)
    if key.endswith("mlp.gate.weight"):  # the router stays float32
        write(bad, tmp_path, precision="float16")
        return
    with pytest.raises(InvalidInput, match=r"beyond torch.float16; export in bfloat16") as error:
        write(bad, tmp_path, precision="float16")
    assert repr(key) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_mla": True}, "use_mla must be false, not true"),
        ({"topk_method": "group_limited_greedy"}, "topk_method must be greedy, not group_limited_greedy"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"routed_scaling_factor": 16.0}, "routed_scaling_factor is 16.0"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace is 3"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling"),
        ({"layer_types": ["reference_sliding_attention"] * 3}, "layer_types"),
        ({"n_shared_experts": 0}, "n_shared_experts: .* greater than 0"),
        ({"n_shared_experts": None}, "n_shared_experts: .* integer"),
        ({"num_attention_heads": 5}, "don't divide 64"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, not gelu"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size: "),
    ],
)
def test_configurations_that_the_graph_cannot_compute(
    random_checkpoint: Path, decoder: Decoder, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """Refused when config.json is read, or where only TensorRT-LLM can't, before anything is written."""
    published = json.loads((random_checkpoint / "config.json").read_text())
    language = {**decoder.config, **changes}
    published["projector_config"]["n_embed"] = language["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(published | {"language_config": language}))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidInput, match=sentence) as error:
        convert(decoder, read_config(tmp_path)[1].decoder, out)
    assert "\n" not in str(error.value)
    assert not list(out.iterdir())
