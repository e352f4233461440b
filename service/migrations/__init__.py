"""Revisions of the record's tables; `versions/` holds one file for each, applied in order at start."""
