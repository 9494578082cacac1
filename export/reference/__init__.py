"""The reference checkpoint: a small DeepSeek-OCR of the same architecture and format, its renderer, training and evaluation."""
