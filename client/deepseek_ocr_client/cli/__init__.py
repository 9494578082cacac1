"""The command line `deepseek-ocr`, a command a file."""
