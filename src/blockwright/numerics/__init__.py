"""Shared mathematics: packing, ranges, grids, kernels, losses."""
