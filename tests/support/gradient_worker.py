"""One of torchrun's processes: the gradients of one global batch, written by the first."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.architectures import find_architecture
from training.data import dataset
from training.recipes import find_recipe
from training.run import distributed
from training.run.checkpoint import Learner
from training.run.lessons import Batch
from training.run.optimization import make_optimizer
from training.run.train import learn


def main(folder: Path, to: Path, micro_batch: int) -> None:
    recipe = find_recipe("fc").replace(micro_batch=micro_batch)
    train = dataset.find(folder).load_train()
    mean, deviation = dataset.channel_statistics(train.images)
    with distributed.join(torch.device("cpu")) as workers:
        torch.manual_seed(0)
        network = find_architecture("fc").build(10, 0.0)
        averaging = workers.average_gradients_of(network)
        learner = Learner(recipe, network, averaging, make_optimizer(recipe, network))
        batch = train[torch.arange(33)]
        share = workers.share(batch)
        weight = workers.weight(len(share), len(batch))
        largest = workers.largest_share(len(batch))
        images = dataset.normalize(share.images, mean, deviation)
        learn(learner, Batch(images, share.labels), 0.0, weight, largest)
        if workers.is_first:
            gradients = {
                name: p.grad for name, p in network.named_parameters() if p.grad is not None
            }
            save_file(gradients | {"images": torch.tensor(len(share))}, to)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
