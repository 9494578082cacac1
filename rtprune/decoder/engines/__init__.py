"""Decoder engines behind the interface of `base`: a file or folder each. Here the manifest's one is opened."""

from __future__ import annotations

from rtprune.decoder.engines.base import Engine
from rtprune.errors import EngineError
from rtprune.manifest import Manifest
from rtprune.settings import Settings


def open_engine(manifest: Manifest, settings: Settings) -> Engine:
    """Load the files of the decoder engine that the manifest names, and start it.

    A new engine is a `case` in `_load`, a value of the manifest's `decoder.engine`, and an entry in
    tests/engines. Raises EngineError: no such library, no GPU, files that can't be read or are another model's.
    """
    engine = _load(manifest, settings)
    if (engine.info.vocab_size, engine.info.hidden_size) != (manifest.vocab_size, manifest.hidden_size):
        engine.close()
        raise EngineError("The decoder's weights don't belong to this manifest; export again.")
    return engine


def _load(manifest: Manifest, settings: Settings) -> Engine:
    """Import one engine's library, and no other's."""
    folder = manifest.folder / manifest.decoder.folder
    match manifest.decoder.engine:
        case "pytorch":
            try:
                from rtprune.decoder.engines.torch.engine import open_torch_engine
            except ImportError as error:
                raise EngineError(f"The decoder needs PyTorch, which can't be imported: {error}.") from error
            return open_torch_engine(
                folder,
                precision=manifest.decoder.precision,
                device=settings.decoder_device,
                max_running=settings.max_running,
                kv_mib=settings.kv_mib,
                prefill_chunk=settings.prefill_chunk,
                threads=settings.decoder_threads,
            )
        case "tensorrt_llm":
            from rtprune.decoder.engines.trtllm import TrtllmEngine

            return TrtllmEngine(
                folder,
                max_running=settings.max_running,
                kv_fraction=settings.trtllm_kv_fraction,
                longest=settings.max_time_limit,
            )
