"""Fusing a checkpoint that does not fit into memory: from its shards to those of the fused one, an FFN at a time.

May import `fusion`, `data`, `modeling`, `hub` and what is below.
"""

from .checkpoint import fuse_checkpoint

__all__ = ["fuse_checkpoint"]
