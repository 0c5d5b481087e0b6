"""Steer any diffusion model with any classifier, without training either."""
