"""Swap the GRU of an existing model: python swap_a_gru.py [--steps=40] [--out=swap_a_gru.png]"""

import argparse
import copy
import time

import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ser_fast


class Tagger(nn.Module):
    """A model as it was before: it knows nn.GRU alone."""

    def __init__(self, features=80, hidden_size=128, classes=4):
        super().__init__()
        self.rnn = nn.GRU(features, hidden_size, num_layers=2, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden_size, classes)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.classifier(states.sum(1) / lengths[:, None])


def step(model, optimizer, x, lengths, labels):
    """Train one step; return the loss and the milliseconds that it took."""
    start = time.perf_counter()
    loss = nn.functional.cross_entropy(model(x, lengths), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), 1e3 * (time.perf_counter() - start)


def main(steps, out):
    torch.manual_seed(0)
    before = Tagger()
    after = copy.deepcopy(before)
    print(ser_fast.swap(after))  # the one added line
    models = {"nn.GRU": before, "swapped": after}
    optimizers = [torch.optim.Adam(model.parameters()) for model in models.values()]
    losses, times = ({name: [] for name in models} for _ in range(2))
    for _ in range(steps):
        x, labels = torch.randn(16, 200, 80), torch.randint(4, (16,))
        x[torch.arange(16), :, labels] += 1  # each class has more power in a band of its own
        lengths = torch.randint(50, 201, (16,))
        for (name, model), optimizer in zip(models.items(), optimizers):
            loss, milliseconds = step(model, optimizer, x, lengths, labels)
            losses[name].append(loss)
            times[name].append(milliseconds)
    torch.testing.assert_close(losses["swapped"], losses["nn.GRU"], rtol=0, atol=1e-3)
    medians = {name: torch.tensor(found).median().item() for name, found in times.items()}
    print(", ".join(f"{name} {median:.1f} ms a step" for name, median in medians.items()))

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, found), look in zip(losses.items(), ({"linewidth": 5, "alpha": 0.35}, {"linewidth": 1.5})):
        left.plot(range(1, steps + 1), found, label=name, **look)
    left.set(xlabel="step", ylabel="loss")
    left.legend(frameon=False)
    bars = right.barh(list(medians), list(medians.values()), color=["C0", "C1"])
    right.bar_label(bars, fmt="%.0f ms", padding=4)
    right.set(xlabel="median time of a training step (ms)", xlim=(0, 1.2 * max(medians.values())))
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", default="swap_a_gru.png")
    main(**vars(parser.parse_args()))
