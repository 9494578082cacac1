"""The TensorRT-LLM checkpoint: the logits of transformers, every tensor once, bad ones refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from export.safetensors_writer import WrittenFile
from export.trtllm import DecoderShape, convert, layout
from rtprune.errors import InvalidInput
from tests.export.bigfile import write_source
from tests.export.decoders import VISION, Decoder, language_config, make_decoder
from tests.export.trtllm_layout import logits

pytestmark = pytest.mark.slow("converts checkpoints of a size that shows memory")

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


def write(decoder: Decoder, folder: Path, **options: Any) -> WrittenFile:
    return convert(decoder, decoder.config, folder, ignored=VISION, **options)


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
    targets = list(layout(DecoderShape.of(decoder.config), torch.bfloat16))
    used = Counter(key for t in targets for key, _ in t.sources)
    assert set(used.values()) == {1}
    assert set(used) == {k for k in decoder.weights if not k.startswith(VISION)}
    assert sum(k.startswith(VISION) for k in decoder.weights) > 10
    stored = load_file(tmp_path / "rank0.safetensors")
    assert set(stored) == {t.name for t in targets}
    for target in targets:
        rows = stored[target.name].reshape(-1)
        for key, shape in target.sources:
            size = torch.Size(shape).numel()
            assert torch.equal(rows[:size].reshape(shape).float(), decoder.weights[key].float()), key
            rows = rows[size:]
        assert not len(rows)


def test_the_parameters_of_the_published_decoder() -> None:
    """DeepSeek-OCR's 3,336,106,240 less the encoder, the projector and the two vectors."""
    targets = list(layout(DecoderShape.of(PUBLISHED), torch.bfloat16))
    keys = [key for t in targets for key, _ in t.sources]
    assert len(keys) == len(set(keys)) == 2 + 1 + 12 * 6 + 3 + 11 * (1 + 64 * 3 + 3)
    parameters = sum(torch.Size(shape).numel() for t in targets for _, shape in t.sources)
    assert parameters == sum(torch.Size(t.shape).numel() for t in targets) == 2_934_734_080


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
    plain, int8 = write(decoder, tmp_path / "plain"), write(decoder, tmp_path / "int8", weight_only="int8")
    assert plain.sha256 == int8.sha256
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W8A16"
    uneven = make_decoder(tmp_path / "uneven", moe_intermediate_size=36)
    with pytest.raises(InvalidInput, match="multiples of 64; 36"):
        write(uneven, tmp_path / "refused", weight_only="int8")
    assert not (tmp_path / "refused").exists()


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
class TestBadTensors:
    def changed(self, decoder: Decoder, **weights: torch.Tensor | None) -> Decoder:
        changed = {**decoder.weights, **weights}
        return Decoder(decoder.config, {k: v for k, v in changed.items() if v is not None}, decoder.model)

    def refuse(self, decoder: Decoder, folder: Path, key: str, reason: str) -> None:
        with pytest.raises(InvalidInput, match=reason) as error:
            write(decoder, folder, precision="float16")
        assert repr(key) in str(error.value)
        assert not (folder / "rank0.safetensors").exists()
        assert not list(folder.glob("*.partial"))

    def test_missing(self, decoder: Decoder, tmp_path: Path, key: str) -> None:
        self.refuse(self.changed(decoder, **{key: None}), tmp_path, key, "lacks")

    def test_misshapen(self, decoder: Decoder, tmp_path: Path, key: str) -> None:
        bad = self.changed(decoder, **{key: decoder.weights[key][:-1]})
        self.refuse(bad, tmp_path, key, r"has the shape \(\d+")

    def test_extra(self, decoder: Decoder, tmp_path: Path, key: str) -> None:
        extra = key.replace("weight", "bias")
        self.refuse(self.changed(decoder, **{extra: torch.zeros(3)}), tmp_path, extra, "doesn't have")

    @pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e5])
    def test_values(self, decoder: Decoder, tmp_path: Path, key: str, value: float) -> None:
        weight = decoder.weights[key].clone()
        weight.view(-1)[-1] = value
        bad = self.changed(decoder, **{key: weight})
        if value == 1e5 and key.endswith("mlp.gate.weight"):  # the router stays float32
            write(bad, tmp_path, precision="float16")
            return
        reason = "beyond torch.float16; export in bfloat16" if value == 1e5 else "aren't finite"
        self.refuse(bad, tmp_path, key, reason)


def test_a_failed_conversion_leaves_no_older_weights_beside_a_new_configuration(
    decoder: Decoder, tmp_path: Path
) -> None:
    write(decoder, tmp_path)
    weight = decoder.weights["lm_head.weight"].clone()
    weight[0, 0] = float("nan")
    bad = Decoder(decoder.config, {**decoder.weights, "lm_head.weight": weight}, decoder.model)
    with pytest.raises(InvalidInput):
        write(bad, tmp_path, precision="float16")
    assert not (tmp_path / "rank0.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_mla": True}, "use_mla is True"),
        ({"topk_method": "group_limited_greedy"}, "topk_method is 'group_limited_greedy'"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"routed_scaling_factor": 16.0}, "routed_scaling_factor is 16.0"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace is 3"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling"),
        ({"layer_types": ["reference_sliding_attention"] * 3}, "layer_types"),
        ({"n_shared_experts": 0}, "needs routed experts, shared experts"),
        ({"n_shared_experts": None}, "lacks a usable value"),
        ({"num_attention_heads": 5}, "don't divide 64"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_configurations_that_the_graph_cannot_compute(
    decoder: Decoder, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence) as error:
        convert(decoder, {**decoder.config, **changes}, tmp_path, ignored=VISION)
    assert "\n" not in str(error.value)


def test_a_configuration_without_a_size(decoder: Decoder, tmp_path: Path) -> None:
    config = {k: v for k, v in decoder.config.items() if k != "moe_intermediate_size"}
    with pytest.raises(InvalidInput, match="moe_intermediate_size"):
        convert(decoder, config, tmp_path, ignored=VISION)


def test_progress_counts_every_byte(decoder: Decoder, tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    written = write(decoder, tmp_path, on_tensor=seen.__setitem__)
    with safe_open(tmp_path / "rank0.safetensors", framework="pt") as file:
        assert list(seen) == sorted(file.keys(), key=list(seen).index)
        assert len(seen) == len(file.keys())
    assert written.bytes == written.path.stat().st_size > sum(seen.values())


MEASURE = """
import sys, torch
from pathlib import Path
from export.safetensors_writer import WrittenFile
from export.trtllm import convert
from export.checkpoint import Checkpoint
from tests.export.bigfile import peak_bytes
from tests.export.decoders import VISION
torch.set_num_threads(1)
source = Checkpoint.open(Path(sys.argv[1]))
before = peak_bytes()
decoder = source.config["language_config"]
convert(source, decoder, Path(sys.argv[2]), precision=sys.argv[3], ignored=VISION)
print(peak_bytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("large")
    return folder / "source", write_source(folder / "source")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_memory_stays_far_below_the_checkpoint(
    large: tuple[Path, int], tmp_path: Path, precision: str
) -> None:
    """A 500 MB decoder converts in less than half of its size: it is never in memory as a whole."""
    source, size = large
    assert size > 450e6
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, source, tmp_path / "out", precision],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    grown = int(run.stdout)
    assert (tmp_path / "out" / "rank0.safetensors").stat().st_size > 0.98 * size
    assert grown < 0.5 * size, f"{grown / 1e6:.0f} MB for {size / 1e6:.0f} MB"
