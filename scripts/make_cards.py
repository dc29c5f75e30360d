"""Writes foveate/cards/*.json, the numbers of common backbones, from timm models on the meta device.

Run it after changing foveate.card or foveate.backbones.describe: python scripts/make_cards.py
"""

from foveate.backbones.describe import describe_name
from foveate.card import SHIPPED

NAMES = """
foveate_nano foveate_nano_p4
deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
deit_160_patch16_224 deit_256_patch16_224 deit_258_patch16_224 deit_288_patch16_224 deit_318_patch16_224 deit_320_patch16_224
deit3_small_patch16_224 deit3_small_patch16_384 deit3_medium_patch16_224 deit3_base_patch16_224 deit3_base_patch16_384
vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 vit_large_patch16_224
vit_tiny_patch16_384 vit_small_patch16_384 vit_base_patch16_384
vit_small_patch32_224 vit_base_patch32_224 vit_base_patch8_224
vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2
vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2
vit_base_patch16_clip_224 vit_base_patch32_clip_224 vit_large_patch14_clip_224
vit_base_patch16_siglip_224 vit_base_patch16_siglip_gap_224
eva02_tiny_patch14_224 eva02_small_patch14_224 eva02_base_patch14_224 eva02_tiny_patch14_336 eva02_small_patch14_336
vit_small_patch16_dinov3 vit_base_patch16_dinov3
pit_ti_224 pit_xs_224 pit_s_224 pit_b_224
pit_ti_distilled_224 pit_xs_distilled_224 pit_s_distilled_224 pit_b_distilled_224
swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224
lvvit_s lvvit_m
iret_small iret_tiny iret_nano
levit_128s levit_128 levit_192
mobilevit_xxs mobilevit_xs mobilevit_s
""".split()


def main() -> None:
    """Makes all cards anew and removes those of other names."""
    SHIPPED.mkdir(exist_ok=True)
    for path in SHIPPED.glob("*.json"):
        if path.stem not in NAMES:
            path.unlink()
    for name in NAMES:
        (SHIPPED / f"{name}.json").write_text(describe_name(name).to_json() + "\n")
    print(f"{len(NAMES)} cards in {SHIPPED.name}/, {sum(p.stat().st_size for p in SHIPPED.glob('*.json')) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
