"""Training labels: the answer's tokens, the visual token that each attends to, the characters in each visual token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rtprune.modes import BLOCK
from training.synthetic_page import SyntheticPage
from training.tokenizer import EOS, build_tokenizer, token_id

CELLS_PER_TOKEN = (2, 4)
"""Most lines and characters of a line whose centres fall into one token, for cells of at least 16 x 32 pixels."""
NOWHERE = -1
NEWLINE = 3 + ord("\n")
_TOKENIZER = build_tokenizer()
DET, DET_END, END_ID = (token_id(_TOKENIZER, name) for name in ("<|det|>", "<|/det|>", EOS))
LINE_WEIGHT, END_WEIGHT, EDGE_WEIGHT = 6.0, 3.0, 8.0
"""What `token_weights` gives to a line's first character and the page's end, to a line's end, and to a box's digits:
there a reader loses its place."""
EDGE_ATTENTION_WEIGHT = 3.0


@dataclass(frozen=True)
class TokenGrid:
    """Where a page stands in the visual tokens: `columns` x `rows` tokens, the page moved by `offset` pixels."""

    columns: int
    rows: int
    offset: tuple[int, int] = (0, 0)

    def cell_tokens(self, page: SyntheticPage) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the token row of each lattice row and the token column of each lattice column (by their centres).

        They are int64 (rows,) and (columns + 1,): the last is for what stands behind a full line.
        """
        (cell_w, cell_h), (left, top) = page.style.cell, page.style.origin
        rows, columns = page.grid.shape
        token_rows = (self.offset[1] + top + (np.arange(rows) + 0.5) * cell_h) // BLOCK
        token_columns = (self.offset[0] + left + (np.arange(columns + 1) + 0.5) * cell_w) // BLOCK
        return token_rows.astype(np.int64), np.minimum(token_columns, self.columns).astype(np.int64)


def character_labels(page: SyntheticPage, grid: TokenGrid) -> NDArray[np.int64]:
    """Return the class of the character in each cell of each token: int64 (rows, columns, 2, 4), 0 where blank."""
    token_rows, token_columns = grid.cell_tokens(page)
    token_columns = token_columns[:-1]
    slot_rows = np.arange(len(token_rows)) - np.searchsorted(token_rows, token_rows)
    slot_columns = np.arange(len(token_columns)) - np.searchsorted(token_columns, token_columns)
    classes = np.zeros((grid.rows, grid.columns, *CELLS_PER_TOKEN), np.int64)
    classes[token_rows[:, None], token_columns, slot_rows[:, None], slot_columns] = page.grid
    return classes


def answer(
    page: SyntheticPage, grid: TokenGrid, grounded: bool, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """Return the answer's token ids and, for each, the index in the visual sequence of the token to attend to.

    The index counts the newlines of the layout; `NOWHERE` for tags and the end; a box's numbers attend to their edges,
    and the newline of an empty line to where the text goes on.
    """
    token_rows, token_columns = grid.cell_tokens(page)
    token_columns_list, token_rows_list = token_columns.tolist(), token_rows.tolist()
    ids: list[int] = []
    attended: list[int] = []

    def visual_index(row: int, column: int) -> int:
        return int(token_rows_list[row] * (grid.columns + 1) + token_columns_list[column])

    boxes = page.boxes() if grounded else []
    end = 0
    for number, (block, rows) in enumerate(zip(page.blocks, page.rows, strict=True)):
        if number:
            ids += [NEWLINE, NEWLINE]
            attended += [visual_index(page.rows[number - 1][-1], end), visual_index(rows[0], page.indent)]
        if grounded:
            # An edge's digits attend to a character that touches that edge.
            first, last = visual_index(rows[0], page.indent), visual_index(rows[-1], page.indent)
            longest = max(range(len(block)), key=lambda index: len(block[index]))
            right = visual_index(rows[longest], page.indent + len(block[longest]) - 1)
            edges = zip(boxes[number], (first, first, right, last), strict=True)
            parts = [("<|ref|>text<|/ref|><|det|>[[", NOWHERE)]
            for side, (edge, where) in enumerate(edges):
                parts += [(", ", NOWHERE)] if side else []
                parts.append((str(edge), where))
            for part, where in [*parts, ("]]<|/det|>\n", NOWHERE)]:
                part_ids = tokenizer.encode(part).ids
                ids += part_ids
                attended += [where] * len(part_ids)
        for index, (line, row) in enumerate(zip(block, rows, strict=True)):
            if index:
                ids.append(NEWLINE)
                attended.append(visual_index(rows[index - 1], end))
            for column, character in enumerate(line, page.indent):
                encoded = character.encode()
                ids += [3 + byte for byte in encoded]
                attended += [visual_index(row, column)] * len(encoded)
            end = page.indent + len(line)
    ids.append(END_ID)
    attended.append(NOWHERE)
    return ids, attended


def token_weights(answers: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Return what each token of the answers (B, L) weighs in the loss, float32 (B, L).

    `previous` (B, L) are the tokens before.
    """
    digits = _inside_boxes(answers) & (answers >= 3 + ord("0")) & (answers <= 3 + ord("9"))
    weights = torch.where(digits, EDGE_WEIGHT, 1.0)
    weights = torch.where(answers == NEWLINE, END_WEIGHT, weights)
    return torch.where((previous == NEWLINE) | (answers == END_ID), LINE_WEIGHT, weights)


def attention_weights(answers: torch.Tensor) -> torch.Tensor:
    """Return what each token of the answers (B, L) weighs in the attention loss, float32 (B, L).

    A box's tokens weigh more, because they are few.
    """
    return torch.where(_inside_boxes(answers), EDGE_ATTENTION_WEIGHT, 1.0)


def attended_in_line(attended: torch.Tensor, answers: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Say what a head that compares lines attends to: a blank token has no line, a box's edges may be in other lines.

    So a line's end attends to the line's last character, and nothing is wanted in a box. All are int64 (B, L).
    """
    ends = (answers == NEWLINE) & (previous != NEWLINE)
    return torch.where(_inside_boxes(answers), NOWHERE, torch.where(ends, one_later(attended), attended))


def one_later(attended: torch.Tensor) -> torch.Tensor:
    """Move what is attended to, int64 (B, L), one token to the right; the first attends to nothing."""
    return torch.cat([torch.full_like(attended[:, :1], NOWHERE), attended[:, :-1]], dim=1)


def _inside_boxes(answers: torch.Tensor) -> torch.Tensor:
    opened, shut = ((answers == edge).cumsum(1) for edge in (DET, DET_END))
    return opened > shut
