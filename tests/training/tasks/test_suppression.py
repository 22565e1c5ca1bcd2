"""The same boxes are kept by a loop, by torch, by TorchScript and by ONNX."""

import io

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.export.graphs import quiet_exporters
from training.tasks.suppression import IOU, LEAST_SCORE, kept_boxes, translations


class Suppressing(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return kept_boxes(boxes, scores)


def random_boxes(pictures: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap much, and scores of three classes; some below the least."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(pictures, count, 2, generator=generator) * 60
    side = 10 + 30 * torch.rand(pictures, count, 2, generator=generator)
    scores = torch.rand(pictures, 3, count, generator=generator) ** 4
    return torch.cat((corner, corner + side), 2), scores


def kept_one_by_one(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> list[int]:
    """The boxes of one class that greedy suppression keeps."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if scores[index] > LEAST_SCORE and all(
            overlap(boxes[index], boxes[other]) <= IOU for other in kept
        ):
            kept.append(index)
    return sorted(kept)


def overlap(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.clip(high - low, 0, None).prod()
    areas = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()
    return float(shared / (areas - shared))


@pytest.mark.parametrize("seed", range(5))
def test_best_of_overlapping_boxes_is_kept(seed: int) -> None:
    boxes, scores = random_boxes(2, 60, seed)
    kept = kept_boxes(boxes, scores)
    for picture in range(2):
        for label in range(3):
            expected = kept_one_by_one(boxes[picture].numpy(), scores[picture, label].numpy())
            assert kept[picture, label].nonzero().flatten().tolist() == expected
            assert 3 < len(expected) < 50


def test_box_that_only_a_dropped_one_overlaps_is_kept() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]]])
    kept = kept_boxes(boxes, torch.tensor([[[0.9, 0.8, 0.7]]]))
    assert kept.tolist() == [[[1, 0, 1]]]


def test_graphs_keep_the_same_boxes() -> None:
    module = Suppressing().eval()
    example = random_boxes(2, 40, seed=9)
    buffer = io.BytesIO()
    with quiet_exporters():
        torch.jit.save(torch.jit.trace(module, example), buffer)
        script = torch.jit.load(io.BytesIO(buffer.getvalue()))
    pictures = torch.export.Dim("N")
    with quiet_exporters():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=20,
            input_names=["boxes", "scores"],
            output_names=["kept"],
            dynamic_shapes={"boxes": {0: pictures}, "scores": {0: pictures}},
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto.SerializeToString()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        boxes, scores = random_boxes(count, 40, seed=count)
        expected = kept_boxes(boxes, scores)
        assert torch.equal(script(boxes, scores), expected)
        (found,) = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
        assert (found == expected.numpy()).all()
