"""IRET: a Vision Transformer that starts narrow on a coarse image and widens its tokens by sub-bands of the fine one."""

from __future__ import annotations

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, PatchEmbed, calculate_drop_path_rates, get_device_dtype, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from foveate.backbones.iret_focus import GROWTHS, Focus
from foveate.backbones.iret_sampler import sampler as make_sampler
from foveate.backbones.nano import FASHION_MNIST_LABELS, check_weights_exist
from foveate.errors import FoveateError

__all__ = ["IncrementalTransformer"]

EMBEDDINGS = ("pos_embed", "cls_token", "dist_token", "prefix_embed")


class IncrementalTransformer(nn.Module):
    """The dense model behind IRET (Figs. 7 and 8): timm's blocks, some of which widen their tokens at their beginning.

    [B, in_chans, H, W] -> [B, num_classes], the mean of the logits of class and distillation token. In training mode with
    `set_distilled_training(True)` it returns both logits, as timm's distilled models do.
    img_size: pixels of the images, int or (height, width), multiples of twice the patch. patch_size: pixels of the halved image.
    embed_dims: widths, one more than there are widening blocks. widen_at: 1-based blocks that widen to the next width.
    sampler: what those blocks get to see, see `iret_sampler`: "lifting", "dwt" or "original".
    lifting_channels: of the features that are lifted. wavelet: of sampler="dwt". prefix_growth: see `Focus`.
    The other arguments are those of timm's VisionTransformer.
    Raises FoveateError for widths, positions and image sizes that do not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (192, 294, 348, 384),
        widen_at: tuple[int, ...] = (4, 5, 6),
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        sampler: str = "lifting",
        lifting_channels: int = 3,
        wavelet: str = "haar",
        prefix_growth: str = "learned",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.img_size, patch = to_2tuple(img_size), to_2tuple(patch_size)
        self.embed_dims, self.widen_at = tuple(embed_dims), tuple(widen_at)
        _check_widths(self.embed_dims, self.widen_at, depth, num_heads)
        _check_size(self.img_size, patch)
        _check_pooling(global_pool)
        if prefix_growth not in GROWTHS:
            raise FoveateError(f"prefix_growth={prefix_growth!r}", ", ".join(map(repr, GROWTHS)), "choose one of these")
        self.num_classes, self.in_chans, self.global_pool, self.prefix_growth = num_classes, in_chans, global_pool, prefix_growth
        self.num_features = self.head_hidden_size = self.embed_dim = self.embed_dims[-1]
        self.num_prefix_tokens = prefix = 2
        self.distilled_training, self.dynamic_img_size, self.attn_pool = False, False, None
        first = self.embed_dims[0]

        self.sampler = make_sampler(sampler, in_chans, len(self.widen_at), lifting_channels, wavelet, **factory)
        coarse = tuple(side // 2 for side in self.img_size)
        self.patch_embed = PatchEmbed(coarse, patch, in_chans, first, **factory)
        grid = self.patch_embed.grid_size
        self.cls_token, self.dist_token = (nn.Parameter(torch.empty(1, 1, first, **factory)) for _ in range(2))
        self.pos_embed = nn.Parameter(torch.empty(1, prefix + self.patch_embed.num_patches, first, **factory))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.focus = nn.ModuleList(
            Focus(narrow, wide, self.sampler.channels, grid, patch, prefix, prefix_growth, **factory)
            for narrow, wide in zip(self.embed_dims, self.embed_dims[1:]))
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            Block(self.width_of(number), num_heads, mlp_ratio, qkv_bias, proj_drop=proj_drop_rate, attn_drop=attn_drop_rate,
                  drop_path=rates[number - 1], depth=number - 1, **factory)
            for number in range(1, depth + 1))
        self.norm = LayerNorm(self.embed_dim, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head, self.head_dist = self._new_head(), self._new_head()
        self._init_weights()

    def width_of(self, number: int) -> int:
        """Width of the 1-based block `number`."""
        return self.embed_dims[sum(number >= block for block in self.widen_at)]

    def _init_weights(self) -> None:
        """timm's initialisation of Vision Transformers, for the embeddings of every IRET layer too."""
        for name in self.no_weight_decay():
            trunc_normal_(self.get_parameter(name), std=0.02)
        for name, module in self.named_modules():
            init_weights_vit_timm(module, name, needs_reset=False)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are embeddings, not weights."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in EMBEDDINGS}

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training mode returns the logits of both heads instead of their mean."""
        self.distilled_training = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's groups of parameters, for layer-wise learning rates; a block's focus belongs to it."""
        stem = r"^cls_token|^dist_token|^pos_embed|^patch_embed|^sampler"
        focus = [(rf"^focus\.{i}\.", (block - 1,)) for i, block in enumerate(self.widen_at)]
        return {"stem": stem, "blocks": [*focus, (r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """The heads of the class and of the distillation token."""
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces both heads by new ones for num_classes (0: none, the model then returns features)."""
        _check_pooling(global_pool or self.global_pool)
        self.num_classes = num_classes
        self.head, self.head_dist = self._new_head(), self._new_head()
        for head in (self.head, self.head_dist):
            init_weights_vit_timm(head, needs_reset=False)
            head.train(self.training)

    def _new_head(self) -> nn.Module:
        return nn.Linear(self.embed_dim, self.num_classes, **get_device_dtype(self)) if self.num_classes > 0 else nn.Identity()

    def sample(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse image [B, in_chans, H/2, W/2] and what the IRET layers look at later, see `iret_sampler`."""
        size = tuple(images.shape[-2:])
        if size != self.img_size:
            raise FoveateError(f"images of {size[0]}x{size[1]} pixels for IRET", f"{self.img_size[0]}x{self.img_size[1]}",
                               "resize the images, or create the model with img_size=...")
        return self.sampler(images)

    def embed(self, coarse: Tensor) -> Tensor:
        """Tokens [B, 2 + N, embed_dims[0]] of the coarse image, with class and distillation token and positions."""
        x = self.patch_embed(coarse)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token)]
        return self.pos_drop(torch.cat([*prefix, x], 1) + self.pos_embed)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens [B, 2 + N, embed_dims[-1]] behind the last block."""
        coarse, bands = self.sample(images)
        x = self.embed(coarse)
        for number, block in enumerate(self.blocks, 1):
            if number in self.widen_at:
                layer = self.widen_at.index(number)
                x = self.focus[layer](x, bands[:, layer])
            x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The mean of both heads' logits [B, num_classes] for normalised tokens [B, 2 + any, dim]; of both features with pre_logits."""
        both = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
        if not pre_logits:
            both = self.head(both[0]), self.head_dist(both[1])
            if self.distilled_training and self.training:
                return both
        return (both[0] + both[1]) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))


def _check_widths(dims: tuple[int, ...], blocks: tuple[int, ...], depth: int, heads: int) -> None:
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (*dims, *blocks, depth, heads))
    if not whole or not blocks or len(dims) != len(blocks) + 1:
        raise FoveateError(f"embed_dims={dims}, widen_at={blocks}, depth={depth}, num_heads={heads}",
                           "whole numbers > 0: widening blocks, and one width more than there are of them",
                           "give such as embed_dims=(192, 294, 348, 384), widen_at=(4, 5, 6)")
    if any(a >= b for a, b in zip((1, *blocks), blocks)) or blocks[-1] > depth:
        raise FoveateError(f"widen_at={blocks} of {depth} blocks", f"increasing numbers from 2 to {depth}: block 1 reads the first embedding",
                           "give each block once, in increasing order, counted from 1")
    if any(a >= b for a, b in zip(dims, dims[1:])):
        raise FoveateError(f"embed_dims={dims}", "widths that grow", "give the width of the first blocks first")
    if odd := [dim for dim in dims if dim % heads]:
        raise FoveateError(f"a width of {odd[0]} for {heads} heads", f"multiples of {heads}",
                           f"take {odd[0] - odd[0] % heads or heads} or {odd[0] - odd[0] % heads + heads}, or another number of heads")


def _check_pooling(pool: str) -> None:
    if pool != "token":
        raise FoveateError(f"IRET with global_pool={pool!r}", "'token': both heads read their own token", "leave global_pool out")


def _check_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    for side, step in zip(size, patch):
        if side % (2 * step) or not side:
            low = side - side % (2 * step)
            raise FoveateError(f"images of {size[0]}x{size[1]} pixels for IRET with patches of {step} pixels of the halved image",
                               f"sides that {2 * step} divides: sub-bands are half as large and have as many patches",
                               f"take {low or 2 * step} or {low + 2 * step}, or another patch_size")


_SHARED = {"fixed_input_size": True, "interpolation": "bicubic", "first_conv": ("patch_embed.proj", "sampler.conv1"), "classifier": ("head", "head_dist")}
_IMAGENET = {"input_size": (3, 224, 224), "crop_pct": 0.9, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "num_classes": 1000}
_FASHION_MNIST = {"input_size": (3, 28, 28), "crop_pct": 1.0, "mean": (0.2860,) * 3, "std": (0.3530,) * 3, "num_classes": 10,
                  "label_names": FASHION_MNIST_LABELS}
default_cfgs = generate_default_cfgs({
    "iret_small": _SHARED | _IMAGENET, "iret_tiny": _SHARED | _IMAGENET, "iret_nano": _SHARED | _FASHION_MNIST})


def _create(variant: str, pretrained: bool, shape: dict, kwargs: dict) -> IncrementalTransformer:
    if pretrained:
        check_weights_exist(variant, kwargs)
    return build_model_with_cfg(IncrementalTransformer, variant, pretrained, **{**shape, **kwargs})


@register_model
def iret_small(pretrained: bool = False, **kwargs) -> IncrementalTransformer:
    """IRET on DeiT-S: 12 blocks of width 192 (1-3), 294 (4), 348 (5) and 384, 6 heads; 17,177,012 parameters, 17,241,842 with lifting_channels=8.

    pretrained: no weights come with foveate; give your own by pretrained_cfg_overlay=dict(file=...).
    kwargs: see `IncrementalTransformer`. Raises FoveateError for pretrained=True without weights.
    """
    return _create("iret_small", pretrained, {}, kwargs)


@register_model
def iret_tiny(pretrained: bool = False, **kwargs) -> IncrementalTransformer:
    """IRET on DeiT-T: widths 96, 147, 174 and 192, 3 heads. The paper names no widths; these are half of iret_small's."""
    return _create("iret_tiny", pretrained, {"embed_dims": (96, 147, 174, 192), "num_heads": 3}, kwargs)


@register_model
def iret_nano(pretrained: bool = False, **kwargs) -> IncrementalTransformer:
    """IRET for 28x28 images: 49 tokens of 2x2 pixels of the halved image, 12 blocks of width 48, 72, 87 and 96, 3 heads, 8 lifting channels."""
    shape = {"img_size": 28, "patch_size": 2, "embed_dims": (48, 72, 87, 96), "num_heads": 3, "lifting_channels": 8}
    return _create("iret_nano", pretrained, shape, kwargs)
