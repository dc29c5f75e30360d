"""LV-ViT-S and LV-ViT-M: convolutional stem, scaled residual branches, dense auxiliary head (arXiv:2104.10858)."""

from functools import partial

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, nchw_to, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn, init_weights_vit_timm
from torch import Tensor, nn

from foveate.backbones.nano import check_weights_exist
from foveate.errors import FoveateError

__all__ = ["AUX_WEIGHT", "LVViT", "LVViTBlock", "LVViTStem"]

AUX_WEIGHT = 0.5  # of the maximum over the patch tokens' auxiliary logits
STEM_WIDTH = 64
STEM_STRIDE = 2


class LVViTStem(PatchEmbed):
    """The stem: 7x7 convolution of stride 2, two 3x3 convolutions (64 channels, BatchNorm, ReLU), patch projection.

    [B, in_chans, H, W] -> [B, H/patch * W/patch, embed_dim]. The projection's kernel and stride are patch_size / 2,
    because the first convolution halves the image. Parameter names are those of the published LV-ViT weights.
    img_size: pixels, int or (height, width). patch_size: pixels, even, or a pair of such.
    Raises FoveateError for dynamic_img_pad, an odd patch size, a later change of it, and images of another size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        dynamic_img_pad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs,
    ):
        patch = to_2tuple(patch_size)
        if dynamic_img_pad or any(side % STEM_STRIDE for side in patch):
            raise FoveateError(
                given=f"LV-ViT with patch size {patch_size} and dynamic_img_pad={dynamic_img_pad}",
                allowed="an even patch size, and images whose sides are multiples of it",
                do="leave both arguments out (patch size 16), and resize the images",
            )
        factory = {"device": device, "dtype": dtype}
        projection = tuple(side // STEM_STRIDE for side in patch)
        super().__init__(None, projection, STEM_WIDTH, embed_dim, **kwargs, **factory)
        self.patch_size = patch
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 7, stride=STEM_STRIDE, padding=3, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH, **factory)
        self.conv2 = nn.Conv2d(STEM_WIDTH, STEM_WIDTH, 3, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(STEM_WIDTH, **factory)
        self.conv3 = nn.Conv2d(STEM_WIDTH, STEM_WIDTH, 3, padding=1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(STEM_WIDTH, **factory)
        self.relu = nn.ReLU()

    def set_input_size(self, img_size=None, patch_size=None) -> None:
        """Changes the image size; another patch size than the present one raises FoveateError."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise FoveateError(
                given=f"a new patch size {patch_size} for an LV-ViT of patch size {self.patch_size}",
                allowed="another image size only: the stem's projection is not resampled",
                do="create the model with patch_size=...",
            )
        super().set_input_size(to_2tuple(img_size) if img_size is not None else None)

    def forward(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        fits = size == self.img_size if self.strict_img_size else not any(s % p for s, p in zip(size, self.patch_size))
        if not fits:
            raise FoveateError(
                given=f"images of {size[0]}x{size[1]} pixels",
                allowed=f"{self.img_size[0]}x{self.img_size[1]}"
                if self.strict_img_size
                else f"multiples of {self.patch_size}",
                do="resize the images, or create the model with img_size=...",
            )
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.proj(self.relu(self.bn3(self.conv3(x))))
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else nchw_to(x, self.output_fmt))


class LVViTBlock(nn.Module):
    """A pre-norm transformer block with divided residual branches: x + attn(norm1(x)) / skip_lam, the MLP alike.

    [B, N, dim] -> [B, N, dim]. skip_lam: positive, 2 in LV-ViT-S and -M. kwargs: those of timm's Block, whose children
    it takes over under their names. It is no subclass of Block, so that nothing takes it for one and drops skip_lam.
    """

    def __init__(self, dim: int, num_heads: int, skip_lam: float = 2.0, **kwargs):
        super().__init__()
        self.skip_lam = skip_lam
        for name, child in Block(dim, num_heads, **kwargs).named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        attention = self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        x = x + self.drop_path1(attention) / self.skip_lam
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) / self.skip_lam


class LVViT(VisionTransformer):
    """LV-ViT: timm's Vision Transformer with `LVViTStem`, `LVViTBlock`s and a dense auxiliary head.

    [B, 3, H, W] -> [B, num_classes]: logits = head(class token) + 0.5 max over patch tokens of aux_head(token).
    skip_lam: divisor of the residual branches. kwargs: those of timm's VisionTransformer.
    Raises FoveateError for another pooling than the class token.
    Deviation: training returns the same sum. Dense token labelling (a target for each patch token, mixed tokens) is not
    part of it; the auxiliary head learns through the sum.
    """

    def __init__(self, skip_lam: float = 2.0, global_pool: str = "token", **kwargs):
        _check_pooling(global_pool)
        layers = {
            "embed_layer": LVViTStem,
            "block_fn": partial(LVViTBlock, skip_lam=skip_lam),
            "norm_layer": nn.LayerNorm,
        }
        super().__init__(global_pool=global_pool, **{**layers, **kwargs})
        self.aux_head = self._new_aux_head()
        init_weights_vit_timm(self.aux_head, needs_reset=False)

    def _new_aux_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        token = self.cls_token
        return nn.Linear(self.embed_dim, self.num_classes, device=token.device, dtype=token.dtype).train(self.training)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces both heads by new ones for num_classes (0: none, the model then returns features)."""
        if global_pool is not None:
            _check_pooling(global_pool)
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._new_aux_head()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, num_classes] of normalised tokens [B, prefix + N, dim], any N >= 1; features with pre_logits."""
        output = super().forward_head(x, pre_logits=pre_logits)
        if pre_logits or self.num_classes == 0 or self.global_pool == "":
            return output
        return output + AUX_WEIGHT * self.aux_head(x[:, self.num_prefix_tokens :]).amax(dim=1)


def _check_pooling(global_pool: str) -> None:
    if global_pool not in ("token", ""):
        raise FoveateError(
            given=f"LV-ViT with global_pool={global_pool!r}",
            allowed="'token' (class token), or '' for all tokens",
            do="leave global_pool out; patch tokens already count through the auxiliary head",
        )


def _cfg(crop_pct: float) -> dict:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": 1000,
        "first_conv": "patch_embed.conv1",
        "classifier": ("head", "aux_head"),
        "paper_ids": "arXiv:2104.10858",
    }


default_cfgs = generate_default_cfgs({"lvvit_s": _cfg(crop_pct=0.9), "lvvit_m": _cfg(crop_pct=1.0)})


def _create_lvvit(variant: str, pretrained: bool, shape: dict, kwargs: dict) -> LVViT:
    if pretrained:
        check_weights_exist(variant, kwargs)
    return build_model_with_cfg(
        LVViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{"patch_size": 16, "mlp_ratio": 3.0, "qkv_bias": False, "skip_lam": 2.0, **shape, **kwargs},
    )


@register_model
def lvvit_s(pretrained: bool = False, **kwargs) -> LVViT:
    """LV-ViT-S: 16 blocks, width 384, 6 heads; 26,151,824 parameters, 6.476 GMACs (6.551 with the auxiliary head).

    pretrained: no weights come with foveate; give your own by pretrained_cfg_overlay=dict(file=...).
    kwargs: as for timm's Vision Transformers. Raises FoveateError for pretrained=True without weights.
    """
    return _create_lvvit("lvvit_s", pretrained, {"embed_dim": 384, "depth": 16, "num_heads": 6}, kwargs)


@register_model
def lvvit_m(pretrained: bool = False, **kwargs) -> LVViT:
    """LV-ViT-M: 20 blocks, width 512, 8 heads; 55,830,544 parameters, 12.578 GMACs (12.678 with the auxiliary head)."""
    return _create_lvvit("lvvit_m", pretrained, {"embed_dim": 512, "depth": 20, "num_heads": 8}, kwargs)
