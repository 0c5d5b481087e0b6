"""Guides at work in a diffusers pipeline (`steersman.steer`), through its scheduler's step."""
