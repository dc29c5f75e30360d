"""MobileViT: Transformer blocks inside a convolutional network, attending within groups of pixels (arXiv:2110.02178)."""

from __future__ import annotations

import torch
from timm.layers import Attention
from timm.models import byobnet as timm_byobnet
from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveate.backbones.anatomy import Anatomy, check_children, refuse, residual_block
from foveate.backbones.vit import ATTENTION, BLOCK, attention_rows
from foveate.nn.attention import attend
from foveate.nn.tokens import Tokens, dense

MODEL = {"stem", "stages", "final_conv", "head"}
UNIT = {"conv_kxk", "conv_1x1", "transformer", "norm", "conv_proj", "conv_fusion"}


def units_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The bottleneck and MobileViT blocks of all stages in running order, with their paths."""
    return [(f"stages.{s}.{i}", unit) for s, stage in enumerate(model.stages) for i, unit in enumerate(stage)]


def unfold(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """A map [B, D, rows, columns] to tokens [B, P * N, D]: pixels at the same place of the N patches stand together, P groups of them."""
    x = x.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    return x.permute(0, 3, 5, 2, 4, 1).flatten(1, 4)


def fold(x: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """The map [B, D, rows, columns] of tokens [B, P * N, D]: undoes `unfold`."""
    x = x.unflatten(1, (*patch, grid[0] // patch[0], grid[1] // patch[1]))
    return x.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)


class MobileViT(Anatomy):
    """timm's ByobNet with MobileViT blocks (version 1).

    The blocks are the Transformer blocks inside these, numbered through. Between two of them Tokens.x holds the tokens of all pixel groups, one
    group after the other, and Tokens.beside the map that the last convolution of the MobileViT block joins with its result.
    Methods see each group as an image of its own.
    """

    family = "mobilevit"
    attend = staticmethod(attend)
    resized_by = "pretrained_cfg_overlay=dict(input_size=(3, height, width)), multiples of 64"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        return type(model) is timm_byobnet.ByobNet and any(type(unit) is MobileVitBlock for _, unit in units_of(model))

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for unit in self._hosts for block in unit.transformer]

    @property
    def _hosts(self) -> list[MobileVitBlock]:
        return [unit for _, unit in units_of(self.model) if type(unit) is MobileVitBlock]

    def _host(self, index: int) -> MobileVitBlock:
        """The MobileViT block around block `index`."""
        return [unit for unit in self._hosts for _ in unit.transformer][index - 1]

    def check(self) -> None:
        name, model = self.card.name, self.model
        check_children(model, MODEL, MODEL, name, "model")
        for path, unit in units_of(model):
            if type(unit) is timm_byobnet.BottleneckBlock:
                continue
            if type(unit) is not MobileVitBlock:
                refuse(name, f"{path} is a {type(unit).__module__}.{type(unit).__name__}", "BottleneckBlock and MobileVitBlock of timm")
            check_children(unit, UNIT, UNIT - {"conv_fusion"}, name, path)
            if not len(unit.transformer):
                refuse(name, f"{path} without Transformer blocks", "MobileViT blocks with at least one")
            for i, block in enumerate(unit.transformer):
                inner = f"{path}.transformer.{i}"
                if type(block) is not Block or type(block.attn) is not Attention:
                    refuse(name, f"{inner} is a {type(block).__module__}.{type(block).__name__}", "blocks of timm.models.vision_transformer")
                check_children(block, BLOCK, BLOCK, name, inner)
                check_children(block.attn, ATTENTION, ATTENTION - {"gate"}, name, f"{inner}.attn")

    def check_prunable(self) -> None:
        self.card.check_tokens("a plan that prunes tokens")

    def stem(self, images: Tensor) -> Tokens:
        return self._onwards(self.model.stem(images), None)

    def _onwards(self, x: Tensor, host: MobileVitBlock | None) -> Tokens | Tensor:
        """From the map behind `host` (None: behind the stem) into the next MobileViT block, or the last map where none follows."""
        units = [unit for _, unit in units_of(self.model)]
        for unit in units[0 if host is None else units.index(host) + 1:]:
            if type(unit) is MobileVitBlock:
                return self._enter(x, unit)
            x = unit(x)
        return x

    def _enter(self, x: Tensor, host: MobileVitBlock) -> Tokens:
        beside, x = x, host.conv_1x1(host.conv_kxk(x))
        grid = tuple(x.shape[2:])
        slots = torch.arange(grid[0] * grid[1], device=x.device).view(1, 1, *grid)
        return Tokens(unfold(x, host.patch_size), 0, grid, unfold(slots, host.patch_size).flatten(), beside=beside)

    def _leave(self, tokens: Tokens, host: MobileVitBlock) -> Tensor:
        x = host.conv_proj(fold(host.norm(tokens.x), tokens.grid, host.patch_size))
        return x if host.conv_fusion is None else host.conv_fusion(torch.cat((tokens.beside, x), 1))

    def _groups(self, index: int, tokens: Tokens) -> Tokens:
        """The tokens of block `index` with each pixel group as an image of its own: x [B * P, N, D]."""
        rows, columns = (side // patch for side, patch in zip(tokens.grid, self._host(index).patch_size))
        return dense(tokens.x.unflatten(1, (-1, rows * columns)).flatten(0, 1), 0, (rows, columns))

    def run_native(self, index: int, tokens: Tokens) -> Tokens:
        groups = self._groups(index, tokens)
        return self._joined(index, tokens, groups.with_x(self.blocks[index - 1](groups.x)))

    def run(self, index: int, tokens: Tokens, mix) -> Tokens:
        return self._joined(index, tokens, residual_block(self.blocks[index - 1], self._groups(index, tokens), mix, attention_rows))

    def _joined(self, index: int, tokens: Tokens, groups: Tokens) -> Tokens:
        return tokens.with_x(groups.x.unflatten(0, (-1, self._host(index).patch_area)).flatten(1, 2))

    def next_stage(self, index: int, tokens: Tokens) -> Tokens:
        host = self._host(index)
        if self.blocks[index - 1] is not host.transformer[-1] or host is self._hosts[-1]:
            return tokens
        return self._onwards(self._leave(tokens, host), host)

    def final_norm(self, x: Tensor) -> Tensor:
        return self._hosts[-1].norm(x)

    def features(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens through the last MobileViT block's norm, in grid order."""
        x = fold(self.final_norm(tokens.x), tokens.grid, self._hosts[-1].patch_size).flatten(2).transpose(1, 2)
        return x, torch.ones(x.shape[:2], device=x.device)

    def head(self, tokens: Tokens) -> Tensor:
        host = self._hosts[-1]
        return self.model.forward_head(self.model.final_conv(self._onwards(self._leave(tokens, host), host)))
