"""Public weights by the names that we have: wrappers off, other libraries' names, other layouts.

timm, Hugging Face's transformers, torchvision, and the authors' own code of DINO, DINOv2, DINOv3,
MAE, MoCo, SwAV, Barlow Twins, VICReg, SimSiam and BYOL (also solo-learn and mmpretrain).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


Tensors = dict[str, np.ndarray]

# What stands before an encoder's names, and of which network it speaks.
_ONLINE = {
    *("student", "encoder_q", "online_encoder", "online_network", "base_encoder", "backbone"),
}
_EMA = {
    *("teacher", "encoder_k", "momentum_encoder", "momentum_backbone", "target_encoder"),
    *("target_network", "target_net", "model_ema", "ema_model"),
}
_NEITHER = {
    *("module", "_orig_mod", "model", "net", "network", "trunk", "visual_encoder"),
    *("vit", "deit", "dinov2", "dinov2_with_registers", "resnet", "encoder"),
}
# What lies beside an encoder and is no part of it: heads, queues, decoders, what training needs.
_BESIDE = re.compile(
    r"(\w*head\w*|fc|classifier|projector|projection\w*|predictor|prototypes|queue\w*|neck|pooler"
    r"|momentum_\w+|decoder\w*|mask_token|bn|criterion|rope_embed)(\.|$)"
)
_HUGGING_FACE = [
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^embeddings\.(cls_token|register_tokens|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
]
_TORCHVISION = [
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
]
_HUGGING_FACE_RESNET = [
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
]
_TIMM = [
    (r"^reg_token$|^storage_tokens$", "register_tokens"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks of blocks
    (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
    (r"\.mlp\.fc1_x\.", ".mlp.up_proj."),
]


def unwrap(name: str) -> tuple[str, str]:
    """Of which network a tensor is, "encoder" or "ema encoder" or "" where it does not say, and its
    name there.
    """
    network = ""
    while True:
        head, dot, rest = name.partition(".")
        own = head == "encoder" and re.match(r"(layers?|pos_embedding|ln|stages)\b", rest)
        if not dot or own or (re.match(r"layers?\.\d", rest) and head == "model"):
            return network, name
        if head in _EMA:
            network = "ema encoder"
        elif head in _ONLINE:
            network = network or "encoder"
        elif head not in _NEITHER:
            return network, name
        name = re.sub(r"^\d+\.", "", rest)  # the place in a list of modules


def translate(
    tensors: Mapping[str, np.ndarray], patches: int | None = None
) -> tuple[Tensors, list[str]]:
    """An encoder's tensors by torchvision's names (ResNets) or timm's (ViTs), and what is left out.

    Separate queries, keys and values become one map, a missing bias one of zeros, a position table
    without [CLS] gets a row of zeros.

    Args:
      patches: of an image, where it is known; else a table for a square number of tokens is taken
        for one without [CLS].

    Raises:
      ValueError, TypeError or IndexError: tensors of one layer have shapes that do not go together,
        or two names become one.
    """
    left_out = [name for name in tensors if _BESIDE.match(name.removeprefix("embeddings."))]
    named = {name: value for name, value in tensors.items() if name not in left_out}
    rules: list[tuple[str, Any]] = _TIMM
    if any(name.startswith("embedder.") for name in named):
        rules = _HUGGING_FACE_RESNET
    elif any(name.startswith("embeddings.") for name in named):
        rules = _HUGGING_FACE
    elif "class_token" in named:
        rules = _TORCHVISION
    count = len(named)
    for pattern, new in rules:
        named = {re.sub(pattern, new, name): value for name, value in named.items()}
    if len(named) < count:
        raise ValueError("two of their names mean the same")
    blocks = sorted({m[0] for name in named if (m := re.match(r"blocks\.\d+", name))})
    for block in blocks:
        _fuse_attention(named, f"{block}.attn")
        _fuse_gates(named, f"{block}.mlp")
    _complete_table(named, patches)
    return named, left_out


def _fuse_attention(tensors: Tensors, name: str) -> None:
    if f"{name}.q.weight" in tensors:
        width = len(tensors[f"{name}.q.weight"])
        parts = [f"{name}.{part}" for part in "qkv"]
        weights = [tensors.pop(f"{part}.weight") for part in parts if f"{part}.weight" in tensors]
        tensors[f"{name}.qkv.weight"] = np.concatenate(weights)
        if any(f"{part}.bias" in tensors for part in parts):
            zeros = np.zeros(width, np.float32)
            biases = [tensors.pop(f"{part}.bias", zeros) for part in parts]
            tensors[f"{name}.qkv.bias"] = np.concatenate(biases)
    if f"{name}.q_bias" in tensors and f"{name}.v_bias" in tensors:
        query, value = tensors.pop(f"{name}.q_bias"), tensors.pop(f"{name}.v_bias")
        tensors.pop(f"{name}.k_bias", None)  # a buffer of zeros
        tensors[f"{name}.qkv.bias"] = np.concatenate([query, np.zeros_like(query), value])
    mask = tensors.pop(f"{name}.qkv.bias_mask", None)  # DINOv3's keys have no bias
    if mask is not None and f"{name}.qkv.bias" in tensors:
        tensors[f"{name}.qkv.bias"] = np.where(mask == 0, 0, tensors[f"{name}.qkv.bias"])
    weight = tensors.get(f"{name}.qkv.weight")
    if weight is not None and f"{name}.qkv.bias" not in tensors:
        tensors[f"{name}.qkv.bias"] = np.zeros(len(weight), np.float32)


def _fuse_gates(tensors: Tensors, name: str) -> None:
    for leaf in ("weight", "bias"):
        up, down, gate = (f"{name}.{part}_proj.{leaf}" for part in ("up", "down", "gate"))
        if gate in tensors and up in tensors:
            tensors[f"{name}.w12.{leaf}"] = np.concatenate([tensors.pop(gate), tensors.pop(up)])
            old = down if down in tensors else f"{name}.fc2.{leaf}"
            if old in tensors:
                tensors[f"{name}.w3.{leaf}"] = tensors.pop(old)
        elif up in tensors:
            tensors[f"{name}.fc1.{leaf}"] = tensors.pop(up)
            if down in tensors:
                tensors[f"{name}.fc2.{leaf}"] = tensors.pop(down)
    first, second = (tensors.get(f"{name}.fc{number}.weight") for number in (1, 2))
    if first is None or second is None or not first.ndim == second.ndim == 2:
        return
    if len(first) == 2 * second.shape[1]:  # timm's SwiGLUPacked
        for old, new in (("fc1", "w12"), ("fc2", "w3")):
            for leaf in ("weight", "bias"):
                if f"{name}.{old}.{leaf}" in tensors:
                    tensors[f"{name}.{new}.{leaf}"] = tensors.pop(f"{name}.{old}.{leaf}")


def _complete_table(tensors: Tensors, patches: int | None) -> None:
    table = tensors.get("pos_embed")
    if table is None or table.ndim != 3 or "cls_token" not in tensors:
        return
    if patches is None and math.isqrt(table.shape[1]) ** 2 == table.shape[1] > 1:
        patches = table.shape[1]
    if table.shape[1] == patches:
        tensors["pos_embed"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
