"""One small model for each way of masking, by family. Adding a family is adding a file with ``CASES`` here."""
