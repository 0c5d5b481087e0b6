"""Guides at work in a diffusers pipeline, which stays as it is (`steersman.steer`).

A pipeline asks its network, makes one output of what it says (classifier-free guidance, for one), and hands that to its
scheduler, whose ``step`` leads to the next sample. There lies the seam: guides change what goes into ``step`` and what
comes out of it, and nothing else (`steersman.pipelines.trajectory`). What asks the network again or differentiates it
also needs to know how the pipeline comes from one step to the next (`steersman.pipelines.recording`).
"""
