"""The reference checkpoint: a small DeepSeek-OCR that really reads, and all that makes it."""
