"""The contract stands once: the models' configurations, the client's copy and the README are held to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deepseek_ocr_client import contract as clients
from rtprune import contract
from rtprune.contract import MODELS, Tensor
from rtprune.decoder.service import FinishReason
from rtprune.preprocess.options import PageOptions

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT / "model_repository"


def configuration(model: str) -> Any:
    text = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def described(entry: Any) -> tuple[str, str, tuple[int, ...]]:
    """A tensor of a configuration: name, dtype and dimensions as the contract writes them."""
    kind = model_config_pb2.DataType.Name(entry.data_type).removeprefix("TYPE_")
    return entry.name, "BYTES" if kind == "STRING" else kind, tuple(entry.dims)


def promised(tensors: tuple[Tensor, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted(tensor[:3] for tensor in tensors)


def test_every_model_is_in_the_contract() -> None:
    assert {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_configured_as_promised(model: str) -> None:
    config = configuration(model)
    assert config.name == model
    assert sorted(map(described, config.input)) == promised(MODELS[model].inputs)
    assert sorted(map(described, config.output)) == promised(MODELS[model].outputs)
    assert {entry.name for entry in config.input if entry.optional} == MODELS[model].optional


@pytest.mark.parametrize("model", ["deepseek_ocr", "encode"])
def test_an_ensemble_wires_every_tensor_of_its_steps(model: str) -> None:
    config = configuration(model)
    carried = {tensor.name: tensor for tensor in MODELS[model].inputs}
    for step in config.ensemble_scheduling.step:
        inside = MODELS[step.model_name]
        inputs = {tensor.name: tensor for tensor in inside.inputs}
        outputs = {tensor.name: tensor for tensor in inside.outputs}
        assert set(inputs) - inside.optional <= set(step.input_map) <= set(inputs)
        for name, outer in step.input_map.items():
            assert (carried[outer].dtype, unbatched(carried[outer])) == (
                inputs[name].dtype,
                unbatched(inputs[name]),
            )
        for name, outer in step.output_map.items():
            carried[outer] = outputs[name]
    assert {tensor.name for tensor in MODELS[model].outputs} <= set(carried)


def unbatched(tensor: Tensor) -> tuple[int, ...]:
    """The shape without the batch of one that travels to and from `vision`."""
    own = {each.name: each for each in vars(contract).values() if isinstance(each, Tensor)}[tensor.name]
    return own.shape if tensor.shape in (own.shape, (1, *own.shape)) else tensor.shape


def test_a_name_stands_for_one_tensor() -> None:
    names = Counter(each.name for each in vars(contract).values() if isinstance(each, Tensor))
    assert set(names.values()) == {1}


def test_named_orders_have_the_lengths_of_their_tensors() -> None:
    assert contract.TIMINGS_TENSOR.shape == (len(contract.TIMINGS),)
    assert contract.LAYOUT_TENSOR.shape == (len(contract.LAYOUT),)


def test_the_decoder_ends_requests_for_the_promised_reasons() -> None:
    assert set(get_args(FinishReason)) == {"", "error", *contract.FINISH_REASONS}


def test_every_option_of_a_request_is_an_input() -> None:
    names = {tensor.name for tensor in contract.INPUTS} - {"IMAGE", "PROMPT"}
    checked = {name.upper() for name in PageOptions.__slots__} - {"NGRAM", "WINDOW"} | {"NO_REPEAT_NGRAM"}
    assert names == checked


@pytest.mark.parametrize("part", ["INPUTS", "OUTPUTS"])
def test_the_client_has_the_same_tensors(part: str) -> None:
    assert [each[:3] for each in getattr(clients, part)] == [each[:3] for each in getattr(contract, part)]


@pytest.mark.parametrize("part", ["TIMINGS", "LAYOUT", "FINISH_REASONS", "DYNAMIC"])
def test_the_client_has_the_same_names_in_the_same_order(part: str) -> None:
    assert getattr(clients, part) == getattr(contract, part)


def test_the_readme_shows_the_contract() -> None:
    shown = contract.tables() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert shown, "put what `python -m rtprune.contract` prints into the README"
