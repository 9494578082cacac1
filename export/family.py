"""What DeepSeek-OCR's config.json and tokenizer.json say, checked; the only reader of either in export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rtprune.decoder import special_tokens
from rtprune.errors import InvalidInput

if TYPE_CHECKING:
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

PATCH = 16
"""Pixels per side of a SAM patch; four patches a side become one token."""
WINDOW = 14
"""Patches per side of a SAM attention window."""

FAMILY, ARCHITECTURE = "deepseek_ocr", "DeepseekOCRForCausalLM"
COMPUTED: dict[str, Any] = {
    "use_mla": False,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "hidden_act": "silu",
    "rope_scaling": None,
}
"""Fields of `language_config` that change what is computed, with the only value that is; absent ones have it."""

DECODER_PREFIXES = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.")
VISION_PREFIXES = ("model.sam_model.", "model.vision_model.", "model.projector.")
NEWLINE, SEPARATOR = "model.image_newline", "model.view_seperator"
UNUSED = frozenset({"model.vision_model.embeddings.patch_embedding.weight"})
"""In the checkpoint, and never computed with: SAM's map takes the place of CLIP's own patches."""

REQUIRED_TOKENS = (special_tokens.BOS, special_tokens.EOS, special_tokens.PAD, special_tokens.IMAGE)
OPTIONAL_TOKENS = (
    special_tokens.GROUNDING,
    *(f"<|{slash}{tag}|>" for tag in ("ref", "det") for slash in ("", "/")),
    *(f"<{slash}{tag}>" for tag in ("td", "tr") for slash in ("", "/")),
)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sam(_Config):
    """`vision_config.width.sam_vit_b`. `out_chans`: the neck's channels, 256 where it isn't said."""

    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    global_attn_indexes: tuple[int, ...]
    downsample_channels: tuple[int, int]
    out_chans: int = Field(256, gt=0)


class Clip(_Config):
    """`vision_config.width.clip-l-14-224`."""

    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)


class Towers(_Config):
    """`vision_config.width`."""

    sam: Sam = Field(alias="sam_vit_b")
    clip: Clip = Field(alias="clip-l-14-224")


class Vision(_Config):
    """`vision_config`. `image_size`: pixels that SAM's position table was made for."""

    image_size: int = Field(gt=0, multiple_of=PATCH)
    width: Towers


def _require(name: str, value: object, only: object) -> None:
    if value != only:
        told = [json.dumps(it).strip('"') for it in (only, value)]
        raise ValueError(f"{name} must be {told[0]}, not {told[1]}")


class Decoder(_Config):
    """`language_config`. The fields with a value in COMPUTED may have no other."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    moe_intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    n_routed_experts: int = Field(gt=0)
    n_shared_experts: int = Field(gt=0)
    num_experts_per_tok: int = Field(gt=0)
    first_k_dense_replace: int = Field(ge=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    routed_scaling_factor: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _what_is_computed(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name, only in COMPUTED.items():
            _require(name, fields.get(name, only), only)
        layers, dense = fields.get("num_hidden_layers"), fields.get("first_k_dense_replace")
        if isinstance(layers, int) and isinstance(dense, int):
            kinds = ["dense"] * min(dense, layers) + ["sparse"] * max(0, layers - dense)
            _require(
                "layer_types",
                fields.get("layer_types") or ["full_attention"] * layers,
                ["full_attention"] * layers,
            )
            _require("mlp_layer_types", fields.get("mlp_layer_types") or kinds, kinds)
        rope = fields.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ValueError("rope_parameters must be an object")
        _require("rope_type", rope.get("rope_type", "default"), "default")
        if "rope_theta" in rope:
            fields = {"rope_theta": rope["rope_theta"], **fields}
        return fields

    @model_validator(mode="after")
    def _heads_fit(self) -> Decoder:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or heads % shared:
            raise ValueError(
                f"{heads} heads with {shared} key-value heads don't divide {self.hidden_size} channels"
            )
        return self


class Projector(_Config):
    """`projector_config`."""

    input_dim: int = Field(gt=0)
    n_embed: int = Field(gt=0)
    projector_type: str = "linear"


class Architecture(_Config):
    """A DeepSeek-OCR config.json, as far as export needs it. `name`: what its publisher calls it."""

    name: str = Field("", alias="_name_or_path", max_length=200)
    vision: Vision = Field(alias="vision_config")
    decoder: Decoder = Field(alias="language_config")
    projector: Projector = Field(alias="projector_config")

    @model_validator(mode="after")
    def _fits_together(self) -> Architecture:
        sam, clip = self.vision.width.sam, self.vision.width.clip
        if sam.downsample_channels[1] != clip.width:
            raise ValueError(
                f"SAM ends in {sam.downsample_channels[1]} channels, and CLIP takes {clip.width}"
            )
        if self.projector.input_dim != 2 * clip.width or self.projector.n_embed != self.decoder.hidden_size:
            raise ValueError("the projector must go from twice CLIP's width to the decoder's hidden size")
        if self.projector.projector_type != "linear":
            raise ValueError(f"projector_type must be linear, not {self.projector.projector_type}")
        for name, width, heads in (("SAM", sam.width, sam.heads), ("CLIP", clip.width, clip.heads)):
            if width % heads:
                raise ValueError(f"{name}'s {heads} heads don't divide its width {width}")
        return self


def read_config(folder: Path) -> tuple[dict[str, Any], Architecture]:
    """Read `folder`/config.json: the content as it stands, and its checked form.

    Raises:
        InvalidInput: there is no folder or file, it isn't JSON, it is of another architecture (named), or a
            value is missing or wrong (named).
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InvalidInput(f"There is no checkpoint folder {folder}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{folder} holds no config.json, so it isn't a checkpoint.") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} can't be read: {error}.") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path} isn't a model's configuration.")
    named = config.get("architectures")
    found = str(named[0]) if isinstance(named, list) and named else str(config.get("model_type"))
    if found != ARCHITECTURE:
        raise InvalidInput(f"{path} is of the architecture {found}; this program exports {ARCHITECTURE}.")
    try:
        return config, Architecture.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = str(first.get("ctx", {}).get("error", first["msg"]))
        raise InvalidInput(f"{path}: {f'{where}: ' if where else ''}{reason}.") from error


def special_token_ids(tokenizer_file: Path, vocab_size: int) -> dict[str, int]:
    """Look the special tokens up by name in a tokenizer.json.

    Raises:
        InvalidInput: the file is missing or broken, lacks a token that the decoder needs, or has an id beyond
            the embedding's `vocab_size` rows.
    """
    from tokenizers import Tokenizer

    if not tokenizer_file.is_file():
        raise InvalidInput(f"There is no {tokenizer_file}.")
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises plain Exception
        raise InvalidInput(f"{tokenizer_file} isn't a tokenizer: {error}.") from error
    ids: dict[str, int] = {}
    for name in (*REQUIRED_TOKENS, *OPTIONAL_TOKENS):
        token = tokenizer.token_to_id(name)
        if token is None:
            if name in REQUIRED_TOKENS:
                raise InvalidInput(f"{tokenizer_file} isn't a tokenizer of DeepSeek-OCR: it has no {name}.")
            continue
        ids[name] = token
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= vocab_size:
        raise InvalidInput(
            f"{tokenizer_file} has ids up to {highest}, and the decoder's vocabulary ends at {vocab_size - 1}."
        )
    return ids


def transformers_config(architecture: Architecture, image_token_id: int) -> UnlimitedOcrConfig:
    """The configuration under which transformers' `unlimited_ocr` computes this checkpoint.

    Full attention in every layer makes that model DeepSeek-OCR; its sliding window is unused then, and may
    not be None.
    """
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

    decoder, vision = architecture.decoder, architecture.vision
    sam, clip = vision.width.sam, vision.width.clip
    text = decoder.model_dump(exclude={"rope_theta"})
    text |= {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "layer_types": ["full_attention"] * decoder.num_hidden_layers,
        "sliding_window": decoder.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
    }
    return UnlimitedOcrConfig(
        text_config=text,
        vision_config={
            "sam_config": {
                "hidden_size": sam.width,
                "num_hidden_layers": sam.layers,
                "num_attention_heads": sam.heads,
                "global_attn_indexes": list(sam.global_attn_indexes),
                "downsample_channels": list(sam.downsample_channels),
                "output_channels": sam.out_chans,
                "mlp_dim": 4 * sam.width,
                "image_size": vision.image_size,
                "patch_size": PATCH,
                "window_size": WINDOW,
            },
            "encoder_config": {
                "hidden_size": clip.width,
                "intermediate_size": 4 * clip.width,
                "num_hidden_layers": clip.layers,
                "num_attention_heads": clip.heads,
                "image_size": clip.image_size,
                "patch_size": clip.patch_size,
            },
        },
        image_token_id=image_token_id,
    )
