"""A `tensorrt` module made of the description of the real one's API, for machines without TensorRT's libraries.

Every name and signature comes from data/tensorrt_api.json, which was read from the bindings of the pinned version:
an attribute that isn't there, a wrong argument or a wrong type is an error here as it is there. What the calls do
is kept to what the documentation states: a "plan" is the graph and its batch profile, and a run of it is a run of the
graph in ONNX Runtime on the memory whose addresses were set.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

API = json.loads((Path(__file__).parent / "data" / "tensorrt_api.json").read_text())
HALF = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(bfloat16)": "BF16"}


class Described:
    """Base of every class of the module; `state` holds what its behaviour remembers."""

    module: ModuleType

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}
        bound = bind(self.module, type(self).__name__, "__init__", args, kwargs)
        self.behaviour("__init__")(self, *bound)

    @classmethod
    def bare(cls, **state: Any) -> Any:
        made = cls.__new__(cls)
        made.state = state
        return made

    def __bytes__(self) -> bytes:
        if type(self).__name__ != "IHostMemory":
            raise TypeError(f"a {type(self).__name__} has no buffer")
        content: bytes = self.state["content"]
        return content

    def behaviour(self, name: str) -> Any:
        return BEHAVIOUR.get((type(self).__name__, name), lambda *_: None)


def bind(
    module: ModuleType, owner: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """The arguments in the order of the first signature that takes them; TypeError if none does."""
    signatures = API["classes"][owner][method]["signatures"]
    for signature in signatures:
        parameters = signature["parameters"]
        names = [p["name"] for p in parameters]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        needed = {p["name"] for p in parameters if "default" not in p}
        if len(args) > len(names) or not needed <= set(given) <= set(names):
            continue
        if all(fits(module, given[p["name"]], p["type"]) for p in parameters if p["name"] in given):
            return [given.get(name) for name in names]
    raise TypeError(f"tensorrt.{owner}.{method} doesn't take {args} {kwargs}; it has {signatures}")


def fits(module: ModuleType, value: Any, kind: str) -> bool:
    """Whether pybind would convert `value` to `kind`."""
    if kind in ("str", "tuple", "list"):
        return type(value).__name__ == kind
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, enum.Enum)
    if kind == "buffer":
        return isinstance(value, bytes | bytearray | memoryview) or type(value).__name__ == "IHostMemory"
    if kind.endswith("Dims"):
        return isinstance(value, tuple | list) and all(isinstance(v, int) for v in value)
    if kind.endswith("ILogger"):
        return type(value).__name__ == "Logger"
    wanted = getattr(module, kind.rsplit(".", maxsplit=1)[-1], None)
    return isinstance(wanted, type) and isinstance(value, wanted)


def described_tensorrt() -> ModuleType:
    """A fresh module; put it into `sys.modules["tensorrt"]`."""
    module = ModuleType("tensorrt")
    vars(module)["__version__"] = API["version"]
    for name, members in API["enums"].items():
        setattr(module, name, enum.Enum(name, members) if name not in INTEGERS else _int_enum(name, members))
    for name, members in API["classes"].items():
        setattr(module, name, type(name, (Described,), {"module": module, **_members(module, name, members)}))
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    vars(module)["Severity"] = Severity
    for level in Severity:
        setattr(module.Logger, level.name, level)
    return module


INTEGERS = {"NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}}


def _int_enum(name: str, members: list[str]) -> Any:
    known = INTEGERS[name]
    return enum.IntEnum(name, {m: known.get(m, 10 + i) for i, m in enumerate(members)})


def _members(module: ModuleType, owner: str, described: dict[str, Any]) -> dict[str, Any]:
    def method(name: str) -> Any:
        def call(self: Described, *args: Any, **kwargs: Any) -> Any:
            return self.behaviour(name)(self, *bind(module, owner, name, args, kwargs))

        return call

    def prop(name: str) -> property:
        return property(lambda self: self.behaviour(name)(self))

    return {
        name: prop(name) if member["kind"] == "property" else method(name)
        for name, member in described.items()
        if name != "__init__" and member["kind"] != "value"
    }


def _address(pointer: int, size: int) -> NDArray[np.uint8]:
    raw = (ctypes.c_uint8 * size).from_address(pointer)
    return np.ctypeslib.as_array(raw)


def _create_network(self: Any, flags: int | None) -> Any:
    return self.module.INetworkDefinition.bare(flags=flags or 0, graph=None)


def _parse(self: Any, path: str) -> bool:
    try:
        onnx.checker.check_model(path)
    except Exception as error:  # any broken file is a parse error
        self.state["errors"] = [str(error)]
        return False
    self.state["network"].state["graph"] = path
    return True


def _image_shape(graph: str) -> list[int]:
    dims = onnx.load(graph, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return [-1, *(d.dim_value for d in dims[1:])]


def _set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    if cache.state["content"].startswith(b"another GPU") and not ignore_mismatch:
        return False
    self.state["cache"] = cache
    return True


def _set_shape(self: Any, name: str, smallest: Any, best: Any, largest: Any) -> None:
    assert all(a <= b <= c for a, b, c in zip(smallest, best, largest, strict=True))
    self.state[name] = [list(smallest), list(best), list(largest)]


def _build(self: Any, network: Any, config: Any, _: Any = None) -> Any:
    assert network.state["flags"] & 1 << 1, "the network isn't strongly typed"
    assert config.state["profiles"], "a free batch needs a profile"
    config.state["cache"].state["content"] += b" timed"
    # A plan holds its weights, wherever the graph had them.
    graph = base64.b64encode(onnx.load(network.state["graph"]).SerializeToString()).decode()
    content = json.dumps({"graph": graph, "profiles": config.state["profiles"]}).encode()
    return self.module.IHostMemory.bare(content=b"PLAN" + content)


def _deserialize(self: Any, content: Any) -> Any:
    if not bytes(content).startswith(b"PLAN"):
        return None
    plan = json.loads(bytes(content)[4:])
    session = ort.InferenceSession(base64.b64decode(plan["graph"]), providers=["CPUExecutionProvider"])
    return self.module.ICudaEngine.bare(session=session, profiles=plan["profiles"], contexts=0)


def _tensor(self: Any, name: str) -> Any:
    session = self.state["session"]
    return next(t for t in (*session.get_inputs(), *session.get_outputs()) if t.name == name)


def _create_context(self: Any, strategy: Any) -> Any:
    self.state["contexts"] += 1
    own = strategy is None or strategy.name != "USER_MANAGED"
    return self.module.IExecutionContext.bare(engine=self, addresses={}, memory=own, profile=None, shape=None)


def _set_input_shape(self: Any, name: str, shape: Any) -> bool:
    smallest, _, largest = self.state["engine"].state["profiles"][0][name]
    if not all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True)):
        return False
    self.state["shape"] = list(shape)
    return True


def _execute(self: Any, stream: int) -> bool:
    state, session = self.state, self.state["engine"].state["session"]
    if not (stream and state["memory"] and state["shape"] and state["profile"] == 0):
        return False
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    if {source.name, target.name} - set(state["addresses"]):
        return False
    size = int(np.prod(state["shape"]))
    images = _address(state["addresses"][source.name], size).reshape(state["shape"])
    # By address, because NumPy has no bfloat16.
    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images))
    (result,) = session.run_with_ort_values([target.name], {source.name: value})
    size = int(np.prod(result.shape())) * (4 if result.data_type() == "tensor(float)" else 2)
    ctypes.memmove(state["addresses"][target.name], result.data_ptr(), size)
    return True


BEHAVIOUR: dict[tuple[str, str], Any] = {
    ("Builder", "create_network"): _create_network,
    ("Builder", "create_builder_config"): lambda s: s.module.IBuilderConfig.bare(profiles=[], cache=None),
    ("Builder", "create_optimization_profile"): lambda s: s.module.IOptimizationProfile.bare(),
    ("Builder", "build_serialized_network"): _build,
    ("INetworkDefinition", "get_input"): lambda s, i: s.module.ITensor.bare(graph=s.state["graph"], index=i),
    ("ITensor", "shape"): lambda s: _image_shape(s.state["graph"]),
    ("OnnxParser", "__init__"): lambda s, network, logger: s.state.update(network=network, errors=[]),
    ("OnnxParser", "parse_from_file"): _parse,
    ("OnnxParser", "num_errors"): lambda s: len(s.state["errors"]),
    ("OnnxParser", "get_error"): lambda s, i: s.module.ParserError.bare(text=s.state["errors"][i]),
    ("ParserError", "desc"): lambda s: s.state["text"],
    ("IBuilderConfig", "create_timing_cache"): lambda s, b: s.module.ITimingCache.bare(content=bytes(b)),
    ("IBuilderConfig", "set_timing_cache"): _set_timing_cache,
    ("IBuilderConfig", "get_timing_cache"): lambda s: s.state["cache"],
    ("IBuilderConfig", "add_optimization_profile"): lambda s, p: s.state["profiles"].append(p.state) or 0,
    ("ITimingCache", "serialize"): lambda s: s.module.IHostMemory.bare(content=s.state["content"]),
    ("IOptimizationProfile", "set_shape"): _set_shape,
    ("Runtime", "deserialize_cuda_engine"): _deserialize,
    ("ICudaEngine", "get_tensor_shape"): lambda s, n: [
        d if isinstance(d, int) else -1 for d in _tensor(s, n).shape
    ],
    ("ICudaEngine", "get_tensor_dtype"): lambda s, n: s.module.DataType[HALF[_tensor(s, n).type]],
    ("ICudaEngine", "get_tensor_profile_shape"): lambda s, name, index: s.state["profiles"][index][name],
    ("ICudaEngine", "device_memory_size_v2"): lambda s: 1000,
    ("ICudaEngine", "create_execution_context"): _create_context,
    ("IExecutionContext", "set_device_memory"): lambda s, p, n: s.state.update(memory=bool(p) and n >= 1000),
    ("IExecutionContext", "set_optimization_profile_async"): lambda s, i, h: (
        s.state.update(profile=i) or True
    ),
    ("IExecutionContext", "set_input_shape"): _set_input_shape,
    ("IExecutionContext", "set_tensor_address"): lambda s, n, p: s.state["addresses"].update({n: p}) or True,
    ("IExecutionContext", "execute_async_v3"): _execute,
}
