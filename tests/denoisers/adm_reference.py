"""Dhariwal & Nichol's networks (2021, appendix A and B) in plain functions of tensors by their released names.

A network is what its forward pass asks for: each tensor is drawn when it is first asked for.
"""

import math

import torch
from torch.nn import functional


class Reference:
    """A U-Net, or with a pool its lower half and a head.

    Every level has so many blocks of ``width`` times its multiplier channels; ``attended`` are the levels with
    attentions. ``residual``: blocks change the size, otherwise convolutions. ``pool``: attention or mean.
    """

    def __init__(
        self,
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attended=(1,),
        heads=None,
        head_channels=None,
        heads_upsample=None,
        new=False,
        labels=0,
        scale_shift=True,
        residual=True,
        outputs=6,
        pool=None,
        size=8,
        inputs=3,
        device=None,
    ):
        vars(self).update(locals())
        self.tensors, self.generator = {}, torch.Generator().manual_seed(0)
        label = torch.zeros(1, dtype=torch.long, device=device) if labels else None
        self(torch.zeros(1, inputs, size, size, device=device), torch.zeros(1, device=device), label)

    def tensor(self, name, *shape):
        if name not in self.tensors:
            if self.device:
                self.tensors[name] = torch.empty(shape, device=self.device)
            else:
                drawn = torch.randn(shape, generator=self.generator)
                offset = float(name.endswith("weight") and len(shape) == 1)  # a normalisation's
                self.tensors[name] = offset + drawn * (1.5 / math.prod(shape[1:]) ** 0.5 if shape[1:] else 0.3)
        return self.tensors[name]

    def weights(self, name, *shape):
        return self.tensor(f"{name}.weight", *shape), self.tensor(f"{name}.bias", shape[0])

    def linear(self, name, x, channels):
        return functional.linear(x, *self.weights(name, channels, x.shape[1]))

    def conv(self, name, x, channels, kernel=3, stride=1):
        return functional.conv2d(
            x, *self.weights(name, channels, x.shape[1], kernel, kernel), stride=stride, padding=kernel // 2
        )

    def norm(self, name, x):
        return functional.group_norm(x, 32, *self.weights(name, x.shape[1]), eps=1e-5)

    def block(self, name, x, told, channels, resize=lambda x: x):
        hidden = functional.silu(self.norm(f"{name}.in_layers.0", x))
        x, hidden = resize(x), resize(hidden)
        hidden = self.conv(f"{name}.in_layers.2", hidden, channels)
        twice = 2 if self.scale_shift else 1
        time = self.linear(f"{name}.emb_layers.1", functional.silu(told), twice * channels)[..., None, None]
        if self.scale_shift:
            scale, shift = time[:, :channels], time[:, channels:]
            hidden = self.norm(f"{name}.out_layers.0", hidden) * (1 + scale) + shift
        else:
            hidden = self.norm(f"{name}.out_layers.0", hidden + time)
        hidden = self.conv(f"{name}.out_layers.3", functional.silu(hidden), channels)
        if x.shape[1] != channels:
            x = self.conv(f"{name}.skip_connection", x, channels, kernel=1)
        return x + hidden

    def project(self, name, x, channels):
        weight, bias = self.weights(name, channels, x.shape[1], 1)
        return torch.einsum("oi,bil->bol", weight[..., 0], x) + bias[:, None]

    def attend(self, projected, new, up=False):
        batch, rows, places = projected.shape
        channels = rows // 3
        heads = (up and self.heads_upsample) or self.heads or channels // self.head_channels
        each = channels // heads
        if new:
            q, k, v = projected.reshape(batch, 3, heads, each, places).unbind(1)
        else:
            q, k, v = projected.reshape(batch, heads, 3, each, places).unbind(2)
        weights = (torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(each)).softmax(-1)
        return torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(batch, channels, places)

    def attention(self, name, x):
        rows = self.project(f"{name}.qkv", self.norm(f"{name}.norm", x).flatten(2), 3 * x.shape[1])
        attended = self.attend(rows, self.new, up=name.startswith("output"))
        return x + self.project(f"{name}.proj_out", attended, x.shape[1]).reshape(x.shape)

    def __call__(self, x, time, label=None):
        half = self.width // 2
        angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half, device=time.device) / half)
        told = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), 4 * self.width)
        told = self.linear("time_embed.2", functional.silu(told), 4 * self.width)
        if self.labels:
            told = told + self.tensor("label_emb.weight", self.labels, 4 * self.width)[label]
        levels = [int(each * self.width) for each in self.multipliers]
        hidden = self.conv("input_blocks.0.0", x, levels[0])
        kept, number = [hidden], 1
        for level, channels in enumerate(levels):
            for _ in range(self.blocks):
                hidden = self.block(f"input_blocks.{number}.0", hidden, told, channels)
                if level in self.attended:
                    hidden = self.attention(f"input_blocks.{number}.1", hidden)
                kept.append(hidden)
                number += 1
            if level < len(levels) - 1:
                if self.residual:
                    half_size = lambda x: functional.avg_pool2d(x, 2)  # noqa: E731
                    hidden = self.block(f"input_blocks.{number}.0", hidden, told, channels, half_size)
                else:
                    hidden = self.conv(f"input_blocks.{number}.0.op", hidden, channels, stride=2)
                kept.append(hidden)
                number += 1
        hidden = self.block("middle_block.0", hidden, told, levels[-1])
        hidden = self.attention("middle_block.1", hidden)
        hidden = self.block("middle_block.2", hidden, told, levels[-1])
        if self.pool:
            return self.head(hidden)
        number = 0
        for level, channels in reversed(list(enumerate(levels))):
            for j in range(self.blocks + 1):
                joined = torch.cat([hidden, kept.pop()], 1)
                hidden, place = self.block(f"output_blocks.{number}.0", joined, told, channels), 1
                if level in self.attended:
                    hidden, place = self.attention(f"output_blocks.{number}.1", hidden), 2
                if level and j == self.blocks:
                    name = f"output_blocks.{number}.{place}"
                    double = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
                    if self.residual:
                        hidden = self.block(name, hidden, told, channels, double)
                    else:
                        hidden = self.conv(f"{name}.conv", double(hidden), channels)
                number += 1
        return self.conv("out.2", functional.silu(self.norm("out.0", hidden)), self.outputs)

    def head(self, hidden):
        hidden = functional.silu(self.norm("out.0", hidden))
        if self.pool == "mean":
            return self.conv("out.3", hidden.mean((2, 3), keepdim=True), self.outputs, kernel=1).flatten(1)
        places = hidden.flatten(2)
        places = torch.cat([places.mean(2, keepdim=True), places], 2)
        places = places + self.tensor("out.2.positional_embedding", *places.shape[1:])
        rows = self.project("out.2.qkv_proj", places, 3 * places.shape[1])
        return self.project("out.2.c_proj", self.attend(rows, new=True), self.outputs)[..., 0]

    def settings(self, **changes):
        """What has to be told of a file of it."""
        told = {"heads": self.heads, "head_channels": self.head_channels, "attention": "new" if self.new else "legacy"}
        told |= {} if self.pool == "attention" else {"size": self.size}
        told |= {"heads_upsample": self.heads_upsample}
        return "&".join(f"{key}={value}" for key, value in (told | changes).items() if value is not None)


def apart(found, expected):
    """The largest difference, relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
