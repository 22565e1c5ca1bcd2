import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from training.architectures.views import with_views


class _Pixels(nn.Module):
    """Logits that are the image's first row of the first channel, so that each view shows."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0]


def test_one_view_is_the_network_itself() -> None:
    network = _Pixels()
    assert with_views(network, 1) is network


def test_two_views_are_the_image_and_its_mirror_image() -> None:
    images = torch.rand(3, 3, 8, 8)
    row = images[:, 0, 0]
    assert torch.allclose(with_views(_Pixels(), 2)(images), (row + row.flip(1)) / 2)


def test_six_views_count_the_unmoved_as_much_as_the_moved() -> None:
    images = torch.rand(3, 3, 8, 8)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = [images[:, 0, 0], padded[:, 0, 0, :8], padded[:, 0, 2, 2:]]
    mirrored = [(row + row.flip(1)) / 2 for row in rows]
    expected = mirrored[0] / 2 + mirrored[1] / 4 + mirrored[2] / 4
    assert torch.allclose(with_views(_Pixels(), 6)(images), expected)


def test_two_views_answer_a_mirrored_image_as_the_image() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    images = torch.rand(2, 3, 8, 8)
    averaged = with_views(plain, 2)
    assert not torch.allclose(plain(images), plain(images.flip(3)), atol=1e-3)
    assert torch.allclose(averaged(images), averaged(images.flip(3)), atol=1e-6)
