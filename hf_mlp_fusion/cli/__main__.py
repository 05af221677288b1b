"""`python -m hf_mlp_fusion.cli`."""

from . import main

main()
