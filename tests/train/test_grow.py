import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from foveate.errors import FoveateError
from foveate.train.grow import grow, initialise


def vit(patch: int, **settings) -> VisionTransformer:
    torch.manual_seed(patch)
    values = {"img_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 4} | settings
    return VisionTransformer(patch_size=patch, **values).eval()


def save(model, folder):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_a_run_of_the_same_shape_is_copied(tmp_path):
    source, target = vit(4), vit(4, drop_path_rate=0.1)
    torch.nn.init.normal_(source.head.weight)
    initialise(target, save(source, tmp_path))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(source(images), target(images))


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_growing_halves_the_patch(tmp_path, settings):
    source, target = vit(4, **settings), vit(2, **settings)
    torch.nn.init.normal_(source.pos_embed)
    initialise(target, f"grow:{save(source, tmp_path)}")
    assert torch.equal(target.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    prefix = target.pos_embed.shape[1] - 64
    assert source.pos_embed.shape[1] == 16 + prefix
    assert torch.equal(target.pos_embed[:, :prefix], source.pos_embed[:, :prefix])
    # Bicubic enlargement keeps the mean of each quadrant close and the corners nearest to their own source.
    fine = target.pos_embed[0, prefix:].reshape(8, 8, 8)
    coarse = source.pos_embed[0, prefix:].reshape(4, 4, 8)
    corner = (fine[0, 0] - coarse.reshape(16, 8)).square().sum(-1)
    assert int(corner.argmin()) == 0


def test_a_grown_patch_embedding_keeps_the_response_to_smooth_images(tmp_path):
    source, target = vit(4), vit(2)
    # A smooth kernel, as trained ones are: then a flat patch must embed alike at both sizes.
    flat = torch.ones(1, 3, 16, 16) * torch.tensor([0.3, -1.0, 0.5])[None, :, None, None]
    smooth = source.state_dict()
    smooth["patch_embed.proj.weight"] = source.patch_embed.proj.weight.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4).clone()
    source.load_state_dict(smooth)
    grow(smooth, target)
    coarse, fine = source.patch_embed(flat)[0, 0], target.patch_embed(flat)[0, 0]
    assert torch.allclose(coarse, fine, rtol=0.1, atol=1e-3)


def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path):
    target = vit(2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for source in (vit(4, embed_dim=16), vit(4, depth=3)):
        with pytest.raises(FoveateError) as caught:
            grow(source.state_dict(), target)
        assert "do not fit VisionTransformer" in caught.value.given and "blocks" in caught.value.given
    with pytest.raises(FoveateError, match="pos_embed"):
        initialise(target, save(vit(4), tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(FoveateError, match="no_run"):
        initialise(vit(2), tmp_path / "no_run")
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(FoveateError) as caught:
        initialise(vit(2), f"grow:{tmp_path}")
    assert "model.safetensors" in caught.value.given
