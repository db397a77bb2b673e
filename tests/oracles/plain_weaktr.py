"""The published network, slowly: random checkpoints in its layout, and its forward pass in loops.

Written from docs/provenance/proposals.md, section 1, not from `bridge`.
"""

import torch
from torch.nn import functional as F

AAF = "adaptive_attention_fusion."


def published_state(classes=20, fusion="v3", seed=0, dim=384, heads=6, depth=12, patch=16, grid=14):
    """A random state_dict in the published layout, from the table of keys and shapes."""
    generator = torch.Generator().manual_seed(seed)
    maps = heads * depth

    def noise(*shape, scale=0.05):
        return torch.randn(shape, generator=generator) * scale

    state = {
        "cls_token": noise(1, classes, dim, scale=0.5),
        "pos_embed": noise(1, grid**2 + classes, dim, scale=0.5),
        "patch_embed.proj.weight": noise(dim, 3, patch, patch),
        "patch_embed.proj.bias": noise(dim),
        "norm.weight": noise(dim),
        "norm.bias": noise(dim),
        "head.weight": noise(classes, dim, 3, 3),
        "head.bias": noise(classes),
    }
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }.items():
            state[f"blocks.{i}.{name}"] = noise(*shape) + (name in ("norm1.weight", "norm2.weight"))
    if fusion == "v3":
        state[AAF + "attn_head_ffn.0.weight"] = noise(max(4, maps // 8), maps, scale=0.5)
        state[AAF + "attn_head_ffn.2.weight"] = noise(maps, max(4, maps // 8), scale=0.5)
        state[AAF + "attn_feat_ffn.0.weight"] = noise(8, 64, scale=0.5)
        state[AAF + "attn_feat_ffn.0.bias"] = noise(8)
        state[AAF + "attn_feat_ffn.1.weight"] = noise(1, 8, scale=0.5)
        state[AAF + "attn_feat_ffn.1.bias"] = noise(1)
    if fusion == "v1":
        bound = maps**-0.5  # PyTorch's default for a linear layer
        inner = maps // 4
        state[AAF + "fc.0.weight"] = (torch.rand(inner, maps, generator=generator) * 2 - 1) * bound
        bound = inner**-0.5
        state[AAF + "fc.2.weight"] = (torch.rand(maps, inner, generator=generator) * 2 - 1) * bound
    return state


def slow_weaktr(state, image, heads=6, patch=16, grid=14, last_layers=None):
    """The forward pass in float64, one head and layer at a time, all maps stacked, as described.

    last_layers: only the cross maps of so many last layers make the seeds (MCTformer-V2).
    """
    state = {name: value.double() for name, value in state.items()}
    classes, dim = state["cls_token"].shape[1:]
    head_dim = dim // heads
    depth = sum(name.endswith("attn.qkv.weight") for name in state)
    h, w = image.shape[-2] // patch, image.shape[-1] // patch
    patches = torch.stack(
        [
            torch.einsum(
                "dcij,cij->d",
                state["patch_embed.proj.weight"],
                image[0, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].double(),
            )
            for y in range(h)
            for x in range(w)
        ]
    )
    tokens = torch.cat([state["cls_token"][0], patches + state["patch_embed.proj.bias"]])
    position = state["pos_embed"][0]
    if not (h * w == grid * grid and image.shape[-2] == image.shape[-1]):
        square = position[classes:].T.reshape(1, dim, grid, grid)
        square = F.interpolate(
            square,
            scale_factor=((h + 0.1) / grid, (w + 0.1) / grid),
            mode="bicubic",
            align_corners=False,
        )
        position = torch.cat([position[:classes], square.reshape(dim, h * w).T])
    tokens = tokens + position

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[name + ".weight"] + state[name + ".bias"]

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    maps, outputs = {}, []
    for layer in range(depth):
        block = f"blocks.{layer}."
        qkv = linear(norm(tokens, block + "norm1"), block + "attn.qkv")
        heard = []
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            q, k, v = (qkv[:, i * dim : (i + 1) * dim][:, part] for i in range(3))
            maps[head, layer] = torch.softmax(q @ k.T / head_dim**0.5, dim=-1)
            heard.append(maps[head, layer] @ v)
        outputs.append(linear(torch.cat(heard, dim=1), block + "attn.proj"))
        tokens = tokens + outputs[-1]
        inner = linear(norm(tokens, block + "norm2"), block + "mlp.fc1")
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        tokens = tokens + linear(inner, block + "mlp.fc2")

    z = F.conv2d(
        tokens[classes:].T.reshape(1, dim, h, w),
        state["head.weight"],
        state["head.bias"],
        padding=1,
    )[0]
    order = [(head, layer) for head in range(heads) for layer in range(depth)]
    if AAF + "fc.0.weight" in state:
        a = torch.stack([maps[j].mean() for j in order])
        a = torch.relu(state[AAF + "fc.0.weight"] @ a)
        weights = torch.sigmoid(state[AAF + "fc.2.weight"] @ a)
    elif AAF + "attn_head_ffn.0.weight" in state:
        scalars = []
        for head, layer in order:
            channels = [d * heads + head for d in range(head_dim)]  # head is the fastest index
            pooled = outputs[layer][:, channels].max(0).values
            feature = linear(linear(pooled, AAF + "attn_feat_ffn.0"), AAF + "attn_feat_ffn.1")
            scalars.append(feature[0])
        a = torch.relu(state[AAF + "attn_head_ffn.0.weight"] @ torch.stack(scalars))
        weights = torch.sigmoid(state[AAF + "attn_head_ffn.2.weight"] @ a)
    else:
        weights = torch.ones(len(order), dtype=torch.float64)
    cross = torch.stack([maps[j][:classes, classes:] for j in order])
    affinity = torch.stack([maps[j][classes:, classes:] for j in order])
    used = [j for j in order if last_layers is None or j[1] >= depth - last_layers]
    seeds = [weights[order.index(j)] * maps[j][:classes, classes:] for j in used]
    fused = sum(seeds) / len(order)
    mixed = (weights[:, None, None] * affinity).mean(0)
    coarse = torch.relu(z)
    fine = (fused * coarse.reshape(classes, -1)) @ mixed.T
    return {
        "class_logits": tokens[:classes].mean(1),
        "coarse": coarse,
        "fine": fine.reshape(classes, h, w),
        "cross": cross.reshape(-1, classes, h, w),
    }
