"""Benches: models fine-tuned after fusion and its rivals, several seeds each, one JSON line a run.

May import `comparison`, `baselines`, `training` and what is below. The command line imports its files one by one, as
a bench needs what another does not.
"""
