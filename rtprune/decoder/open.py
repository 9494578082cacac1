"""Opens the decoder that a manifest describes."""

from __future__ import annotations

from rtprune.decoder.engines.base import Engine
from rtprune.decoder.service import DecoderMetrics, DecoderService
from rtprune.errors import EngineError
from rtprune.manifest import Manifest
from rtprune.settings import Settings


def open_engine(manifest: Manifest, settings: Settings) -> Engine:
    """Load the decoder engine's files and start it. Raises EngineError."""
    entry = manifest.decoder
    if entry.engine != "pytorch":
        from rtprune.decoder.engines.trtllm import open_trtllm_engine

        trtllm: Engine = open_trtllm_engine(manifest, settings)
        return trtllm
    try:
        from rtprune.decoder.engines.torch.engine import open_torch_engine
    except ImportError as error:
        raise EngineError(f"The decoder needs PyTorch, which can't be imported: {error}.") from error
    engine = open_torch_engine(
        manifest.folder / entry.folder,
        precision=entry.precision,
        device=settings.decoder_device,
        max_running=settings.max_running,
        kv_mib=settings.kv_mib,
        prefill_chunk=settings.prefill_chunk,
        threads=settings.decoder_threads,
    )
    if engine.info.vocab_size != manifest.vocab_size or engine.info.hidden_size != manifest.hidden_size:
        engine.close()
        raise EngineError("The decoder's weights don't belong to this manifest; export again.")
    return engine


def open_service(
    manifest: Manifest, settings: Settings, metrics: DecoderMetrics | None = None
) -> DecoderService:
    """The decoder stage, ready for requests. Raises EngineError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(manifest.tokenizer))
    return DecoderService(open_engine(manifest, settings), tokenizer, settings, metrics)
