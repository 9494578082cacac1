"""Client library and command line for the OCR server."""
