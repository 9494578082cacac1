"""transformers' `unlimited_ocr` with full attention: what the PyTorch decoder is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tests.engines.calls import Ask


class TransformersDecoder:
    """transformers' model, asked what our engine is asked."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab_size: int = model.config.text_config.vocab_size

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> Self:
        """The decoder of `folder`, which has the shapes of `config`, beside a vision encoder that isn't used."""
        from safetensors.torch import load_file
        from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

        tiny_vision = {
            "sam_config": {
                "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32,
                "global_attn_indexes": [0], "downsample_channels": [32, 32], "output_channels": 32,
            },
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
            },
        }  # fmt: skip
        text = {
            **config,
            "layer_types": ["full_attention"] * config["num_hidden_layers"],
            "sliding_window": config["max_position_embeddings"],
            "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
        whole = UnlimitedOcrConfig(text_config=text, vision_config=tiny_vision, image_token_id=2)
        tensors = load_file(folder / "decoder.safetensors")
        model: Any = UnlimitedOcrForConditionalGeneration.from_pretrained(
            None, config=whole, state_dict=tensors, dtype=dtype
        )
        return cls(model.eval())

    def embed(self, one: Ask) -> torch.Tensor:
        """Embedded prompt, (1, n, hidden)."""
        ids = torch.from_numpy(one.ids.astype(np.int64))
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids.clamp(max=self.vocab_size - 1))
        visual = ids >= self.vocab_size
        embedded[visual] = torch.from_numpy(one.visual)[ids[visual] - self.vocab_size].to(embedded.dtype)
        return embedded[None]

    @torch.inference_mode()
    def generate(self, one: Ask, **options: Any) -> list[int]:
        """Greedy output, with its end id if it comes."""
        embedded = self.embed(one)
        generated = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
            max_new_tokens=one.max_tokens,
            do_sample=False,
            eos_token_id=None if one.end_id < 0 else one.end_id,
            pad_token_id=0,
            **options,
        )
        return [int(token) for token in generated[0]]

    @torch.inference_mode()
    def logits(self, one: Ask, after: list[int], positions: NDArray[np.int64] | None = None) -> torch.Tensor:
        """Of the prompt's last token and of each token of `after`: (1 + after, vocabulary)."""
        tail = self.model.get_input_embeddings()(torch.tensor([after], dtype=torch.int64))
        embedded = torch.cat((self.embed(one), tail), 1)
        numbers = None if positions is None else torch.from_numpy(positions)[None]
        logits: torch.Tensor = self.model(inputs_embeds=embedded, position_ids=numbers).logits
        return logits[0, len(one.ids) - 1 :].float()
