"""RTPrune for DeepSeek-OCR: the computation of every stage, as plain functions over arrays."""
