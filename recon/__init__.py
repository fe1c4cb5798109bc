"""Reconstruction: Gaussian splats, three differentiable rasterisers of one signature, and the fit."""
