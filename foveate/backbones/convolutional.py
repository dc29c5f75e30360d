"""Cards of backbones with convolutions around their blocks: LeViT and MobileViT."""

from dataclasses import replace

from timm.models.levit import AttentionDownsample, LevitDownsample
from timm.models.mobilevit import MobileVitBlock
from torch import nn

from foveate.backbones.block_cards import attention_params, block_card
from foveate.backbones.mobilevit import units_of
from foveate.backbones.reader import Reader
from foveate.card import BlockCard, Part, Transition
from foveate.ledger import Operation

Size = tuple[int, int]
Convolutions = tuple[list[Operation], Size]


def levit_stem(reader: Reader, model: nn.Module, size: Size) -> tuple[tuple[Operation, ...], Size]:
    """The strided convolutions that make patches of an image of `size`, and the grid of these patches."""
    operations = []
    for name, layer in model.stem.named_children():
        if hasattr(layer, "linear"):  # timm's name for its convolutions; between them stand activations
            operation, size = reader.convolution(layer.linear, f"embed.{name}", size)
            operations.append(operation)
    return tuple(operations), size


def levit(reader: Reader, model: nn.Module, grid: Size) -> tuple:
    """(blocks, head, prefix tokens) of timm's Levit whose first block works on `grid`."""
    if model.use_conv:
        raise reader.refuse("a LeViT whose linears are convolutions (use_conv=True)")
    blocks: list[BlockCard] = []
    for stage in model.stages:
        if type(stage.downsample) is LevitDownsample:
            blocks.append(_subsampling(reader, stage.downsample, grid))
            grid = tuple((side - 1) // stage.downsample.attn_downsample.stride + 1 for side in grid)
        for block in stage.blocks:
            projection = reader.linear(block.attn.qkv.linear, "attn.qkv")
            card = _levit_block(reader, block.attn, block.mlp, grid, (projection,))
            blocks.append(replace(card, attention_params=attention_params(block)))
    head = []
    rows = "image" if model.global_pool else "tokens"
    for layer, name in ((model.head, "head.fc"), (getattr(model, "head_dist", None), "head.dist")):
        if hasattr(layer, "linear"):
            linear = reader.linear(layer.linear, name, rows)
            head += [Part(f"{name}.norm", linear.inputs, linear.inputs, rows, kind="norm"), linear]
    return tuple(blocks), tuple(head), 0


def _subsampling(reader: Reader, block: LevitDownsample, grid: Size) -> BlockCard:
    attention: AttentionDownsample = block.attn_downsample
    projections = (
        reader.linear(attention.kv.linear, "attn.qkv.kv"),
        reader.linear(attention.q.ln.linear, "attn.qkv.q", "queries"),
    )
    card = _levit_block(reader, attention, block.mlp, grid, projections)
    return replace(card, queries=attention.attention_bias_idxs.shape[0])


def _levit_block(reader: Reader, attention: nn.Module, mlp: nn.Module, grid: Size, projections: tuple[Part, ...]) -> BlockCard:
    if tuple(attention.resolution) != tuple(grid):
        raise reader.refuse(f"score biases for {attention.resolution} patches on a grid of {grid}")
    output = reader.linear(attention.proj.ln.linear, "attn.proj")
    first, second = reader.linear(mlp.ln1.linear, "mlp.fc1"), reader.linear(mlp.ln2.linear, "mlp.fc2")
    return BlockCard(projections[0].inputs, attention.num_heads, attention.key_dim, attention.val_dim, second.inputs, tuple(grid),
                     projections, (output,), (first, second), batch_norm=True)


def mobilevit_stem(reader: Reader, model: nn.Module, size: Size) -> tuple[tuple[Operation, ...], Size]:
    """The convolutions in front of the first Transformer block, and the map of its tokens, for an image of `size`."""
    units = units_of(model)
    first = next((i for i, (_, unit) in enumerate(units) if type(unit) is MobileVitBlock), None)
    if first is None:
        raise reader.refuse("a timm.models.byobnet.ByobNet without MobileViT blocks")
    operations, size = _named(reader, model, ("stem",), "embed", size)
    for name, unit in units[:first]:
        made, size = _bottleneck(reader, unit, f"embed.{name}", size)
        operations += made
    made, size = _entry(reader, units[first][1], f"embed.{units[first][0]}", size)
    return tuple(operations + made), size


def mobilevit(reader: Reader, model: nn.Module, grid: Size) -> tuple:
    """(blocks, head, prefix tokens) of timm's ByobNet with MobileViT blocks, the first of which works on `grid`."""
    blocks: list[BlockCard] = []
    between: list[Operation] = []
    for name, unit in units_of(model):
        if type(unit) is MobileVitBlock:
            if blocks:
                made, grid = _entry(reader, unit, f"transition.{name}", grid)
                # The one strided convolution on the way: a place of the new map reads a 3 x 3 field of the old one.
                blocks[-1] = replace(blocks[-1], transition=Transition(3, 2, 1, (), tuple(between + made)))
            blocks += [replace(block_card(reader, block, grid), groups=unit.patch_area) for block in unit.transformer]
            between, grid = _exit(reader, unit, f"transition.{name}", grid)
        elif blocks:
            made, grid = _bottleneck(reader, unit, f"transition.{name}", grid)
            between += made
    if grid != blocks[-1].grid:
        raise reader.refuse("a strided convolution behind the last MobileViT block")
    made, grid = _named(reader, model, ("final_conv",), "head", grid)
    parts = [Part(o.origin.replace("transition", "head"), o.k if o.kind == "conv" else o.n, o.n, "grid", int(o.times), o.kind) for o in between + made]
    if isinstance(model.head.fc, nn.Linear):
        parts.append(reader.linear(model.head.fc, "head.fc", "image" if model.head.global_pool.pool_type else "grid"))
    return tuple(blocks), tuple(parts), 0


def _named(reader: Reader, owner: nn.Module, names: tuple[str, ...], place: str, size: Size) -> Convolutions:
    """The convolutions that `owner` has under `names`, alone or with norm and activation; what is absent or an identity has none."""
    operations = []
    for name in names:
        layer = getattr(owner, name)
        if layer is not None and not isinstance(layer, nn.Identity):
            operation, size = reader.convolution(getattr(layer, "conv", layer), f"{place}.{name}", size)
            operations.append(operation)
    return operations, size


def _bottleneck(reader: Reader, unit: nn.Module, place: str, size: Size) -> Convolutions:
    return _named(reader, unit, ("conv1_1x1", "conv2_kxk", "conv2b_kxk", "conv3_1x1"), place, size)


def _entry(reader: Reader, unit: MobileVitBlock, place: str, size: Size) -> Convolutions:
    operations, size = _named(reader, unit, ("conv_kxk", "conv_1x1"), place, size)
    if any(side % patch for side, patch in zip(size, unit.patch_size)):
        # timm would resize the map to whole patches and back.
        raise reader.refuse(f"a map of {size[0]}x{size[1]} places for patches of {unit.patch_size[0]}x{unit.patch_size[1]}; "
                            "its image size must be a multiple of 64")
    return operations, size


def _exit(reader: Reader, unit: MobileVitBlock, place: str, size: Size) -> Convolutions:
    norm = Operation("norm", f"{place}.norm", size[0] * size[1], unit.conv_1x1.out_channels)
    operations, size = _named(reader, unit, ("conv_proj", "conv_fusion"), place, size)
    return [norm, *operations], size
