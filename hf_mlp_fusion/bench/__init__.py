"""Benches: models fine-tuned after fusion and its rivals, several seeds each, one JSON line a run."""
