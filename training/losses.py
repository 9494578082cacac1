"""The reference model's losses: next token, characters in each visual token, attention, coordinates, norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
    UnlimitedOcrForConditionalGeneration,
    apply_rotary_pos_emb,
)

from rtprune.modes import BLOCK, TILE_SIDE
from training.batches import Batch, BatchSpec, Reading
from training.config import INITIAL_DECODER
from training.grow import FRONT, LINE_HEADS, protect_counting_dims
from training.labels import (
    CELLS_PER_TOKEN,
    NEWLINE,
    NOWHERE,
    attended_in_line,
    attention_weights,
    one_later,
    token_weights,
)
from training.prune_augmentation import prune_batch
from training.synthetic_text import CHARACTERS

BLANK_WEIGHT = 0.05
LOCATING_LAYER, GUIDED_LAYERS, GUIDED_HEADS = -3, (-2, -1), (0, 1, 4)
"""These heads of each, as far as there are: one of 32 is narrow for all characters of a token. The locating layer
finds the character that was written last; the layers after it step on from there, which keeps the place where words
repeat."""
COORDINATE_LAYERS, MOST_COORDINATE = (-5, -4, -3), 64
"""Their outputs must tell line and column, in visual tokens: what a query and a key have in common when the words don't
tell where the reader is. Heads are named by what they tell and from what: `text` counts from where the page's text
begins, `page` from the page's corner, `first` is where the text begins, which turns one into the other. The encoder
must tell `text` too, except in tiles, and `view`, the place in its view or tile."""
COORDINATE_HEADS = (
    *(f"{kind}_{layer}" for kind in ("text", "page", "first") for layer in COORDINATE_LAYERS),
    "text_encoder",
    "view_encoder",
)
PAD_ID = 2
"""As published."""


class Trainee(nn.Module):
    """The model, its auxiliary heads, and the losses of a batch.

    Of a grown model, the encoder, the embeddings and the layers that count stay as they are.
    """

    def __init__(self, model: UnlimitedOcrForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        hidden: int = model.lm_head.weight.shape[1]
        self.character_head = nn.Linear(hidden, math.prod(CELLS_PER_TOKEN) * len(CHARACTERS))
        self.coordinate_heads = nn.ModuleDict(
            {name: nn.Linear(hidden, 2 * MOST_COORDINATE) for name in COORDINATE_HEADS}
        )
        self._caught: dict[str, torch.Tensor] = {}
        language = model.model.language_model
        self.grown = len(language.layers) > INITIAL_DECODER["num_hidden_layers"]
        if self.grown:
            for part in (model.model, *language.layers[:FRONT]):
                part.requires_grad_(False)
            for part in (*language.layers[FRONT:], language.norm):
                part.requires_grad_(True)
            protect_counting_dims(language.layers[FRONT:])
        for index in COORDINATE_LAYERS:
            model.model.language_model.layers[index].register_forward_hook(self._catch(f"out{index}"))
        for layer in (LOCATING_LAYER, *GUIDED_LAYERS):
            attention = model.model.language_model.layers[layer].self_attn
            attention.q_proj.register_forward_hook(self._catch(f"q{layer}"))
            attention.k_proj.register_forward_hook(self._catch(f"k{layer}"))
        weight = torch.ones(len(CHARACTERS))
        weight[0] = BLANK_WEIGHT
        self.class_weight: torch.Tensor
        self.register_buffer("class_weight", weight, persistent=False)

    def _catch(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._caught[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def visual_tokens(self, batch: Batch) -> torch.Tensor:
        """Encode the batch's pages: float32 (B, V, hidden), newlines and separator in place."""
        tiles, grid = {}, batch.spec.tiles
        count = len(batch.pixels)
        prepare = (lambda features: features) if batch.encoded else as_input
        if batch.tile_pixels is not None and grid is not None:
            tiles = {
                "pixel_values_local": prepare(batch.tile_pixels),
                "num_local_patches": [grid[0] * grid[1]] * count,
                "patches_grid": [list(grid)] * count,
            }
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not batch.spec.frozen and not self.grown),
            self._without_sam() if batch.encoded else nullcontext(),
        ):
            features = self.model.model.get_image_features(prepare(batch.pixels), **tiles, return_dict=True)
        return torch.stack(features.pooler_output)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return SAM's features of grey uint8 (N, side, side): float32 (N, C, side / 64, side / 64), no gradient."""
        sam = self.model.model.vision_tower.sam_encoder
        with torch.no_grad():
            return torch.cat([sam(as_input(part)).last_hidden_state for part in torch.split(pixels, 2)])

    @contextmanager
    def _without_sam(self) -> Iterator[None]:
        """Let the vision tower take SAM's features where it takes pixels."""
        tower = self.model.model.vision_tower
        sam, tower.sam_encoder = tower.sam_encoder, _AsItCame()
        try:
            yield
        finally:
            tower.sam_encoder = sam

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses by name and the shares of tokens and characters that were right: float32 scalars."""
        visual = self.visual_tokens(batch)
        results = self._character_losses(visual, batch) if not self.grown else {}
        readings = [self._read(visual, batch.spec, reading) for reading in batch.readings]
        means = {name: torch.stack([one[name] for one in readings]).mean() for name in readings[0]}
        results.update(means)
        return results

    def _read(self, visual: torch.Tensor, spec: BatchSpec, reading: Reading) -> dict[str, torch.Tensor]:
        count, length = reading.answers.shape
        language = self.model.model.language_model
        embed = language.embed_tokens
        tokens, attended = visual, reading.attended
        attend: dict[str, torch.Tensor] = {}
        if reading.retentions is not None:
            pruned = prune_batch(visual, spec.layout, reading.retentions)
            tokens, attended = pruned.tokens, _moved(attended, pruned.new_positions)
            total = tokens.shape[1] + len(reading.prompt) + length
            order = torch.arange(total) - pruned.padding[:, None]
            attend = {"attention_mask": (order >= 0).long(), "position_ids": order.clamp(min=0)}
        start = embed(torch.zeros(count, 1, dtype=torch.long))
        prompt = embed(reading.prompt).expand(count, -1, -1)
        sequence = torch.cat([start, tokens, prompt, embed(reading.answers[:, :-1])], dim=1)
        if reading.retentions is not None:
            sequence = _with_start(sequence, start, pruned.padding)
        hidden = language(inputs_embeds=sequence, use_cache=False, **attend).last_hidden_state[:, -length:]
        logits = self.model.lm_head(hidden)
        previous, known = _previous_tokens(reading), reading.answers != PAD_ID
        text = functional.cross_entropy(logits.transpose(1, 2), reading.answers, reduction="none")
        weight = (token_weights(reading.answers, previous) if self.grown else 1.0) * known
        text = (text * weight).sum() / weight.sum()
        with torch.no_grad():
            right = (logits.argmax(-1) == reading.answers)[known].float().mean()
        return {
            "text": text,
            "text_right": right,
            "attention": self._attention_loss(
                sequence, reading, previous, attended, attend.get("position_ids")
            ),
            # Which lines and columns are left is another question on pruned pages.
            "coordinates": self._coordinate_loss(visual, spec, attended)
            if reading.retentions is None and not self.grown
            else text.new_zeros(()),
        }

    def _coordinate_loss(self, visual: torch.Tensor, spec: BatchSpec, attended: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of lines and columns: the next character's at each text token, each visual token's own."""
        (columns, rows), length = spec.grid, attended.shape[1]
        far = rows * (columns + 1)
        first = torch.stack(
            [
                torch.where(attended == NOWHERE, far, part).amin(1)
                for part in (attended // (columns + 1), attended % (columns + 1))
            ],
            dim=1,
        )  # (B, 2)
        tokens = torch.arange(far).expand(len(attended), -1)
        index = torch.cat([tokens, attended], dim=1)
        page = torch.stack([index // (columns + 1), index % (columns + 1)], dim=2)  # (B, far + L, 2)
        page = torch.where((index != NOWHERE)[..., None], page, -100)
        text = torch.where((page != -100) & (page >= first[:, None]), page - first[:, None], -100)
        # Visual tokens before the text can't know where it will begin.
        begun = torch.cat(
            [(text[:, :far] != -100).all(2), torch.ones_like(attended, dtype=torch.bool)], dim=1
        )
        wanted = {"text": text, "page": page, "first": torch.where(begun[..., None], first[:, None], -100)}
        losses = []
        for layer in COORDINATE_LAYERS:
            output = self._caught[f"out{layer}"]
            hidden = torch.cat([output[:, 1 : 1 + far], output[:, -length:]], dim=1)
            losses += [self._coordinate_entropy(f"{kind}_{layer}", hidden, at) for kind, at in wanted.items()]
        content = visual[:, :far]
        if spec.tiles is None:  # a tile doesn't show where on the page it stands
            losses.append(self._coordinate_entropy("text_encoder", content, text[:, :far]))
        side = TILE_SIDE // BLOCK if spec.tiles else columns
        inside = torch.where((page[:, :far, 1] < columns)[..., None], page[:, :far] % side, -100)
        losses.append(self._coordinate_entropy("view_encoder", content, inside))
        return torch.stack(losses).mean()

    def _coordinate_entropy(self, name: str, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the line and column that a head reads from `hidden` (B, N, C), made equally long."""
        scale = hidden.shape[-1] ** 0.5 / (hidden.detach().norm(dim=-1, keepdim=True) + 1e-6)
        logits = self.coordinate_heads[name](hidden * scale).reshape(-1, MOST_COORDINATE)
        return functional.cross_entropy(logits, wanted.flatten(), ignore_index=-100)

    def _character_losses(self, visual: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        columns, rows = batch.spec.grid
        content = visual[:, : rows * (columns + 1)].reshape(len(visual), rows, columns + 1, -1)[
            :, :, :columns
        ]
        has_text = batch.characters.flatten(3).any(-1)
        norm = content.norm(dim=-1) / content.shape[-1] ** 0.5
        norms = torch.where(has_text, (1.0 - norm).relu(), (norm - 0.5).relu()).square().mean()
        # Most cells are blank and teach nothing new: classify all cells of tokens with text, and a tenth of the others.
        chosen = has_text | (torch.rand(has_text.shape) < 0.1)
        logits = self.character_head(content[chosen]).reshape(-1, math.prod(CELLS_PER_TOKEN), len(CHARACTERS))
        classes = batch.characters.flatten(3)[chosen]
        loss = functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), self.class_weight)
        with torch.no_grad():
            printed = classes > 0
            right = (logits.argmax(-1) == classes)[printed].float().mean()
        return {"characters": loss, "characters_right": right, "norms": norms}

    def _attention_loss(
        self,
        sequence: torch.Tensor,
        reading: Reading,
        previous: torch.Tensor,
        attended: torch.Tensor,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Cross-entropy of the guided heads' attention against the visual token that they should attend to.

        That is the one with the next character; in the locating layer, the one with the last. Heads that compare lines
        (`grow.LINE_HEADS`) look at a line's last character for its end, and at nothing for a box. `previous` (B, L) is
        the token before each of the answer's.
        """
        total = sequence.shape[1]
        positions = torch.arange(total)[None] if positions is None else positions
        cos, sin = self.model.model.language_model.rotary_emb(sequence, positions)
        count = self.model.model.language_model.layers[0].self_attn.config.num_attention_heads
        heads = [head for head in GUIDED_HEADS if head < count]
        in_line = attended_in_line(attended, reading.answers, previous)
        weight, losses = attention_weights(reading.answers), []
        for layer, line_heads in zip((LOCATING_LAYER, *GUIDED_LAYERS), LINE_HEADS, strict=True):
            wanted = {}
            for head in heads:
                where = in_line if self.grown and head in line_heads else attended
                if layer == LOCATING_LAYER:
                    where = one_later(where)
                    if self.grown:  # a newline counts as of the line that it begins
                        where = torch.where(previous == NEWLINE, NOWHERE, where)
                # BOS stands before the visual tokens.
                wanted[head] = torch.where(where == NOWHERE, -100, where + 1)
            losses.append(self._guide(layer, wanted, weight, cos, sin))
        return torch.stack(losses).mean()

    def _guide(
        self,
        layer: int,
        wanted: dict[int, torch.Tensor],
        weight: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Cross-entropy of the attention of some heads of a layer; `wanted` (B, L) each, -100 for no matter where.

        `weight` (B, L) is each token's.
        """
        attention = self.model.model.language_model.layers[layer].self_attn
        heads = list(wanted)
        query, key = (
            torch.unflatten(self._caught[f"{name}{layer}"], -1, (-1, attention.head_dim))[:, :, heads]
            for name in "qk"
        )
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        length, total = wanted[heads[0]].shape[1], key.shape[2]
        chosen = torch.randperm(length)[: -(-length // 2)]  # half of the answer says as much in half the time
        scores = query[:, :, -length:][:, :, chosen] @ key.transpose(2, 3) * attention.scaling
        future = torch.ones(length, total, dtype=torch.bool).triu(total - length + 1)[chosen]
        scores = scores.masked_fill(future, float("-inf")).flatten(0, 2)  # (B * heads * chosen, total)
        spread = torch.stack(list(wanted.values()), dim=1)[:, :, chosen].flatten()
        losses = functional.cross_entropy(scores, spread, ignore_index=-100, reduction="none")
        weights = weight[:, None, chosen].expand(-1, len(heads), -1).flatten() * (spread != -100)
        return (losses * weights).sum() / weights.sum()


class _AsItCame(nn.Module):
    """Stands for the SAM encoder where its features are at hand."""

    def forward(self, features: torch.Tensor, **_options: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=features)


def _previous_tokens(reading: Reading) -> torch.Tensor:
    """The token before each of the answer's; for the first, the prompt's last."""
    answers = reading.answers
    return torch.cat([reading.prompt[-1:].expand(len(answers), 1), answers[:, :-1]], dim=1)


def _with_start(sequence: torch.Tensor, start: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Put BOS right before the first visual token of each page that has padding."""
    here = torch.zeros(sequence.shape[:2], dtype=torch.bool)
    here[torch.arange(len(padding)), padding] = True
    return torch.where(here[..., None], start, sequence)


def _moved(attended: torch.Tensor, new_positions: torch.Tensor) -> torch.Tensor:
    """Say where the attended tokens stand after pruning; NOWHERE for those that are gone."""
    moved = new_positions.gather(1, attended.clamp(min=0))
    return torch.where(attended == NOWHERE, NOWHERE, moved)


def as_input(pixels: torch.Tensor) -> torch.Tensor:
    """Turn grey uint8 (B, S, S) into the encoder's float32 (B, 3, S, S), mean and deviation 0.5."""
    scaled = pixels.to(torch.float32).div_(127.5).sub_(1.0)
    return scaled[:, None].expand(-1, 3, -1, -1)
