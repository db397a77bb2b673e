"""Deformable attention written out: a loop over samples with its gradient, and PyTorch's form."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def loop(value, shapes, locations, weights, gradient):
    """(out `[Q, H, D]`, gradients of sum(out * gradient) to value, locations and weights), float64.

    value `[T, H, D]`, locations `[Q, H, L, P, 2]`, weights `[Q, H, L, P]`.
    """
    out = np.zeros((len(locations), *value.shape[1:]))
    to_value, to_places = np.zeros(value.shape), np.zeros(locations.shape)
    to_weights = np.zeros(weights.shape)
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for q, h, level, p in np.ndindex(weights.shape):
        height, width = shapes[level]
        x, y = locations[q, h, level, p] * [width, height] - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if not (0 <= row < height and 0 <= column < width):
                    continue
                near_x, near_y = 1 - abs(x - column), 1 - abs(y - row)
                cell = starts[level] + row * width + column
                weight, along = weights[q, h, level, p], value[cell, h] @ gradient[q, h]
                out[q, h] += weight * near_x * near_y * value[cell, h]
                to_value[cell, h] += weight * near_x * near_y * gradient[q, h]
                to_weights[q, h, level, p] += near_x * near_y * along
                rise_x, rise_y = 1 if column > x else -1, 1 if row > y else -1
                to_places[q, h, level, p] += (
                    weight * along * np.array([rise_x * near_y * width, rise_y * near_x * height])
                )
    return out, to_value, to_places, to_weights


def torch_form(value, shapes, locations, weights):
    """The usual form of those without the compiled kernel: `grid_sample` level by level.

    Tensors: value `[T, H, D]`, locations `[Q, H, L, P, 2]`, weights `[Q, H, L, P]` -> `[Q, H, D]`.
    """
    queries, heads = weights.shape[:2]
    maps = value.split([h * w for h, w in shapes])
    sampled = []
    for level, (height, width) in enumerate(shapes):
        one = maps[level].permute(1, 2, 0).reshape(heads, -1, height, width)
        grid = 2 * locations[:, :, level].transpose(0, 1) - 1
        sampled.append(F.grid_sample(one, grid, align_corners=False))
    every = torch.stack(sampled, -2).flatten(-2)  # [H, D, Q, L * P], points last
    flat = weights.transpose(0, 1).reshape(heads, 1, queries, -1)
    return (every * flat).sum(-1).permute(2, 0, 1)
