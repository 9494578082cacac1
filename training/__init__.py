"""The reference checkpoint, a small DeepSeek-OCR that really reads (`checkpoint/`), and how it was made.

To use it: `config`, `tokenizer`, `model` (load, save), `synthetic_text` and `synthetic_page` (pages that it reads, with
their truth), `evaluate`, `example_pages`.

How it was trained: `train` follows the plan in `curriculum`; `batches`, `labels`, `feature_cache` and
`prune_augmentation` make what it learns from, `losses` what it minimises; `grow` enlarges the decoder, with
`counting_layers` whose weights are set by hand and `probes` fitted for them.
"""
