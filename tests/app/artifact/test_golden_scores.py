"""An artifact proves its out-of-distribution scores too, with each of its backends."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from app.artifact.directory import Artifact
from app.artifact.files import GOLDEN
from app.artifact.tensors import Images, Outputs
from app.errors import ArtifactError
from app.inference.backends import BackendName, open_backend


def _golden(artifact: Artifact) -> Outputs:
    golden = artifact.arrays(GOLDEN)
    return Outputs(golden["probabilities"], golden["ood_scores"])


@pytest.mark.parametrize("backend", ["onnx-cpu", "torch-cpu"])
def test_both_graphs_give_the_scores_that_were_seen_at_export(
    exported: Artifact, backend: BackendName
) -> None:
    expected = _golden(exported).ood_scores
    found = open_backend(exported, backend).predict(exported.arrays(GOLDEN)["images"])
    assert expected is not None
    assert found.ood_scores is not None
    np.testing.assert_allclose(found.ood_scores, expected, rtol=0.01, atol=0.01)


def test_graph_with_other_scores_is_refused(exported: Artifact) -> None:
    golden = _golden(exported)
    assert golden.ood_scores is not None
    wrong = replace(golden, ood_scores=golden.ood_scores + 1)

    def predict(_: Images) -> Outputs:
        return wrong

    with pytest.raises(ArtifactError, match=r"scores by .* the tolerance is 0\.05"):
        exported.check_golden("onnx-cpu", predict)


@pytest.mark.parametrize("scores", [None, np.zeros(1, np.float32)])
def test_graph_that_gives_none_where_it_should_is_refused(
    exported: Artifact, scores: NDArray[np.float32] | None
) -> None:
    other = replace(_golden(exported), ood_scores=scores)
    with pytest.raises(ArtifactError, match="gives other out-of-distribution scores"):
        exported.check_golden("onnx-cpu", lambda _: other)


def test_score_that_is_no_number_is_refused(exported: Artifact) -> None:
    golden = _golden(exported)
    assert golden.ood_scores is not None
    other = replace(golden, ood_scores=golden.ood_scores * np.nan)
    with pytest.raises(ArtifactError, match="by nan"):
        exported.check_golden("onnx-cpu", lambda _: other)
