"""From a DeepSeek-OCR checkpoint to the engines that Triton loads."""
