"""Engines: attention over the visited tiles.  All take the same arguments and agree.

``ref`` is the plain definition; ``cpu`` gathers tiles into batched products in plain PyTorch;
``flex`` is FlexAttention, ``triton_tiles`` a Triton kernel, both for GPUs.
"""
