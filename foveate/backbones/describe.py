"""From a live timm model (the meta device is enough) to its Card."""

import difflib
import math
from dataclasses import replace

import timm
import torch
from timm.layers import AttentionPoolLatent, AttentionPoolPrr
from timm.models.byobnet import ByobNet
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.levit import Levit, LevitDistilled
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveate.backbones.block_cards import block_card
from foveate.backbones.convolutional import levit, levit_stem, mobilevit, mobilevit_stem
from foveate.backbones.iret import IncrementalTransformer
from foveate.backbones.iret_card import entries, iret_stem
from foveate.backbones.lvvit import LVViT
from foveate.backbones.reader import Reader, image_size
from foveate.card import BlockCard, Card, Part, Transition, Window
from foveate.errors import FoveateError
from foveate.ledger import Operation


def describe(model: nn.Module, name: str | None = None) -> Card:
    """The Card of a live timm model; its parameters may be on the meta device.

    model: timm's VisionTransformer (distilled too), Eva, PoolingVisionTransformer, SwinTransformer, Levit (distilled too) or ByobNet
        with MobileViT blocks, or foveate's LVViT or IncrementalTransformer.
    name: the card's name; by default the architecture's name in timm.
    Raises FoveateError for any other model and for a layer whose cost would go uncounted.
    """
    name = name or (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    reader = Reader(model, name)
    if type(model) not in FAMILIES:
        raise reader.refuse(f"a {type(model).__module__}.{type(model).__name__}")
    family, read_stem, read = FAMILIES[type(model)]
    size = image_size(model)
    if size is None:
        raise reader.refuse("a model without a fixed image size (img_size=None)")
    stem, grid = read_stem(reader, model, size)
    blocks, head, prefix = read(reader, model, grid)
    if reader.unread:
        raise reader.refuse(f"the layer {next(iter(reader.unread.values()))!r}, which is no part of a known structure")
    params = sum(parameter.numel() for parameter in model.parameters())
    pool = model.global_pool
    return Card(name, family, size, model.in_chans, model.num_classes, prefix, pool, params, stem, blocks, head)


def describe_name(name: str) -> Card:
    """The Card of a model that timm knows by name, built on the meta device: no weights, no memory.

    Raises FoveateError with close matches for an unknown name, and for a model of another family.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise FoveateError(
            given=f"model {name!r}",
            allowed="a model of timm or foveate (`foveate models`)",
            do=f"did you mean {' or '.join(map(repr, near))}?" if near else "check the spelling",
        )
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise FoveateError(
            given=f"model {name!r}, which timm cannot build ({error})",
            allowed="a model of timm or foveate (`foveate models`)",
            do="leave out what follows the dot in its name",
        ) from error
    return describe(model, name)


def _stem(reader: Reader, model: nn.Module, size: tuple[int, int]) -> tuple[tuple[Operation, ...], tuple[int, int]]:
    embed = model.patch_embed
    names = [n for n in ("conv1", "conv2", "conv3", "proj", "conv") if isinstance(getattr(embed, n, None), nn.Conv2d)]
    operations = []
    for name in names:
        operation, size = reader.convolution(getattr(embed, name), f"embed.{name}", size)
        operations.append(operation)
    if not operations or size != tuple(embed.grid_size):
        raise reader.refuse(f"a {type(embed).__name__} as patch embedding")
    return tuple(operations), size


def _flat(reader: Reader, model: nn.Module, grid: tuple[int, int]) -> tuple:
    blocks = tuple(block_card(reader, block, grid) for block in model.blocks)
    patches, prefix = math.prod(grid), model.num_prefix_tokens
    parts = [Part("norm", model.embed_dim, model.embed_dim, kind="norm")]
    if type(model.attn_pool) is AttentionPoolLatent:
        # Eva hands all tokens to the pooling, the Vision Transformer its patches unless told otherwise.
        with_prefix = getattr(model, "pool_include_prefix", True)
        parts += _latent_pool(reader, model.attn_pool, "tokens" if with_prefix else "patches+packages")
    elif type(model.attn_pool) is AttentionPoolPrr:
        width = model.attn_pool.head_dim
        pairs = (patches + prefix) ** 2
        parts += [Part(f"head.pool.{n}", width, pairs, "image", model.attn_pool.num_heads) for n in ("qk", "av")]
    elif model.attn_pool is not None:
        raise reader.refuse(f"attn_pool is a {type(model.attn_pool).__name__}")
    rows = "image" if model.global_pool else "tokens"
    return blocks, tuple(parts + _classifiers(reader, model, rows)), prefix


def _iret(reader: Reader, model: nn.Module, grid: tuple[int, int]) -> tuple:
    blocks, head, prefix = _flat(reader, model, grid)
    made = entries(reader, model)
    return tuple(replace(block, entry=made.get(number, ())) for number, block in enumerate(blocks, 1)), head, prefix


def _classifiers(reader: Reader, model: nn.Module, rows: str) -> list[Part]:
    heads = {"head": ("head.fc", rows), "head_dist": ("head.dist", rows), "aux_head": ("aux_head.fc", "patches")}
    layers = {name: getattr(model, name, None) for name in heads}
    return [reader.linear(layers[n], *heads[n]) for n in heads if isinstance(layers[n], nn.Linear)]


def _latent_pool(reader: Reader, pool: AttentionPoolLatent, rows: str) -> list[Part]:
    queries, heads, width = pool.latent_len, pool.num_heads, pool.head_dim
    parts = [reader.linear(pool.q, "head.pool.q", "image", queries)] if isinstance(pool.q, nn.Linear) else []
    parts += [
        reader.linear(pool.kv, "head.pool.kv", rows),
        Part("head.pool.qk", width, queries, rows, heads),
        Part("head.pool.av", queries, width, rows, heads, along="k"),
    ]
    if isinstance(pool.proj, nn.Linear):
        parts.append(reader.linear(pool.proj, "head.pool.proj", "image", queries))
    if pool.mlp is not None:
        parts += [reader.linear(layer, f"head.pool.{n}", "image", queries)
                  for n, layer in (("fc1", pool.mlp.fc1), ("fc2", pool.mlp.fc2))]
    return parts


def _pit(reader: Reader, model: nn.Module, grid: tuple[int, int]) -> tuple:
    blocks: list[BlockCard] = []
    for stage in model.transformers:
        if stage.pool is not None:
            convolution, grid = reader.convolution(stage.pool.conv, "transition.conv", grid)
            kernel, stride, padding = (v[0] for v in (stage.pool.conv.kernel_size, stage.pool.conv.stride, stage.pool.conv.padding))
            parts = (
                Part("transition.conv", convolution.k, convolution.n, "grid+packages", convolution.times, "conv"),
                reader.linear(stage.pool.fc, "transition.fc", "prefix"),
            )
            blocks[-1] = replace(blocks[-1], transition=Transition(kernel, stride, padding, parts))
        blocks += [block_card(reader, block, grid) for block in stage.blocks]
    norm = Part("norm", model.embed_dim, model.embed_dim, "prefix", kind="norm")
    heads = _classifiers(reader, model, "image" if model.global_pool else "prefix")
    return tuple(blocks), (norm, *heads), model.num_tokens


def _swin(reader: Reader, model: nn.Module, grid: tuple[int, int]) -> tuple:
    blocks: list[BlockCard] = []
    for stage in model.layers:
        if type(stage.downsample) is PatchMerging:
            part = reader.linear(stage.downsample.reduction, "transition.reduction", "grid+packages")
            blocks[-1] = replace(blocks[-1], transition=Transition(2, 2, 0, (part,)))
        elif not isinstance(stage.downsample, nn.Identity):
            raise reader.refuse(f"a {type(stage.downsample).__name__} between two stages")
        grid = tuple(stage.output_resolution)
        for block in stage.blocks:
            height, width = block.window_size
            count = math.ceil(grid[0] / height) * math.ceil(grid[1] / width)
            window = Window(height, width, count, any(block.shift_size))
            blocks.append(replace(block_card(reader, block, grid), window=window))
    norm = Part("norm", model.num_features, model.num_features, kind="norm")
    rows = "image" if model.global_pool else "grid"
    heads = [reader.linear(model.head.fc, "head.fc", rows)] if isinstance(model.head.fc, nn.Linear) else []
    return tuple(blocks), (norm, *heads), 0


FAMILIES = {
    VisionTransformer: ("vit", _stem, _flat),
    VisionTransformerDistilled: ("vit", _stem, _flat),
    LVViT: ("lvvit", _stem, _flat),
    IncrementalTransformer: ("iret", iret_stem, _iret),
    Eva: ("eva", _stem, _flat),
    PoolingVisionTransformer: ("pit", _stem, _pit),
    SwinTransformer: ("swin", _stem, _swin),
    Levit: ("levit", levit_stem, levit),
    LevitDistilled: ("levit", levit_stem, levit),
    ByobNet: ("mobilevit", mobilevit_stem, mobilevit),
}
