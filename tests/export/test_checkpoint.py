"""Checkpoints that aren't right are refused with the tensor's name, and a right one reads as safetensors does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from export.checkpoint import INDEX, Checkpoint
from rtprune.errors import InvalidInput
from training.config import checkpoint_config
from training.random_checkpoint import write_random_checkpoint

SHARD = "model-00001-of-000001.safetensors"
QKV = "model.sam_model.blocks.1.attn.qkv.weight"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_checkpoint, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / SHARD)
    change(weights)
    save_file(weights, folder / SHARD)
    (folder / INDEX).unlink()


def test_a_right_checkpoint_reads_as_safetensors_does(random_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint)
    weights = load_file(random_checkpoint / SHARD)
    assert set(checkpoint.names("")) == set(weights)
    for name, tensor in weights.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert torch.equal(checkpoint.read(name), tensor)
    assert checkpoint.bytes("") == sum(t.numel() * t.element_size() for t in weights.values())


def test_shards_are_one_checkpoint(copy: Path) -> None:
    weights = load_file(copy / SHARD)
    names = sorted(weights)
    (copy / SHARD).unlink()
    places: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, copy / file)
        places |= dict.fromkeys(part, file)
    (copy / INDEX).write_text(json.dumps({"weight_map": places}))
    checkpoint = Checkpoint.open(copy)
    assert all(torch.equal(checkpoint.read(name), weights[name]) for name in names)
    assert len(checkpoint.files()) == 4
    first = places[names[0]]
    (copy / first).unlink()
    with pytest.raises(InvalidInput, match=f"puts the tensor .* into {first}, and there is no such file"):
        Checkpoint.open(copy)
    shutil.copy(copy / places[names[1]], copy / "again.safetensors")
    (copy / INDEX).unlink()
    with pytest.raises(InvalidInput, match=r"The tensor \S+ is in again.safetensors and in model-00002"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop(QKV), f"lacks the tensor {QKV}"),
        (lambda w: w.update({"model.extra": torch.zeros(1)}), "holds the tensor model.extra, which"),
        (
            lambda w: w.update({QKV: w[QKV].T.contiguous()}),
            rf"The tensor {QKV} has shape \[64, 192\], .* \[192, 64\]",
        ),
        (lambda w: w.update({QKV: w[QKV].to(torch.float8_e4m3fn)}), f"The tensor {QKV} is stored as F8_E4M3"),
    ],
    ids=["missing", "extra", "misshapen", "another type"],
)
def test_a_wrong_tensor_is_named(copy: Path, change: Callable[[Weights], object], sentence: str) -> None:
    edit(copy, change)
    with pytest.raises(InvalidInput, match=sentence):
        Checkpoint.open(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named_when_it_is_read(copy: Path, value: float) -> None:
    edit(copy, lambda w: w[QKV].view(-1)[77:78].fill_(value))
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(InvalidInput, match=f"The tensor {QKV} holds values that are not finite"):
        checkpoint.read(QKV)


def test_the_tensor_at_which_a_file_ends_is_named(copy: Path) -> None:
    whole = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(whole[:-1000])
    last = max(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]).items(), key=end_of)[0]
    with pytest.raises(InvalidInput, match=f"The tensor {last} is cut off"):
        Checkpoint.open(copy)
    (copy / SHARD).write_bytes(whole[:500])
    with pytest.raises(InvalidInput, match="isn't a safetensors file, or is cut off within its header"):
        Checkpoint.open(copy)


def end_of(item: tuple[str, dict[str, list[int]]]) -> int:
    return item[1].get("data_offsets", [0, 0])[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_no_damaged_file_gets_past_the_reader_with_another_error(
    random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any bytes changed in the header, or a cut anywhere: one InvalidInput, or a checkpoint that is as whole."""
    content = bytearray((random_checkpoint / SHARD).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), header, header + 1, 9, 7, 0]))]
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).symlink_to(random_checkpoint / name)
    (folder / SHARD).write_bytes(content)
    try:
        checkpoint = Checkpoint.open(folder)
        for name in checkpoint.names(""):
            assert checkpoint.read(name).shape == checkpoint.shape(name)
    except InvalidInput as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            "of the architecture LlamaForCausalLM; .* DeepseekOCRForCausalLM",
        ),
        ({"architectures": ["DeepseekOCR2ForCausalLM"]}, "of the architecture DeepseekOCR2ForCausalLM"),
        ({"model_type": "qwen"}, "of the architecture qwen"),
        ([], "isn't a model's configuration"),
        ({"architectures": ["DeepseekOCRForCausalLM"]}, "vision_config: Field required"),
        ("{", "can't be read"),
    ],
)
def test_another_architecture_is_named(copy: Path, config: object, sentence: str) -> None:
    (copy / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InvalidInput, match=sentence):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("language_config", "use_mla"), True, "use_mla must be false"),
        (("language_config", "hidden_size"), -1, "language_config.hidden_size: .*greater than 0"),
        (("language_config", "hidden_size"), 320, "the projector must go from"),
        (("language_config", "hidden_size"), 256, "5 heads with 5 key-value heads don.t divide 256"),
        (("language_config", "num_hidden_layers"), 9, "lacks the tensor model.layers.8"),
        (
            ("language_config", "vocab_size"),
            7,
            r"The tensor lm_head.weight has shape \[\d+, 160\], .*\[7, 160\]",
        ),
        (("vision_config", "width", "sam_vit_b", "heads"), 3, "SAM's 3 heads don't divide"),
        (
            ("vision_config", "width", "sam_vit_b", "downsample_channels"),
            [128, 64],
            "SAM ends in 64 channels",
        ),
        (("projector_config", "projector_type"), "mlp", "projector_type must be linear"),
        (("language_config", "layer_types"), 3, "layer_types must be .*full_attention.*, not 3"),
        (("language_config", "layer_types"), [None, "x"], "layer_types must be "),
        (("language_config", "layer_types"), [{}], "layer_types must be "),
        (("language_config", "mlp_layer_types"), ["dense"] * 8, "mlp_layer_types must be .*sparse"),
        (
            ("language_config", "rope_parameters"),
            {"rope_type": "yarn"},
            "rope_type must be default, not yarn",
        ),
        (("language_config", "rope_parameters"), 7, "rope_parameters must be an object"),
        (("language_config",), [], "language_config: "),
    ],
)
def test_a_wrong_value_in_the_configuration_is_named(
    copy: Path, path: tuple[str, ...], value: object, sentence: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    part = config
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=sentence):
        Checkpoint.open(copy)


def test_what_newer_configurations_say_of_rotation_is_read(copy: Path) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    layers = config["language_config"]["num_hidden_layers"]
    config["language_config"] |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "layer_types": ["full_attention"] * layers,
        "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
    }
    path.write_text(json.dumps(config))
    assert Checkpoint.open(copy).architecture.decoder.rope_theta == 500000.0


def test_what_is_not_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="There is no checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"holds no config.json"):
        Checkpoint.open(tmp_path)


def test_no_weights_and_a_broken_index_are_told(copy: Path) -> None:
    (copy / INDEX).write_text('{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}')
    with pytest.raises(InvalidInput, match=r"puts the tensor lm_head.weight into ../elsewhere.safetensors"):
        Checkpoint.open(copy)
    (copy / INDEX).write_text('{"weight_map": []}')
    with pytest.raises(InvalidInput, match="isn't an index of shards"):
        Checkpoint.open(copy)
    (copy / INDEX).unlink()
    (copy / SHARD).unlink()
    with pytest.raises(InvalidInput, match="holds no .safetensors file"):
        Checkpoint.open(copy)


HALF_A_GIGABYTE = {
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 4096,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 24,
    "vocab_size": 32000,
}
MEASURE = """
import re, sys, torch
from pathlib import Path
from export import checkpoint
from export.decoder import write_decoder
# getrusage counts what the parent had before exec; this doesn't.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
checkpoint.SHARD_BYTES = 2**25
source = checkpoint.Checkpoint.open(Path(sys.argv[1]))
before = peak()
write_decoder(source, sys.argv[3], Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow("writes half a gigabyte")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_shards_are_written_in_little_memory(tmp_path: Path, precision: str) -> None:
    """A decoder of 500 MB for a CPU in less than half of that: it is never in memory as a whole."""
    config = checkpoint_config(HALF_A_GIGABYTE["vocab_size"])
    config["language_config"] |= HALF_A_GIGABYTE
    config["projector_config"]["n_embed"] = HALF_A_GIGABYTE["hidden_size"]
    size = 2 * write_random_checkpoint(tmp_path / "source", config)[1]
    assert size > 450e6
    out = tmp_path / "out"
    out.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "source", out, precision],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    shards = list(out.glob("model-*.safetensors"))
    assert len(shards) > 10
    assert sum(shard.stat().st_size for shard in shards) > 0.98 * size * (2 if precision == "fp32" else 1)
    grown = int(run.stdout)
    assert grown < 0.5 * size, f"{grown / 1e6:.0f} MB for {size / 1e6:.0f} MB"
