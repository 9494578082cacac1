"""What is Triton's: `triton` is what models use inside it, `launcher` starts and watches it."""
