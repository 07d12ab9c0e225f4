"""A plain, unoptimised transcription of `network.md`: a second opinion.

Written as straightforwardly as possible, as functions over a state_dict with the reference's names:
the encoder runs once per volume, windows are cut by rolling, padding and reshaping, masks are built
in every forward pass, cross attention projects q, k and v for both of its inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class PlainTranscription:
    """The reference's function of its own state_dict, for volumes whose windows pad alike."""

    def __init__(self, state: dict[str, torch.Tensor], window: tuple, fusion: str) -> None:
        self.w, self.window, self.fusion = state, window, fusion

    def __call__(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """(1, 1, D, H, W) each → displacement (1, 3, D, H, W) in voxels."""
        moving_features, fixed_features = self.encode(moving), self.encode(fixed)
        attended = [
            (self.cross(i + 1, m, f), self.cross(i + 1, f, m))
            for i, (m, f) in enumerate(zip(moving_features, fixed_features, strict=True))
        ]
        g = self.next_block("conv1", torch.cat([moving, fixed], 1))
        half, full = self.next_down("down1", g), self.conv("Conv_1x1", g)
        x = self.up("up0", "conv1", attended[3][0], *attended[2])
        x = self.up("up1", "conv1", x, *attended[1])
        x = self.up("up2", "conv1", x, *attended[0])
        x = self.up("up3", "conv3", x, half)
        x = self.up("up4", "conv3", x, full)
        return self.conv("reg_head.0", x, padding=1)

    def conv(self, name, x, **options):
        return F.conv3d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **options)

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def layer_norm(self, name, x):
        weight = self.w[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.w[f"{name}.bias"])

    def next_path(self, name, x, stride):
        channels = x.shape[1]
        y = self.conv(f"{name}.dw_conv", x, stride=stride, padding=1, groups=channels)
        y = F.group_norm(y, channels, self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"])
        return self.conv(f"{name}.compress", F.gelu(self.conv(f"{name}.expansion", y)))

    def next_block(self, name, x):
        return x + self.next_path(name, x, 1)

    def next_down(self, name, x):
        return self.next_path(name, x, 2) + self.conv(f"{name}.shortcut", x, stride=2)

    def up(self, name, first, x, *skips):
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        x = torch.cat([x, *skips], 1)
        for conv in (first, "conv2"):
            x = F.leaky_relu(F.instance_norm(self.conv(f"{name}.{conv}.0", x, padding=1)), 0.01)
        return x

    def encode(self, x):
        root = "moving_lwsa"
        convs, c = [], x
        for i in range(1, 6):
            c = self.next_down(f"{root}.down{i}", self.next_block(f"{root}.conv{i}", c))
            convs.append(c)
        fused = []
        x = self.conv(f"{root}.transformer.patch_embed.proj", x, stride=4).permute(0, 2, 3, 4, 1)
        x = self.layer_norm(f"{root}.transformer.patch_embed.norm", x)
        for i, (c, depth) in enumerate(zip(convs[1:], (2, 2, 4, 2), strict=True)):
            for j in range(depth):
                x = self.swin_block(f"{root}.transformer.layers.{i}.blocks.{j}", x, x, j % 2 == 1)
            c = c.permute(0, 2, 3, 4, 1)
            stage = x + c if self.fusion == "cross" else x
            fused.append(self.layer_norm(f"{root}.transformer.norm{i}", stage) + c)
            if i < 3:
                x = self.merge(f"{root}.transformer.layers.{i}.downsample", x)
        return fused

    def merge(self, name, x):
        order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
        parts = [x[:, d::2, h::2, w::2] for d, h, w in [*order, (1, 1, 1)]]
        return self.linear(
            f"{name}.reduction", self.layer_norm(f"{name}.norm", torch.cat(parts, -1))
        )

    def cross(self, number, features, other):
        root = f"lwca{number}.transformer"
        x = features
        for j in range(2):
            x = self.swin_block(f"{root}.layers.0.blocks.{j}", x, other, j == 1)
        return self.layer_norm(f"{root}.norm0", x).permute(0, 4, 1, 2, 3)

    def swin_block(self, name, x, other, shifted):
        _, *size, _ = x.shape
        shift = [w // 2 if shifted else 0 for w in self.window]
        pad = [-n % w for n, w in zip(size, self.window, strict=True)]
        mask = self.shift_mask([n + p for n, p in zip(size, pad, strict=True)], shift)

        def windows_of(volume):
            y = self.layer_norm(f"{name}.norm1", volume)
            y = F.pad(y, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
            return self.cut(torch.roll(y, [-s for s in shift], (1, 2, 3)))

        out = self.attention(f"{name}.attn", windows_of(x), windows_of(other), mask)
        out = self.join(out, [n + p for n, p in zip(size, pad, strict=True)])
        out = torch.roll(out, shift, (1, 2, 3))[:, : size[0], : size[1], : size[2]]
        x = x + out
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", hidden)

    def cut(self, x):
        (b, d, h, w, c), (i, j, k) = x.shape, self.window
        x = x.reshape(b, d // i, i, h // j, j, w // k, k, c)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, i * j * k, c)

    def join(self, x, size):
        (d, h, w), (i, j, k), c = size, self.window, x.shape[-1]
        x = x.reshape(-1, d // i, h // j, w // k, i, j, k, c)
        # Not the inverse of `cut`: the reference's slip, see paramorph.windows.window_layout.
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, d, h, w, c)

    def shift_mask(self, size, shift):
        if not any(shift):
            return None
        region, number = torch.zeros(1, *size, 1), 0
        cuts = [
            (slice(0, -w), slice(-w, -s), slice(-s, None))
            for w, s in zip(self.window, shift, strict=True)
        ]
        for d in cuts[0]:
            for h in cuts[1]:
                for w in cuts[2]:
                    region[:, d, h, w] = number
                    number += 1
        region = self.cut(region)[:, :, 0]
        return (region[:, None] != region[:, :, None]).float() * -100.0

    def attention(self, name, x, other, mask):
        windows, places, channels = x.shape
        table = self.w[f"{name}.relative_position_bias_table"]
        heads = table.shape[1]

        def project(tokens):
            qkv = self.linear(f"{name}.qkv", tokens)
            return qkv.reshape(windows, places, 3, heads, -1).permute(2, 0, 3, 1, 4)

        q, k, v = project(other)[0], *project(x)[1:]
        logits = q @ k.transpose(-2, -1) * (channels // heads) ** -0.5
        logits = logits + table[self.position_index()].permute(2, 0, 1)
        if mask is not None:
            logits = logits + mask[:, None]
        out = logits.softmax(-1) @ v
        return self.linear(f"{name}.proj", out.transpose(1, 2).reshape(windows, places, channels))

    def position_index(self):
        grid = torch.meshgrid(*[torch.arange(w) for w in self.window], indexing="ij")
        places = torch.stack(grid).flatten(1)
        offset = places[:, :, None] - places[:, None, :]
        i, j, k = self.window
        d, h, w = offset[0] + i - 1, offset[1] + j - 1, offset[2] + k - 1
        return (d * (2 * j - 1) + h) * (2 * k - 1) + w
